"""Headers: from the bytes of an instance to its DICOM JSON on one core, beside pydicom.

    python -m benchmarks.header [ROUNDS]

`ratio` is our rate divided by that of `dcmread` and `to_json_dict`. The files come with pydicom; best of three.
"""

import io
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import orjson
import pydicom
from pydicom.data import get_testdata_file

from gateway.domain.header import read, read_part10

from .harness import report

FILES = ("CT_small.dcm", "MR_small.dcm", "JPEG2000.dcm", "rtplan.dcm", "reportsi.dcm")


def ours(data: bytes) -> None:
    part10 = read_part10(data)
    read(memoryview(data)[part10.offset :], part10.syntax, part10.meta)


def peers(data: bytes) -> None:
    dataset = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)
    orjson.dumps(dataset.to_json_dict(bulk_data_threshold=1 << 20, bulk_data_element_handler=lambda _: "x"))


def rate(work: Callable[[bytes], None], files: list[bytes], rounds: int) -> float:
    """Instances a second, best of three."""
    best = float("inf")
    for _ in range(3):
        began = time.process_time()
        for _ in range(rounds):
            for data in files:
                work(data)
        best = min(best, time.process_time() - began)
    return rounds * len(files) / best


def main(rounds: int) -> None:
    warnings.simplefilter("ignore")
    files = [Path(str(get_testdata_file(name, download=False))).read_bytes() for name in FILES]
    mine, theirs = rate(ours, files, rounds), rate(peers, files, rounds)
    report("header", {"ours_per_s": mine, "pydicom_per_s": theirs, "ratio": mine / theirs})


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)
