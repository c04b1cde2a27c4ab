"""A gateway of the demonstration's own: `imageset-gateway serve` on free ports and an empty folder."""

import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

from .screen import NotAsItShouldBe

ROOT = Path(__file__).parents[1]
_STOP_S = 25.0


def ours() -> list[str]:
    """How to call the command `imageset-gateway` of this source tree."""
    return [sys.executable, "-m", "gateway"]


def environment() -> dict[str, str]:
    """Without settings of the person who runs it: the demonstration shows the defaults."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    return {**kept, "PYTHONPATH": str(ROOT)}


class Gateway:
    """Runs inside a `with`, started at its beginning; folder and processes are gone after it."""

    def __init__(self, *flags: str, **settings: str) -> None:
        """`flags` of `serve` beside the usual ones, which they overrule; `settings` as `GATEWAY_...`."""
        self._flags, self._settings = flags, settings

    def __enter__(self) -> "Gateway":
        self.folder = Path(tempfile.mkdtemp(prefix="imageset-gateway-demo-"))
        self.log = self.folder / "log"
        flags = ["--data", str(self.folder / "data"), "--http", "127.0.0.1:0", "--dimse", "127.0.0.1:0", *self._flags]
        self.began = time.monotonic()
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*ours(), "serve", *flags],
                env={**environment(), **self._settings},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the demonstration, which then ends the gateway in good order
            )
        return self

    def listens(self) -> bool:
        """Whether both listeners accept; from then on it is known where. Raises NotAsItShouldBe when it has ended."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], 0)[0]:
            return False
        line = self._process.stdout.readline()
        if not line:
            raise NotAsItShouldBe(f"the gateway serves; it ended with exit code {self._process.wait()}")
        listening = json.loads(line)
        self.http: str = listening["http"]
        self.dimse: str = listening["dimse"]
        self.aet: str = listening["aet"]
        self.datastore: str = listening["datastoreId"]
        return True

    @property
    def pid(self) -> int:
        """Of the supervisor."""
        return self._process.pid

    def last_words(self) -> list[str]:
        """What the log complains of, for who has to find out why a step failed."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return [line for line in lines if '"level":"info"' not in line][-8:]

    def wait(self) -> None:
        """Returns when the gateway has ended by itself."""
        self._process.wait()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        shutil.rmtree(self.folder, ignore_errors=True)
