"""A gateway of the demonstration's own: `imageset-gateway serve` on free ports and an empty folder."""

import json
import os
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

from .screen import NotAsItShouldBe

ROOT = Path(__file__).parents[1]
_START_S = 60.0
_STOP_S = 20.0


def ours() -> list[str]:
    """How to call the command `imageset-gateway` of this source tree."""
    return [sys.executable, "-m", "gateway"]


def environment() -> dict[str, str]:
    """Without settings of the person who runs it: the demonstration shows the defaults."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    return {**kept, "PYTHONPATH": str(ROOT)}


class Gateway:
    """Runs inside a `with`; folder and processes are gone after it."""

    def __enter__(self) -> "Gateway":
        self.folder = Path(tempfile.mkdtemp(prefix="imageset-gateway-demo-"))
        self.log = self.folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        return self

    def start(self) -> None:
        """Returns when both listeners accept. Raises NotAsItShouldBe."""
        flags = ["--data", str(self.folder / "data"), "--http", "127.0.0.1:0", "--dimse", "127.0.0.1:0"]
        began = time.monotonic()
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*ours(), "serve", *flags],
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the demonstration, which then ends the gateway in good order
            )
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            line = self._process.stdout.readline() if selector.select(_START_S) else b""
        if not line:
            raise NotAsItShouldBe(f"the gateway has not said within {_START_S:g} s that it listens")
        self.start_s = time.monotonic() - began
        listening = json.loads(line)
        self.http: str = listening["http"]
        self.dimse: str = listening["dimse"]
        self.aet: str = listening["aet"]
        self.datastore: str = listening["datastoreId"]

    def last_words(self) -> list[str]:
        """The end of the log, for who has to find out why a step failed."""
        return self.log.read_text(errors="replace").splitlines()[-8:] if self.log.exists() else []

    def wait(self) -> None:
        """Returns when the gateway has ended by itself."""
        assert self._process is not None
        self._process.wait()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_S + 5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
        shutil.rmtree(self.folder, ignore_errors=True)
