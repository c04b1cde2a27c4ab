"""The Python dicomweb-client against the surface, on a real socket (CL-09, CL-10)."""

import socket
import threading
from collections.abc import Iterator

import numpy as np
import pydicom
import pytest
import requests
import uvicorn
from dicomweb_client.api import DICOMwebClient
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from gateway.domain.errors import Corrupt
from gateway.domain.model import Frame
from gateway.domain.syntaxes import EXPLICIT_LE, HTJ2K_LOSSLESS_RPCL
from tests.surfaces.fakes import Surface, decoded, jpeg_instance, made, surface


@pytest.fixture
def served() -> Iterator[tuple[Surface, str]]:
    on = surface([made(1, NumberOfFrames=3), made(2), jpeg_instance(3)])
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(on.app, lifespan="off", log_config=None, access_log=False, ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield on, f"http://127.0.0.1:{listener.getsockname()[1]}/dicomweb"
    server.should_exit = True
    thread.join(10)
    listener.close()


def test_search_and_metadata(served: tuple[Surface, str]) -> None:
    client = DICOMwebClient(served[1])
    (study,) = client.search_for_studies(search_filters={"PatientID": "ID-1"}, fields=["StudyDescription", "00080060"])
    assert study["0020000D"]["Value"] == ["1.2.3"]
    assert study["00081190"]["Value"][0].startswith(served[1])
    (series,) = client.search_for_series("1.2.3", search_filters={"Modality": "OT"})
    assert series["0020000E"]["Value"][0] == "1.2.3.4"
    assert len(client.search_for_instances("1.2.3", "1.2.3.4", limit=2, get_remaining=True)) == 3
    assert client.search_for_studies(search_filters={"PatientID": "none"}) == []
    assert len(client.retrieve_series_metadata("1.2.3", "1.2.3.4")) == 3
    assert len(client.retrieve_study_metadata("1.2.3")) == 3
    metadata = client.retrieve_instance_metadata("1.2.3", "1.2.3.4", "1.2.3.4.2")
    assert Dataset.from_json(metadata, lambda *_: b"").PatientName == "Test^Anna"
    with pytest.raises(requests.HTTPError, match="404"):
        client.retrieve_study_metadata("9.9")


def test_retrieve(served: tuple[Surface, str]) -> None:
    on, root = served
    client = DICOMwebClient(root)
    uids = ("1.2.3", "1.2.3.4", "1.2.3.4.1")
    source = on.backend.held[0].data_set
    native = client.retrieve_instance(*uids, media_types=(("application/dicom", EXPLICIT_LE),))
    assert native.file_meta.TransferSyntaxUID == EXPLICIT_LE
    assert native.PixelData == source.PixelData
    stored = client.retrieve_instance(*uids)  # asks for transfer-syntax=*
    assert stored.file_meta.TransferSyntaxUID == HTJ2K_LOSSLESS_RPCL
    assert len(client.retrieve_series(*uids[:2])) == 3
    assert len([*client.iter_study(uids[0])]) == 3
    frames = client.retrieve_instance_frames(*uids, frame_numbers=[2, 3])
    assert frames == [source.PixelData[60:120], source.PixelData[120:180]]
    native_frames = client.retrieve_instance_frames(
        *uids, frame_numbers=[1], media_types=(("application/octet-stream", EXPLICIT_LE),)
    )
    assert native_frames == [source.PixelData[:60]]
    (compressed,) = client.retrieve_instance_frames(
        *uids, frame_numbers=[1], media_types=(("application/octet-stream", "*"),)
    )
    assert decoded(compressed) == source.PixelData[:60]
    (jpeg,) = client.retrieve_instance_frames(
        *uids[:2], "1.2.3.4.3", frame_numbers=[1], media_types=(("image/jpeg", "1.2.840.10008.1.2.4.50"),)
    )
    assert jpeg.startswith(b"\xff\xd8")
    uri = client.retrieve_instance_metadata(*uids)["7FE00010"]["BulkDataURI"]
    assert client.retrieve_bulkdata(uri) == [source.PixelData]
    with pytest.raises(requests.HTTPError, match="404"):
        client.retrieve_instance_frames(*uids, frame_numbers=[4])


def test_store(served: tuple[Surface, str]) -> None:
    on, root = served
    path = get_testdata_file("CT_small.dcm", download=False)
    assert path is not None
    source = pydicom.dcmread(path)
    client = DICOMwebClient(root, chunk_size=10_000)  # chunked, without a Content-Length
    reply = client.store_instances([source, made(7, StudyInstanceUID=str(source.StudyInstanceUID))])
    assert len(reply.ReferencedSOPSequence) == 2
    assert reply.RetrieveURL == f"{root}/studies/{source.StudyInstanceUID}"
    uids = (source.StudyInstanceUID, source.SeriesInstanceUID, source.SOPInstanceUID)
    back = client.retrieve_instance(*uids, media_types=(("application/dicom", EXPLICIT_LE),))
    assert np.array_equal(back.pixel_array, source.pixel_array)
    assert len(on.backend.held) == 5
    with pytest.raises(requests.HTTPError, match="409"):
        client.store_instances([source], study_instance_uid="9.9")


def test_the_connection_breaks_where_a_stream_fails(served: tuple[Surface, str]) -> None:
    on, root = served

    def spoil(frame: Frame) -> Frame:
        if on.backend.frames_read > 1:
            raise Corrupt("A stored frame does not have its digest.")
        return frame

    on.backend.spoil = spoil
    url = f"{root}/studies/1.2.3/series/1.2.3.4/instances/1.2.3.4.1"
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        requests.get(url, headers={"Accept": "application/dicom; transfer-syntax=*"}, timeout=10)
    assert requests.get(f"{root}/studies", timeout=10).status_code == 200
