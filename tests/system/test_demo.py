"""`make demo`: it ends well, and the commands that it ends with work on the gateway that `--keep` leaves running."""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import tool
from tests.running import ROOT, environment

DEMO = [sys.executable, "-m", "demo"]
LAST = "until you press Ctrl-C"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The transcript of a demonstration whose gateway still runs."""
    folder = tmp_path_factory.mktemp("demo")
    process = subprocess.Popen(
        [*DEMO, "--keep"],
        cwd=ROOT,
        env=environment(TMPDIR=str(folder), PYTHONUNBUFFERED="1", PYTHONIOENCODING="utf-8"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if LAST in line:
                break
        yield "".join(lines)
        process.send_signal(signal.SIGINT)
        assert process.wait(40) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdout.close()
    assert list(folder.iterdir()) == [], "the demonstration leaves nothing behind"


def next_commands(transcript: str) -> str:
    """The last step, without its margin."""
    step = transcript.partition("Commands to try next\n")[2].partition("All as it should be")[0]
    return "\n".join(line[3:] for line in step.splitlines())


def test_the_story(kept: str) -> None:
    assert LAST in kept, kept
    titles = re.findall(r"^(\d+)\. ", kept, re.MULTILINE)
    assert titles == [str(number) for number in range(1, 12)]
    assert kept.index("version 2\n") < kept.index("version 3\n")
    assert "\x1b" not in kept, "no colours and no bars where nobody looks on"
    assert "Roe^Jane" in kept
    assert re.search(r"1\.2\.840\.10008\.1\.2\.4\.202 .*\d ms", kept)
    assert re.search(r"\(Explicit VR LE\) .*\d ms", kept)


@pytest.mark.needs("dcmtk")
def test_commands_of_the_end(kept: str, tmp_path: Path) -> None:
    lines = [line for line in next_commands(kept).splitlines() if re.match(r"(storescu|findscu|curl|/)", line)]
    assert len(lines) == 8
    said = {}
    for line in lines:
        words = shlex.split(line)
        words[0] = tool(words[0]) or words[0]
        folder = ROOT if words[1] == "-m" else tmp_path
        done = subprocess.run(
            words, cwd=folder, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, (line, done.stderr)
        said[line] = done.stdout + done.stderr
    outputs = list(said.values())
    assert "Roe^Jane" in outputs[3], "the metadata of version 2"
    assert (tmp_path / "frame.j2c").read_bytes()[:4] == b"\xff\x4f\xff\x51"
    assert "version 4" in outputs[6]


def test_python_of_the_end(kept: str) -> None:
    _, client, boto = next_commands(kept).split("# Python")
    for source, expected in ((client, "0020000D"), (boto, "'versionId': '3'")):
        code = source.partition("\n")[2]
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, expected in done.stdout) == (0, True), done.stderr


def test_a_step_that_fails_is_told(tmp_path: Path) -> None:
    """A gateway that does not start: exit code 1, and a sentence instead of a traceback."""
    broken = tmp_path / "gateway"
    broken.mkdir()
    (broken / "__main__.py").write_text("raise SystemExit(3)")
    (broken / "__init__.py").touch()
    os.symlink(ROOT / "demo", tmp_path / "demo")
    done = subprocess.run(
        DEMO, cwd=tmp_path, env={**environment(), "PYTHONPATH": ""}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "Not as it should be: the gateway serves; it ended with exit code 3" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
