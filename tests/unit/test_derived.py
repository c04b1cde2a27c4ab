"""The folder of derived frames: what it gives is what was put, or nothing."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.blobs import derived
from adapters.blobs.derived import DerivedFolder
from tests.running import ROOT

FORM = "1.2.840.10008.1.2.1-00c0ffee"
LIMIT = 1 << 20


def pixels(number: int) -> str:
    """The digest of some pixel data: spread over all folders."""
    return f"{number * 37 % 256:02x}{number:062x}"


def frame(number: int, size: int = 40_000) -> bytes:
    return number.to_bytes(4, "big") * (size // 4)


def filled(root: Path, numbers: range, limit: int = LIMIT, size: int = 40_000) -> DerivedFolder:
    """A folder into which these frames were put; it takes no more."""
    folder = DerivedFolder(root, limit)
    for number in numbers:
        folder.put(pixels(number), FORM, 0, frame(number, size))
    folder.close()
    return folder


def files(root: Path) -> list[Path]:
    return [path for path in root.glob("??/*") if path.is_file()]


def test_what_was_put_comes_back_also_in_another_process_later(tmp_path: Path) -> None:
    first = DerivedFolder(tmp_path, LIMIT)
    for index in (0, 1, 4_000_000):
        first.put(pixels(1), FORM, index, frame(index))
    first.put(pixels(1), "jpeg-512", 0, b"small")
    first.close()
    second = DerivedFolder(tmp_path, LIMIT)
    for index in (0, 1, 4_000_000):
        assert second.get(pixels(1), FORM, index) == frame(index)
        assert second.get(pixels(1), FORM, index, wait=False) in (frame(index), None)
    assert second.get(pixels(1), "jpeg-512", 0) == b"small"
    assert second.get(pixels(1), FORM, 2) is None
    assert second.get(pixels(2), FORM, 0) is None
    assert second.get(pixels(1), "jpeg", 0) is None


@pytest.mark.parametrize("harm", ["a bit", "its end", "all of it", "another's", "its head"])
def test_a_damaged_file_is_no_frame_and_goes(tmp_path: Path, harm: str) -> None:
    folder = filled(tmp_path, range(2))
    (path,) = (one for one in files(tmp_path) if one.name.startswith(pixels(0)))
    (other,) = (one for one in files(tmp_path) if one != path)
    data = bytearray(path.read_bytes())
    if harm == "a bit":
        data[20_000] ^= 4
    elif harm == "its head":
        data[2] ^= 4
    elif harm == "another's":
        data = bytearray(other.read_bytes())
    else:
        del data[30_000 if harm == "its end" else 0 :]
    path.write_bytes(data)
    assert folder.get(pixels(0), FORM, 0) is None
    assert not path.exists()
    assert folder.get(pixels(1), FORM, 0) == frame(1)
    again = filled(tmp_path, range(1))
    assert again.get(pixels(0), FORM, 0) == frame(0)


def test_it_never_grows_beyond_its_limit_and_keeps_what_is_used(tmp_path: Path) -> None:
    folder = filled(tmp_path, range(20))
    for path in files(tmp_path):  # an hour ago
        os.utime(path, (time.time() - 3600,) * 2)
    used = (3, 7)
    for number in used:
        assert folder.get(pixels(number), FORM, 0) == frame(number)
    filled(tmp_path, range(20, 34))
    assert 0 < sum(path.stat().st_size for path in files(tmp_path)) <= LIMIT
    for number in (*used, 33):
        assert folder.get(pixels(number), FORM, 0) == frame(number)
    assert folder.get(pixels(0), FORM, 0) is None


def test_many_small_frames_are_not_many_files(tmp_path: Path) -> None:
    filled(tmp_path, range(200), size=400)
    assert 0 < len(files(tmp_path)) <= LIMIT // (16 << 10)


def test_one_huge_frame_does_not_drive_out_the_others(tmp_path: Path) -> None:
    folder = DerivedFolder(tmp_path, LIMIT)
    folder.put(pixels(1), FORM, 0, bytes(LIMIT // 4))
    folder.close()
    assert files(tmp_path) == []


def test_what_waits_to_be_written_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derived, "_WAITING_BYTES", 50_000)
    folder = DerivedFolder(tmp_path, LIMIT)
    with folder._change:  # the writer cannot begin
        for number in range(3):
            folder.put(pixels(number), FORM, 0, frame(number))
    folder.close()
    assert len(files(tmp_path)) == 1


def test_pixels_are_forgotten(tmp_path: Path) -> None:
    folder = DerivedFolder(tmp_path, LIMIT)
    for number in range(4):
        folder.put(pixels(number), FORM, 0, frame(number))
        folder.put(pixels(number), "jpeg", 7, frame(number))
    folder.close()
    folder.forget([pixels(1), pixels(3), pixels(99)])
    assert {path.name.partition("_")[0] for path in files(tmp_path)} == {pixels(0), pixels(2)}
    assert len(files(tmp_path)) == 4


def test_sweeping_removes_what_no_pixel_data_stands_behind(tmp_path: Path) -> None:
    folder = filled(tmp_path, range(20))
    abandoned, begun = tmp_path / "00" / "_1-1", tmp_path / "00" / "_1-2"
    abandoned.parent.mkdir(exist_ok=True)
    for part in (abandoned, begun):
        part.write_bytes(b"half a fra")
    os.utime(abandoned, (time.time() - 7200,) * 2)
    living = {pixels(number) for number in range(0, 20, 2)}
    for _ in range(256):
        folder.sweep(lambda digests: living & set(digests))
    assert {path.name.partition("_")[0] for path in files(tmp_path)} - {""} == living
    assert not abandoned.exists()
    assert begun.exists()


@pytest.mark.parametrize("reason", ["off", "disk"])
def test_nothing_is_kept_when_it_is_off_or_the_disk_is_nearly_full(tmp_path: Path, reason: str) -> None:
    filled(tmp_path, range(3))
    now = DerivedFolder(tmp_path, 0 if reason == "off" else LIMIT, reserve_bytes=0 if reason == "off" else 1 << 60)
    now.put(pixels(9), FORM, 0, frame(9))
    now.close()
    assert now.get(pixels(9), FORM, 0) is None
    now.sweep(set)
    assert files(tmp_path) == []


def test_the_folder_may_be_deleted_at_any_time(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    folder = filled(root, range(2))
    for path in files(root):
        path.unlink()
    for shard in root.glob("??"):
        shard.rmdir()
    assert folder.get(pixels(0), FORM, 0) is None
    folder.forget([pixels(0)])
    folder.sweep(set)
    assert filled(root, range(2)).get(pixels(1), FORM, 0) == frame(1)


_OTHER = """
import sys
from pathlib import Path
from adapters.blobs.derived import DerivedFolder
from tests.unit.test_derived import FORM, LIMIT, frame, pixels
folder = DerivedFolder(Path(sys.argv[1]), LIMIT)
print("ready", flush=True)
for line in sys.stdin:
    number = int(line)
    folder.put(pixels(number % 40), FORM, 0, frame(number % 40))
    found = folder.get(pixels(number % 40), FORM, 0)
    print("bad" if found not in (None, frame(number % 40)) else "good", flush=True)
folder.close()
"""


@pytest.fixture
def other_process(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(
        [sys.executable, "-c", _OTHER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        yield process
        process.kill()


def test_two_processes_share_it(tmp_path: Path, other_process: "subprocess.Popen[str]") -> None:
    """Both write, read and evict the same frames: nothing but whole frames is ever seen, and the bound holds."""
    assert other_process.stdin is not None
    assert other_process.stdout is not None
    assert other_process.stdout.readline() == "ready\n"
    ours = DerivedFolder(tmp_path, LIMIT)
    hits = 0
    for number in range(300):
        other_process.stdin.write(f"{number}\n")
        other_process.stdin.flush()
        ours.put(pixels(number % 40), FORM, 0, frame(number % 40))
        for back in (0, 5, 20):
            found = ours.get(pixels((number - back) % 40), FORM, 0)
            assert found in (None, frame((number - back) % 40))
            hits += found is not None
        assert other_process.stdout.readline() == "good\n"
    assert hits > 0
    ours.close()
    other_process.stdin.close()
    assert other_process.wait(20) == 0
    assert 0 < sum(path.stat().st_size for path in files(tmp_path)) <= LIMIT
