"""Instances come back without a fault that they did not arrive with, as David Clunie's dciodvfy judges."""

import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.conftest import tool
from tests.corpus import CORPUS
from tests.corpus_doors.samples import Sample, samples
from tests.running import RunningGateway, command

EXPLICIT_LE = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
UNKNOWN_TO_IT = "1.2.840.10008.1.2.4.20"
"""HTJ2K, .201 to .203."""
COMPRESSED_ONLY = ("<YBR_FULL>", "</PlanarConfiguration(0028,0006)[1]>")
"""Colour that US objects allow in RLE alone: uncompressed it is the same samples, for nothing is converted unasked."""


def errors(path: Path) -> Counter[str]:
    said = subprocess.run(
        [tool("dciodvfy") or "dciodvfy", "-new", str(path)], capture_output=True, errors="replace", timeout=120
    )
    return Counter(line for line in said.stderr.splitlines() if line.startswith("Error"))


@pytest.mark.needs("corpus", "dciodvfy")
def test_no_instance_has_a_new_fault(gateway: RunningGateway, http: httpx.Client, tmp_path: Path) -> None:
    kept: dict[str, Sample] = {}
    alike: Counter[tuple[str, str | None]] = Counter()
    for sample in samples():
        if sample.well_formed and sample.uids is not None and sample.syntax != DEFLATED:  # it cannot inflate
            alike[sample.uids[1], sample.syntax] += 1
            if alike[sample.uids[1], sample.syntax] <= 3:  # the other slices of a series have nothing new to say
                kept.setdefault(sample.uids[2], sample)
    assert CORPUS is not None
    chosen = tmp_path / "chosen"
    chosen.mkdir()
    for number, sample in enumerate(kept.values()):
        (chosen / f"{number}.dcm").symlink_to(sample.path)
    sent = command("import", str(chosen), "--url", gateway.http, timeout_s=300)
    assert sent.returncode == 0, sent.stderr

    def compare(sample: Sample) -> tuple[str, int, list[str]]:
        """Its name, in how many forms it was compared, and what is new in them."""
        assert sample.uids is not None
        study, series, sop = sample.uids
        before = errors(sample.path)
        compared, new = 0, []
        for syntax in (EXPLICIT_LE, "*"):
            answer = http.get(
                f"/dicomweb/studies/{study}/series/{series}/instances/{sop}",
                headers={"accept": f"application/dicom; transfer-syntax={syntax}"},
            )
            if answer.status_code in (404, 406):  # in a non-primary image set; a video, which stays one
                continue
            assert answer.status_code == 200
            if UNKNOWN_TO_IT in answer.headers["content-type"]:
                continue
            file = tmp_path / f"{sop}-{len(syntax)}.dcm"
            file.write_bytes(answer.content)
            new += (errors(file) - before).elements()
            file.unlink()
            compared += 1
        return sample.name, compared, [line for line in new if not any(words in line for words in COMPRESSED_ONLY)]

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(compare, kept.values()))
    assert [(name, new) for name, _, new in results if new] == []
    assert sum(compared for _, compared, _ in results) > len(kept)
