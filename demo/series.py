"""Which series are sent: real ones from the corpus where it lies, else those that come with pydicom."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.dataset import FileDataset
from pydicom.uid import UID

from .gateway import ROOT


@dataclass(frozen=True, slots=True)
class Sample:
    """One series on disk, all of one study."""

    files: list[Path]
    one: FileDataset
    """The file in the middle, read whole."""

    @property
    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)

    @property
    def study(self) -> str:
        return str(self.one.StudyInstanceUID)

    @property
    def series(self) -> str:
        return str(self.one.SeriesInstanceUID)

    @property
    def patient(self) -> str:
        return str(self.one.PatientName)

    @property
    def syntax(self) -> UID:
        return UID(self.one.file_meta.TransferSyntaxUID)

    def __str__(self) -> str:
        one = self.one
        return f"{len(self.files)} {one.Modality} images, {one.Rows} x {one.Columns}, {self.syntax.name}"


def samples(environ: Mapping[str, str] = os.environ) -> tuple[Sample, Sample]:
    """A CT and an MR series. The corpus is `GATEWAY_TEST_DATA`, else `../shared/data`."""
    corpus = Path(environ.get("GATEWAY_TEST_DATA", ROOT.parent / "shared" / "data")) / "series"
    if (corpus / "ct-head-93").is_dir() and (corpus / "mr-t1-24").is_dir():
        return _read(corpus / "ct-head-93"), _read(corpus / "mr-t1-24")
    bundled = Path(pydicom.__file__).parent / "data" / "test_files" / "dicomdirtests"
    return _read(bundled / "98892001" / "CT5N"), _read(bundled / "98892003" / "MR700")


def _read(folder: Path) -> Sample:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return Sample(files, pydicom.dcmread(files[len(files) // 2]))
