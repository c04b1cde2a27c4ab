"""Whole studies as DICOM, before and after their frames are in the cache, held against what is known of the pixels."""

import io
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import pydicom
import pytest
from pydicom.dataset import Dataset

from tests.corpus_doors.compare import parts, wrong_pixels
from tests.corpus_doors.doors import Stow
from tests.corpus_doors.samples import Sample, repeated, samples
from tests.running import RunningGateway

NATIVE = 'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.1'
STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'
MOST_BYTES = 700_000
DEADLINE_S = 60.0


def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def chosen() -> list[Sample]:
    """What is small enough to be quick, of every kind, each SOP Instance UID once."""
    files = samples()
    again = repeated(files)
    return [
        file
        for file in files
        if file.well_formed and file.truth and file.uids and file.uids[2] not in again
        if file.path.stat().st_size < MOST_BYTES
    ]


def kept(folder: Path) -> dict[str, float]:
    """Files of the cache and when each was written."""
    found = {}
    for path in folder.glob("??/*"):
        with suppress(FileNotFoundError):  # a part that has its name by now
            if not path.name.startswith("_"):
                found[path.name] = path.stat().st_ctime
    return found


def wrong(file: Sample, back: Dataset) -> str | None:
    native = back.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1" and "PixelData" in back
    if not native or back.BitsAllocated == 1:
        return None  # kept as received, or its frames share bytes
    count = int(back.get("NumberOfFrames") or 1)
    samples_in_a_frame = back.Rows * back.Columns * back.SamplesPerPixel
    size = min(samples_in_a_frame * back.BitsAllocated // 8, len(back.PixelData) // count)  # less in 4:2:2
    frames = [back.PixelData[at * size : (at + 1) * size] for at in range(count)]
    assert file.truth is not None
    return wrong_pixels(frames, file.truth, samples_in_a_frame, back.BitsAllocated)


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_cold_warm_and_damaged_are_the_same_bytes(gateway: RunningGateway, http: httpx.Client) -> None:
    files = chosen()
    Stow(gateway, http).send_all(files)

    def idle() -> bool:
        work = gateway.get("/queue").json()["work"]
        return not any(state["waiting"] or state["running"] for state in work.values())

    until(idle, "the encoder does not end")
    cache = gateway.data / "cache"
    studies = sorted({file.uids[0] for file in files if file.uids})

    def fetched(accept: str) -> list[tuple[str, bytes]]:
        """Content type and body of every study's answer."""
        answers = []
        for study in studies:
            answer = http.get(f"/dicomweb/studies/{study}", headers={"accept": f"{accept}, {STORED}; q=0.5"})
            assert answer.status_code in (200, 404), answer.text[:300]  # 404: in non-primary image sets alone
            answers.append((answer.headers["content-type"], answer.content))
        return answers

    def instances(answers: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        return [part for kind, body in answers if kind.startswith("multipart") for part in parts(kind, body)]

    cold = fetched(NATIVE)
    by_sop = {file.uids[2]: file for file in files if file.uids}
    seen = 0
    decoded: dict[bytes, int] = {}
    for (kind, payload), (stored_kind, _) in zip(instances(cold), instances(fetched(STORED)), strict=True):
        back = pydicom.dcmread(io.BytesIO(payload))
        if back.SOPInstanceUID in by_sop:
            assert wrong(by_sop[back.SOPInstanceUID], back) is None, by_sop[back.SOPInstanceUID].name
            seen += 1
        if kind != stored_kind:
            decoded[bytes(back.PixelData)] = int(back.get("NumberOfFrames") or 1)
    assert seen >= len(files) * 0.9
    assert sum(decoded.values()) > seen // 2

    until(lambda: len(kept(cache)) >= sum(decoded.values()), "the decoded frames are not in the cache")
    first = kept(cache)

    assert fetched(NATIVE) == cold
    # Frames are written in order: what is decoded again last is there after all that might have been before it.
    removed = min(first)
    (cache / removed[:2] / removed).unlink()
    assert fetched(NATIVE) == cold
    until(lambda: removed in kept(cache), "a frame does not come back")
    second = kept(cache)
    assert {name for name in first if second[name] != first[name]} == {removed}

    for name in second:
        path = cache / name[:2] / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0x10
        path.write_bytes(data)
    damaged = kept(cache)
    assert fetched(NATIVE) == cold

    def is_replaced() -> bool:
        now = kept(cache)
        return all(now.get(name, 0.0) > written for name, written in damaged.items())

    until(is_replaced, "damaged frames are not replaced")
    assert fetched(NATIVE) == cold
