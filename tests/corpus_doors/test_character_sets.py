"""Names in every character set are found by what they are, and come back as what they are."""

import time
from pathlib import Path

import httpx
import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind  # type: ignore[attr-defined]

from demo.network import undisturbed
from tests.corpus_doors.doors import Stow
from tests.corpus_doors.samples import Sample, samples
from tests.running import RunningGateway


def in_a_study_of_its_own(sample: Sample, number: int, folder: Path) -> Sample:
    """The corpus has them all in one study, which has one patient; the UIDs made here are as long as theirs."""
    assert sample.uids is not None
    study, series, sop = sample.uids
    own = f"{study[:-2]}{number:02}", f"{series[:-2]}{number:02}"
    data = sample.data.replace(study.encode(), own[0].encode()).replace(series.encode(), own[1].encode())
    path = folder / f"{number}.dcm"
    path.write_bytes(data)
    uids = (*own, sop)
    return Sample(sample.name, path, True, True, uids, sample.sop_class, sample.syntax, None, sample.patient_name)


@pytest.mark.needs("corpus")
def test_names_are_found(gateway: RunningGateway, http: httpx.Client, tmp_path: Path) -> None:
    known = [sample for sample in samples() if sample.patient_name is not None]
    assert len(known) == 20
    files = [in_a_study_of_its_own(sample, number, tmp_path) for number, sample in enumerate(known)]
    Stow(gateway, http).send_all(files)

    entity = AE(ae_title="CORPUS")
    entity.add_requested_context(StudyRootQueryRetrieveInformationModelFind)
    association = undisturbed(entity.associate(*gateway.dimse, ae_title=gateway.aet))
    assert association.is_established
    for file in files:
        assert file.uids is not None
        assert file.patient_name is not None
        for group, name in zip(("Alphabetic", "Ideographic", "Phonetic"), file.patient_name.split("="), strict=False):
            rows = http.get("/dicomweb/studies", params={"PatientName": name}).json()
            found = {row["0020000D"]["Value"][0]: row["00100010"]["Value"][0] for row in rows}
            assert found[file.uids[0]][group] == name
            assert all(name in names.values() for names in found.values())

        identifier = Dataset()
        identifier.SpecificCharacterSet = "ISO_IR 192"
        identifier.QueryRetrieveLevel, identifier.StudyInstanceUID = "STUDY", ""
        identifier.PatientName = file.patient_name.partition("=")[0]
        answers = list(association.send_c_find(identifier, StudyRootQueryRetrieveInformationModelFind))
        assert answers[-1][0].Status == 0, (file.name, answers[-1][0])
        names = {row.StudyInstanceUID: str(row.PatientName) for _, row in answers[:-1] if row is not None}
        assert names[file.uids[0]] == file.patient_name
        while association._is_paused:  # its reactor would take answers to the next query
            time.sleep(0.001)
    association.release()
