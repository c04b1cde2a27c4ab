"""A real gateway for a test: `imageset-gateway serve` in processes of its own, on free ports and its own folder.

Where the environment says `GATEWAY_TEST_DATABASE=postgresql`, each gets a fresh PostgreSQL database instead of SQLite,
two web processes and four workers, unless a test asks for something else.
"""

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped,unused-ignore]

from tests.databases import asked, create_database, drop_database

ROOT = Path(__file__).parents[1]
DATABASE = os.environ.get("GATEWAY_TEST_DATABASE", "sqlite")
SEVERAL = {"GATEWAY_HTTP__PROCESSES": "2", "GATEWAY_WORKERS": "4"}
"""The settings of a gateway with several processes of each kind that may be several."""
ALONE = {"GATEWAY_HTTP__PROCESSES": "1", "GATEWAY_WORKERS": "1"}
"""Those of one that has none twice, for tests that stop or kill the very process that has something in hand."""
START_S = 60.0
STOP_S = 20.0


def environment(**extra: str) -> dict[str, str]:
    """Ours without settings of the person who runs the tests; the package is found from any folder."""
    # Below 3.12 measuring coverage makes a process several times slower: there, ours alone is measured.
    unwanted = ("GATEWAY_",) if sys.version_info >= (3, 12) else ("GATEWAY_", "COVERAGE_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    kept["PYTHONPATH"] = str(ROOT)
    kept["GATEWAY_TEST_STRICT"] = "1"
    return {**kept, **extra}


def command(
    *arguments: str, env: Mapping[str, str] | None = None, timeout_s: float = 60
) -> subprocess.CompletedProcess[str]:
    """Runs a command of the gateway to its end."""
    return subprocess.run(
        [sys.executable, "-m", "gateway", *arguments],
        env=environment(**(env or {})),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=timeout_s,
    )


def wait_until_refused(host: str, port: int) -> None:
    """Returns when nobody listens there any more."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host, port), 1).close()
        except ConnectionRefusedError:
            return
        time.sleep(0.02)
    raise AssertionError("the listener still accepts")


def role_of(process: psutil.Process) -> str:
    """supervisor, web, dimse, worker or decoder. Raises psutil.Error for one that is gone."""
    kind = process.name().removeprefix("gateway-")
    if kind in ("web", "dimse", "worker"):
        return kind
    return "decoder" if "adapters.codecs.sandbox" in " ".join(process.cmdline()) else "supervisor"


class RunningGateway:
    """A gateway that has printed its listening line."""

    def __init__(
        self,
        data: Path,
        *flags: str,
        env: Mapping[str, str] | None = None,
        ports: tuple[int, int] = (0, 0),
        database: str | None = None,
    ) -> None:
        """`database` is `sqlite`, `postgresql`, a fresh one until `close`, or the SQLAlchemy URL of an empty one; by
        default what the tests are run on."""
        self.data = data
        self.log = data.parent / f"{data.name}.log"
        self._flags = flags
        several = SEVERAL if DATABASE == "postgresql" else {}
        self._env = environment(**{**several, **(env or {})})
        self._database: str | None = None
        database = database or DATABASE
        if database not in ("sqlite", "postgresql"):
            self._env["GATEWAY_DATABASE_URL"] = database.replace("postgresql://", "postgresql+psycopg://")
        elif database == "postgresql" and "GATEWAY_DATABASE_URL" not in self._env:
            self._database = self._env["GATEWAY_DATABASE_URL"] = create_database()
        self._ports = (f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}")
        try:
            self._start()
        except BaseException:
            self._drop_database()
            raise

    def _start(self) -> None:
        self.began = time.monotonic()
        http, dimse = self._ports
        flags = ["--data", str(self.data), "--http", http, "--dimse", dimse, *self._flags]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gateway", "serve", *flags],
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        self.listening: dict[str, Any] = json.loads(self._first_line())
        self.http: str = self.listening["http"]
        host, _, port = self.listening["dimse"].rpartition(":")
        self.dimse: tuple[str, int] = (host, int(port))
        self.aet: str = self.listening["aet"]
        self.datastore: str = self.listening["datastoreId"]

    def _first_line(self) -> bytes:
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            line = self.process.stdout.readline() if selector.select(START_S) else b""
        if not line:
            self.kill()
            raise AssertionError(f"the gateway did not start:\n{self.log.read_text()[-4000:]}")
        return line

    @property
    def environment(self) -> Mapping[str, str]:
        """What its settings are read from, beside its flags."""
        return self._env

    @property
    def pid(self) -> int:
        """Of the supervisor."""
        return self.process.pid

    def pids(self) -> dict[str, int]:
        """Of the running processes, by role; the last started of each."""
        started = (json.loads(line) for line in self.log.read_text().splitlines() if '"process_started"' in line)
        return {line["process"]: line["pid"] for line in started}

    def roles(self, kind: str) -> list[str]:
        """The names of its web, dimse or worker processes."""
        return sorted(role for role in self.pids() if role.partition("-")[0] == kind)

    @contextlib.contextmanager
    def only(self, role: str) -> Iterator[None]:
        """Whoever connects meanwhile comes to this web process: the others stand still."""
        pids = self.pids()
        others = [psutil.Process(pids[other]) for other in self.roles("web") if other != role]
        try:
            for other in others:
                other.suspend()
            deadline = time.monotonic() + START_S
            while any(other.status() != psutil.STATUS_STOPPED for other in others):
                assert time.monotonic() < deadline
                time.sleep(0.002)
            yield
        finally:
            for other in others:
                other.resume()

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs a command that opens this gateway's store itself to its end."""
        url = self._env.get("GATEWAY_DATABASE_URL")
        env = {} if url is None else {"GATEWAY_DATABASE_URL": url}
        return command(*arguments, "--data", str(self.data), env=env)

    def asked(self, sql: str) -> Any:
        """The first column of the first row that its database answers."""
        return asked(self.data, self._env, sql)

    def get(self, path: str, **more: Any) -> httpx.Response:
        return httpx.get(self.http + path, timeout=30, **more)

    def restarts(self, role: str) -> int:
        count: int = self.get("/queue").json()["processes"][role]["restarts"]
        return count

    def wait_for_restart(self, role: str, beyond: int) -> None:
        """Returns when `role` serves again, having been started again more than `beyond` times."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError):
                state = self.get("/queue").json()["processes"][role]
                if state["up"] and state["restarts"] > beyond:
                    return
            time.sleep(0.05)
        raise AssertionError(f"{role} was not started again:\n{self.log.read_text()[-4000:]}")

    def stop(self) -> int:
        """SIGTERM, if it still runs; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(STOP_S)
        self._close()
        return code

    def close(self) -> None:
        """Stops it for good: a database that was made for it is dropped."""
        try:
            self.stop()
        finally:
            self._drop_database()

    def kill(self) -> None:
        """SIGKILL to the supervisor."""
        self.process.kill()
        self.process.wait()
        self._close()

    def restart(self) -> None:
        """Starts again on the same folder and ports, after `stop` or `kill`."""
        if self.process.poll() is None:
            self.stop()
        self._ports = (self.http.partition("//")[2], f"{self.dimse[0]}:{self.dimse[1]}")
        self._start()

    def _drop_database(self) -> None:
        if self._database is not None:
            drop_database(self._database)

    def _close(self) -> None:
        if self.process.stdout is not None:
            self.process.stdout.close()
