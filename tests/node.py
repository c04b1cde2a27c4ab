"""Node.js for tests: the packages of `tests/javascript`, and the AWS SDK for JavaScript in a process of its own."""

import json
import shutil
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.conftest import missing, require, tool
from tests.running import environment

PROGRAMS = Path(__file__).parent / "javascript"
_INSTALL_S = 300
_STOP_S = 20


def program() -> str:
    """Where Node.js is; skips the running test where it is not."""
    require("node")
    found = tool("node", "nodejs")
    assert found is not None
    return found


def packages(scratch: Path) -> Path:
    """A folder whose node_modules holds what `package.json` names: that of `make system`, or `scratch`, newly filled.
    Skips the running test where it can be neither."""
    wanted: dict[str, str] = json.loads((PROGRAMS / "package.json").read_bytes())["dependencies"]
    if all(_version(PROGRAMS, name) == version for name, version in wanted.items()):
        return PROGRAMS
    require("npm")
    npm = tool("npm")
    assert npm is not None
    for name in ("package.json", "package-lock.json"):
        shutil.copy(PROGRAMS / name, scratch)
    ran = subprocess.run(
        [npm, "ci", "--no-audit", "--no-fund", "--prefer-offline"],
        cwd=scratch,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=_INSTALL_S,
    )
    if ran.returncode:
        missing("what tests use from npm (make system)")
    return scratch


def _version(folder: Path, package: str) -> str | None:
    try:
        described = json.loads((folder / "node_modules" / package / "package.json").read_bytes())
    except FileNotFoundError:
        return None
    return str(described["version"])


def javascript_client(url: str, **more: Any) -> dict[str, Any]:
    """The settings of a client of a gateway, and more."""
    return {
        "endpoint": url,
        "region": "us-east-1",
        "credentials": {"accessKeyId": "AKIDEXAMPLE", "secretAccessKey": "secret"},
        "disableHostPrefix": True,
        "maxAttempts": 1,
        **more,
    }


class SdkError(Exception):
    """What the SDK threw: its name and message, and what else there is to it."""

    def __init__(self, told: Mapping[str, Any]) -> None:
        super().__init__(f"{told['name']}: {told.get('message')}")
        self.name: str = told["name"]
        self.message: str = told.get("message", "")
        self.code: str | None = told.get("code")
        """Of a fault of the connection."""
        self.status: int | None = told.get("status")
        self.fault: str | None = told.get("fault")
        """`client` or `server`."""
        self.is_modelled: bool = told["isModelled"]
        """It is of the class that the SDK has for errors of this name."""
        self.is_of_service: bool = told["isOfService"]


class Sdk:
    """The AWS SDK for JavaScript, one call at a time. A `datetime` is a Date, `bytes` the bytes of a text."""

    def __init__(self, folder: Path) -> None:
        """`folder` is that of `packages`."""
        self._process = subprocess.Popen(
            [program(), str(PROGRAMS / "healthimaging.cjs"), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Nothing of the machine's own settings of AWS.
            env=environment(AWS_CONFIG_FILE="/dev/null", AWS_SHARED_CREDENTIALS_FILE="/dev/null"),
            text=True,
        )

    def __enter__(self) -> "Sdk":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(_STOP_S)
        self._process.stdout.close()

    def call(
        self, client: Mapping[str, Any], operation: str, given: Mapping[str, Any], file: Path | None = None
    ) -> dict[str, Any]:
        """The answer of `client.send(new {operation}Command(given))`, a client of these settings; a streamed blob goes
        into `file`. Raises SdkError."""
        line = {"client": client, "operation": operation, "input": given}
        return self._ask(line if file is None else line | {"file": str(file)})["answer"]  # type: ignore[no-any-return]

    def pages(
        self, client: Mapping[str, Any], operation: str, given: Mapping[str, Any], page_size: int
    ) -> list[dict[str, Any]]:
        """All that `paginate{operation}` gives. Raises SdkError."""
        line = {"client": client, "operation": operation, "input": given, "pageSize": page_size}
        return self._ask(line)["pages"]  # type: ignore[no-any-return]

    def never_sent(self) -> list[str]:
        """The commands that the SDK has and that were not sent yet."""
        return self._ask({})["answer"]["neverSent"]  # type: ignore[no-any-return]

    def _ask(self, line: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(line, default=_sent) + "\n")
        self._process.stdin.flush()
        result: dict[str, Any] = json.loads(self._process.stdout.readline(), object_hook=_received)
        if "error" in result:
            raise SdkError(result["error"])
        return result


def _sent(value: Any) -> dict[str, Any]:
    if isinstance(value, datetime):
        return {"$time": round(value.timestamp() * 1000)}
    assert isinstance(value, bytes)
    return {"$text": value.decode()}


def _received(value: dict[str, Any]) -> Any:
    return datetime.fromtimestamp(value["$time"] / 1000, UTC) if "$time" in value else value
