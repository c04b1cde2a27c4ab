"""Reads: what was received comes back, at every version, before and after encoding, or not at all."""

import gzip
import struct
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.filewriter import dcmwrite
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian

from adapters.blobs.derived import DerivedFolder
from adapters.codecs.decoding import DecodePool
from adapters.codecs.registry import Codecs
from gateway.domain.errors import Conflict, Corrupt, Gone, InvalidInput, NotAcceptable, NotFound
from gateway.domain.ids import FrameId, ImageSetId
from gateway.domain.model import Entry, Selection
from gateway.domain.pixels import THUMBNAIL_SIDE, PixelFormat
from gateway.services.retrieve import Retrieve, Wanted
from tests.contract.embedded import BASE, Store, value
from tests.makers import data_set, instance, part10, pixels, uid

NATIVE = "1.2.840.10008.1.2.1"
HTJ2K = "1.2.840.10008.1.2.4.202"
STUDY, SERIES = uid(1), uid(1, 1)


def slice_(number: int, **attributes: Any) -> bytes:
    return instance(STUDY, SERIES, uid(1, 1, number), pixels(number), InstanceNumber=number, **attributes)


def frame(store: Store, entry: Entry, index: int = 0) -> NDArray[np.uint16]:
    """A frame's samples, whatever syntax it has."""
    read = store.do(store.web.backend.frame(entry, index))
    assert entry.format is not None
    data = read.data if read.syntax == NATIVE else Codecs().decode(read.data, read.syntax, entry.format)
    assert zlib.crc32(data) == read.crc32
    return np.frombuffer(data, np.uint16).reshape(entry.format.rows, entry.format.columns)


# ---------------------------------------------------------------- headers


def test_the_header_is_what_was_received(store: Store) -> None:
    file = slice_(1, ImageComments="as sent")
    store.put(file)
    (entry,) = store.select(STUDY).entries
    before, after = store.do(store.web.backend.head(entry))
    at = file.index(struct.pack("<HH2s", 0x7FE0, 0x0010, b"OW"))
    start = file.index(struct.pack("<HH2s", 0x0008, 0x0016, b"UI"))
    assert before == file[start:at]
    assert after == b""
    assert (entry.received_syntax, entry.sop_uid, entry.frames) == (NATIVE, uid(1, 1, 1), 1)


def test_what_follows_the_pixels_comes_back_too(store: Store) -> None:
    made = data_set(STUDY, SERIES, uid(1, 1, 1), pixels(1))
    made.add_new(0xFFFCFFFC, "OB", b"\1\2\3\4")
    file = part10(made)
    store.put(file)
    (entry,) = store.select(STUDY).entries
    _, after = store.do(store.web.backend.head(entry))
    assert after == file[-len(after) :]
    assert after.endswith(b"\1\2\3\4")


def test_an_edit_changes_its_attribute_and_nothing_else(store: Store) -> None:
    (first,) = store.put(slice_(1, ImageComments="kept"))
    (entry,) = store.select(STUDY).entries
    received, _ = store.do(store.web.backend.head(entry))
    store.edit(first.image_set, 1, {"Patient": {"DICOM": {"PatientName": "Xoe^Jane"}}})
    (entry,) = store.select(STUDY).entries
    edited, _ = store.do(store.web.backend.head(entry))
    assert edited == received.replace(b"Doe^Jane", b"Xoe^Jane")
    (old,) = store.select(STUDY, SERIES, version=1).entries
    assert store.do(store.web.backend.head(old))[0] == received


def test_implicit_vr_is_undone(store: Store) -> None:
    made = data_set(STUDY, SERIES, uid(1, 1, 1), pixels(1))
    store.put(part10(made, ImplicitVRLittleEndian))
    (entry,) = store.select(STUDY).entries
    assert entry.received_syntax == ImplicitVRLittleEndian
    before, _ = store.do(store.web.backend.head(entry))
    assert before.startswith(struct.pack("<HH2s", 0x0008, 0x0016, b"UI"))
    assert (frame(store, entry) == pixels(1)[0]).all()


def test_the_syntax_is_no_difference(store: Store) -> None:
    """Equal content is identical whatever syntax carried it."""
    made = data_set(STUDY, SERIES, uid(1, 1, 1), pixels(1))
    store.put(part10(made, ImplicitVRLittleEndian))
    (again,) = store.put(slice_(1))
    assert (again.version, again.identical) == (1, True)


# ---------------------------------------------------------------- selection


def test_select_at_each_level(store: Store) -> None:
    store.put(slice_(2), slice_(1), instance(STUDY, uid(1, 2), uid(1, 2, 1)))
    assert len(store.sops(STUDY)) == 3
    assert store.sops(STUDY, SERIES) == [uid(1, 1, 1), uid(1, 1, 2)]
    assert [e.sop_uid for e in store.select(STUDY, SERIES, uid(1, 1, 2)).entries] == [uid(1, 1, 2)]


def test_instances_come_by_number_then_uid_and_without_number_last(store: Store) -> None:
    numbers = {uid(1, 1, 4): 2, uid(1, 1, 3): 10, uid(1, 1, 2): None, uid(1, 1, 1): 10}
    store.put(*(instance(STUDY, SERIES, sop, InstanceNumber=number) for sop, number in numbers.items()))
    assert store.sops(STUDY) == [uid(1, 1, 4), uid(1, 1, 1), uid(1, 1, 3), uid(1, 1, 2)]


@pytest.mark.parametrize(
    "asked",
    [
        {"study": uid(9)},
        {"study": STUDY, "series": uid(9, 9)},
        {"study": STUDY, "series": SERIES, "sop": uid(9, 9, 9)},
        {"study": STUDY, "series": SERIES, "version": 2},
        {"study": STUDY, "series": SERIES, "version": 0},
        {"study": uid(9), "series": SERIES},
        {"study": STUDY, "image_set": ImageSetId("0" * 32)},
        {"study": STUDY, "as_of": datetime(2020, 1, 1, tzinfo=UTC)},
    ],
)
def test_what_is_not_there_is_not_found(store: Store, asked: dict[str, Any]) -> None:
    store.put(slice_(1))
    with pytest.raises(NotFound) as caught:
        store.select(**asked)
    assert type(caught.value) is NotFound


@pytest.mark.parametrize(
    "asked",
    [{"series": SERIES, "version": 1, "as_of": datetime(2030, 1, 1, tzinfo=UTC)}, {"version": 1}],
)
def test_what_contradicts_itself_is_refused(store: Store, asked: dict[str, Any]) -> None:
    store.put(slice_(1))
    with pytest.raises(InvalidInput):
        store.select(STUDY, **asked)


def test_an_unknown_data_store_is_not_found(store: Store) -> None:
    with pytest.raises(NotFound):
        store.do(store.web.backend.select(Selection("0" * 32, STUDY)))  # type: ignore[arg-type]


def test_what_was_deleted_is_gone_until_it_is_sent_again(store: Store) -> None:
    (first,) = store.put(slice_(1))
    store.delete(first.image_set)
    for series, image_set in ((None, None), (SERIES, None), (SERIES, first.image_set)):
        with pytest.raises(Gone):
            store.select(STUDY, series, image_set=image_set)
    for read in (store.image_set, store.document, store.versions):
        with pytest.raises(NotFound):
            read(first.image_set)
    (second,) = store.put(slice_(1))
    assert (second.version, second.identical, second.is_primary) == (1, False, True)
    assert second.image_set != first.image_set
    assert store.sops(STUDY) == [uid(1, 1, 1)]


def test_a_version_in_the_making_is_a_conflict(store: Store) -> None:
    (first,) = store.put(slice_(1))
    store.accept(first.image_set, 1, {"Patient": {"DICOM": {"PatientName": "New^Name"}}})
    with pytest.raises(Conflict):
        store.select(STUDY, SERIES, version=2)
    with pytest.raises(Conflict):
        store.document(first.image_set, 2)
    with pytest.raises(Conflict):
        store.document(first.image_set)
    (entry,) = store.select(STUDY).entries  # without a version: the last one with content
    assert entry.version == 1
    store.work()
    assert store.select(STUDY).entries[0].version == 2


def test_as_of(store: Store) -> None:
    (first,) = store.put(slice_(1))
    store.put(slice_(2))
    store.put(instance(STUDY, uid(1, 2), uid(1, 2, 1)))
    one, two = (store.image_set(first.image_set, version).at for version in (1, 2))
    assert one is not None
    assert two is not None
    assert store.sops(STUDY, as_of=two + timedelta(days=1)) == [uid(1, 1, 1), uid(1, 1, 2), uid(1, 2, 1)]
    if one < two:
        assert store.sops(STUDY, as_of=one) == [uid(1, 1, 1)]
    with pytest.raises(NotFound):
        store.select(STUDY, as_of=one - timedelta(milliseconds=1))


def test_the_validator_follows_what_is_selected(store: Store) -> None:
    (first,) = store.put(slice_(1), instance(STUDY, uid(1, 2), uid(1, 2, 1)))[:1]
    before, other = store.select(STUDY, SERIES).etag, store.select(STUDY, uid(1, 2)).etag
    assert store.select(STUDY, SERIES).etag == before
    whole = store.select(STUDY).etag
    store.put(slice_(2))
    after = store.select(STUDY, SERIES).etag
    assert after != before
    assert store.select(STUDY).etag != whole
    assert store.select(STUDY, uid(1, 2)).etag == other
    assert store.select(STUDY, SERIES, version=1).etag == before
    store.edit(first.image_set, 2, {"Patient": {"DICOM": {"PatientName": "New^Name"}}})
    assert store.select(STUDY, SERIES).etag not in (before, after)


# ---------------------------------------------------------------- documents


def test_dicom_json_names_bulk_data_absolutely(store: Store) -> None:
    made = data_set(STUDY, SERIES, uid(1, 1, 1), pixels(1))
    made.add_new(0x00420011, "OB", bytes((1 << 20) + 2))
    store.put(part10(made))
    (read,) = store.json(STUDY)
    at = f"{BASE}/studies/{STUDY}/series/{SERIES}/instances/{uid(1, 1, 1)}/bulkdata/"
    assert read["7FE00010"]["BulkDataURI"] == at + "7FE00010"
    assert read["00420011"]["BulkDataURI"] == at + "00420011"
    (entry,) = store.select(STUDY).entries
    assert store.do(store.web.backend.bulk(entry, "00420011")) == ("OB", bytes((1 << 20) + 2))
    with pytest.raises(NotFound):
        store.do(store.web.backend.bulk(entry, "00420012"))


def test_dicom_json_of_an_edited_instance_names_bulk_data_too(store: Store) -> None:
    (first,) = store.put(slice_(1))
    store.edit(first.image_set, 1, {"Patient": {"DICOM": {"PatientName": "New^Name"}}})
    (read,) = store.json(STUDY)
    assert value(read, "PatientName") == "New^Name"
    assert read["7FE00010"]["BulkDataURI"].startswith(f"{BASE}/studies/{STUDY}/")


def test_each_instance_keeps_what_it_was_sent_with(store: Store) -> None:
    store.put(slice_(1, SeriesTime="01"), slice_(2, SeriesTime="02"))
    assert [value(read, "SeriesTime") for read in store.json(STUDY)] == ["01", "02"]


def test_the_document_is_normalised(store: Store) -> None:
    (first, _) = store.put(slice_(1, SeriesTime="01"), slice_(2, SeriesTime="02", PatientSex=""))
    document = store.document(first.image_set)
    assert document["SchemaVersion"] == "1.1"
    assert (document["DatastoreID"], document["ImageSetID"]) == (store.datastore, first.image_set)
    series = document["Study"]["Series"][SERIES]
    assert series["DICOM"]["SeriesTime"] == "02"
    assert list(series["Instances"]) == [uid(1, 1, 1), uid(1, 1, 2)]
    node = series["Instances"][uid(1, 1, 1)]
    assert node["StoredTransferSyntaxUID"] == HTJ2K
    (told,) = node["ImageFrames"]
    raw = pixels(1)
    assert (told["MinPixelValue"], told["MaxPixelValue"]) == (int(np.min(raw)), int(np.max(raw)))
    assert told["FrameSizeInBytes"] == raw.nbytes
    assert told["PixelDataChecksumFromBaseToFullResolution"] == [
        {"Width": 8, "Height": 8, "Checksum": zlib.crc32(raw.tobytes())}
    ]


def test_documents_of_old_versions_stay_byte_for_byte(store: Store) -> None:
    (first,) = store.put(slice_(1), slice_(2))[:1]
    kept = [store.document_bytes(first.image_set)]
    steps: list[Any] = [
        lambda: store.put(slice_(3, PatientName="Other^Name")),
        lambda: store.edit(first.image_set, 2, {"Patient": {"DICOM": {"PatientName": "New^Name"}}}),
        lambda: store.edit(first.image_set, 3, _of_instance(uid(1, 1, 2), {"ImageComments": "edited"})),
        lambda: store.put(slice_(2, ImageComments="sent again")),
        lambda: store.edit(first.image_set, 5, revert=1),
        lambda: store.edit(first.image_set, 6, remove=_of_instance(uid(1, 1, 1))),
    ]
    for step in steps:
        step()
        kept.append(store.document_bytes(first.image_set))
    store.encode()
    assert [store.document_bytes(first.image_set, n) for n in range(1, 8)] == kept
    assert len(set(kept)) == 7 - 1  # the revert shows what version 1 showed
    assert kept[5] == kept[0]
    for body in kept:
        assert zlib.decompressobj(31).decompress(body) == gzip.decompress(body)  # one member


def _of_instance(sop: str, attributes: dict[str, Any] | None = None) -> dict[str, Any]:
    node = {"DICOM": attributes} if attributes is not None else {}
    return {"Study": {"Series": {SERIES: {"Instances": {sop: node}}}}}


# ---------------------------------------------------------------- frames


def test_frames_are_equal_before_and_after_encoding(store: Store) -> None:
    image = pixels(1, frames=3)
    (first,) = store.put(instance(STUDY, SERIES, uid(1, 1, 1), image))
    ids = _frame_ids(store, first.image_set)
    raw = [store.do(store.web.backend.get_frame(store.ref(first.image_set), each)) for each in ids]
    (entry,) = store.select(STUDY).entries
    assert store.do(store.web.backend.frame(entry, 1)).syntax == NATIVE
    before = [frame(store, entry, k) for k in range(3)]
    store.encode()
    assert store.do(store.web.backend.frame(entry, 1)).syntax == HTJ2K
    after = [frame(store, entry, k) for k in range(3)]
    for k in range(3):
        assert (before[k] == image[k]).all()
        assert (after[k] == image[k]).all()
        again = store.do(store.web.backend.get_frame(store.ref(first.image_set), ids[k]))
        assert (again.syntax, raw[k].syntax) == (HTJ2K, HTJ2K)
        assert (again.data, again.crc32, again.id) == (raw[k].data, raw[k].crc32, ids[k])


def test_the_start_of_an_encoded_frame_shows_it_small(store: Store) -> None:
    image = (np.add.outer(np.arange(400), np.arange(300)) + pixels(1, 1, 400, 300)[0] % 16).astype(np.uint16)
    store.put(instance(STUDY, SERIES, uid(1, 1, 1), image, BitsStored=12, HighBit=11))
    (entry,) = store.select(STUDY).entries
    assert store.do(store.web.backend.frame_start(entry, 0)) is None  # native: it has no low resolution
    store.encode()
    start, whole = (store.do(read(entry, 0)) for read in (store.web.backend.frame_start, store.web.backend.frame))
    assert start is not None
    assert entry.format is not None
    assert start.syntax == HTJ2K
    assert whole.data.startswith(start.data)
    assert len(start.data) < len(whole.data) / 2
    native, small = Codecs().reduced(start.data, entry.format, THUMBNAIL_SIDE)
    assert (small.rows, small.columns) == (200, 150)
    assert np.abs(np.frombuffer(native, np.uint16).reshape(200, 150).astype(int) - image[::2, ::2]).max() <= 24
    with pytest.raises(NotFound):
        store.do(store.web.backend.frame_start(entry, 1))
    store.put(instance(STUDY, SERIES, uid(1, 1, 2), image[:100, :100], InstanceNumber=2))
    store.encode()
    assert store.do(store.web.backend.frame_start(store.select(STUDY).entries[-1], 0)) is None  # small as it is


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16])
def test_minimum_and_maximum(store: Store, dtype: Any) -> None:
    limits = np.iinfo(dtype)
    image = np.array([[[limits.min, 1], [2, limits.max]]], dtype)
    (first,) = store.put(instance(STUDY, SERIES, uid(1, 1, 1), image))
    series = store.document(first.image_set)["Study"]["Series"][SERIES]
    (told,) = series["Instances"][uid(1, 1, 1)]["ImageFrames"]
    assert (told["MinPixelValue"], told["MaxPixelValue"]) == (limits.min, limits.max)


def test_big_endian_pixels_are_turned(store: Store) -> None:
    made = data_set(STUDY, SERIES, uid(1, 1, 1), pixels(1))
    file = part10(made)
    # The file's group 0002 says little endian: the same data set, written the other way round, is made by hand.
    made.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    made["PixelData"].value = pixels(1).byteswap().tobytes()
    target = BytesIO()
    dcmwrite(target, made, enforce_file_format=True, implicit_vr=False, little_endian=False)
    assert len(target.getvalue()) == len(file)
    store.put(target.getvalue())
    (entry,) = store.select(STUDY).entries
    assert (frame(store, entry) == pixels(1)[0]).all()
    store.encode()
    assert (frame(store, entry) == pixels(1)[0]).all()


def test_frame_ids_outlive_edits_and_imports(store: Store) -> None:
    (first,) = store.put(slice_(1))
    ids = _frame_ids(store, first.image_set)
    store.edit(first.image_set, 1, _of_instance(uid(1, 1, 1), {"ImageComments": "edited"}))
    store.put(slice_(2))
    assert _frame_ids(store, first.image_set)[0] == ids[0]
    replaced = store.put(instance(STUDY, SERIES, uid(1, 1, 1), pixels(77), InstanceNumber=1))
    assert replaced[0].version == 4
    old = store.do(store.web.backend.get_frame(store.ref(first.image_set, 1), ids[0]))
    assert old.crc32 == zlib.crc32(pixels(1).tobytes())


@pytest.mark.parametrize(
    "frame", ["0" * 32, "g" * 32, "", "zz", "0" * 24 + "-0000001", "é" * 32, "0" * 31, "0" * 33]
)
def test_a_frame_that_is_none_is_not_found(store: Store, frame: str) -> None:
    (first,) = store.put(slice_(1))
    with pytest.raises(NotFound):
        store.do(store.web.backend.get_frame(store.ref(first.image_set), FrameId(frame)))


def test_a_frame_of_another_image_set_is_not_found(store: Store) -> None:
    first, other = store.put(slice_(1), instance(STUDY, uid(1, 2), uid(1, 2, 1), pixels(2)))
    (frame,) = _frame_ids(store, first.image_set)
    with pytest.raises(NotFound):
        store.do(store.web.backend.get_frame(store.ref(other.image_set), frame))
    beyond = FrameId(frame[:24] + "00000001")
    with pytest.raises(NotFound):
        store.do(store.web.backend.get_frame(store.ref(first.image_set), beyond))
    (entry,) = store.select(STUDY, SERIES).entries
    for index in (-1, 1):
        with pytest.raises(NotFound):
            store.do(store.web.backend.frame(entry, index))


def _frame_ids(store: Store, image_set: ImageSetId | None) -> list[FrameId]:
    (series,) = store.document(image_set)["Study"]["Series"].values()
    return [FrameId(told["ID"]) for node in series["Instances"].values() for told in node["ImageFrames"]]


# ---------------------------------------------------------------- damage


@pytest.fixture
def damage(own_store: Store) -> Callable[[str, int], None]:
    """Flips one byte of a stored extent."""

    def flip(blob: str, offset: int) -> None:
        path = own_store.data / blob
        data = bytearray(path.read_bytes())
        data[offset] ^= 0xFF
        path.write_bytes(data)
        for process in (own_store.web, own_store.worker):
            process.worker.blobs.close()  # type: ignore[attr-defined]

    return flip


def _place(store: Store) -> tuple[str, int]:
    ((name, offset),) = store.rows("SELECT b.name, x.off FROM pixel x JOIN blob b ON b.pk=x.blob_pk")
    return name, offset


@pytest.mark.parametrize("encoded", [False, True])
def test_a_damaged_frame_is_corrupt(own_store: Store, damage: Any, encoded: bool) -> None:
    store = own_store
    (first,) = store.put(slice_(1))
    if encoded:
        store.encode()
    (frame,) = _frame_ids(store, first.image_set)
    name, offset = _place(store)
    assert name.startswith("frames/" if encoded else "spool/")
    damage(name, offset + 20)
    (entry,) = store.select(STUDY).entries
    with pytest.raises(Corrupt):
        store.do(store.web.backend.frame(entry, 0))
    with pytest.raises(Corrupt):
        store.do(store.web.backend.get_frame(store.ref(first.image_set), frame))


def test_the_encoder_does_not_launder_damage(own_store: Store, damage: Any) -> None:
    """Nor does damage of one instance keep the others from being encoded."""
    store = own_store
    store.put(slice_(1))
    name, offset = _place(store)
    damage(name, offset + 20)
    store.put(slice_(2))
    store.encode()
    one, two = store.select(STUDY).entries
    with pytest.raises(Corrupt):
        store.do(store.web.backend.frame(one, 0))
    assert store.do(store.web.backend.frame(two, 0)).syntax == HTJ2K
    assert store.rows("SELECT state FROM pixel ORDER BY pk") == [("damaged",), ("encoded",)]


def test_what_cannot_be_encoded_stays_native_as_a_whole(own_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store = own_store
    image = pixels(1, frames=3)
    (first,) = store.put(instance(STUDY, SERIES, uid(1, 1, 1), image))
    codec = store.worker.worker.encoder._codec
    encode = type(codec).encode

    def failing(self: Any, native: Any, format: PixelFormat, syntax: str) -> bytes:
        if bytes(native) == image[2].tobytes():
            raise NotAcceptable("not this one")
        return encode(self, native, format, syntax)

    monkeypatch.setattr(type(codec), "encode", failing)
    store.encode()
    (entry,) = store.select(STUDY).entries
    ids = _frame_ids(store, first.image_set)
    for k in range(3):
        read = store.do(store.web.backend.frame(entry, k))
        assert (read.syntax, read.data) == (NATIVE, image[k].tobytes())
    assert store.do(store.web.backend.get_frame(store.ref(first.image_set), ids[0])).syntax == HTJ2K
    last = store.do(store.web.backend.get_frame(store.ref(first.image_set), ids[2]))
    assert (last.syntax, last.data) == (NATIVE, image[2].tobytes())
    assert not list(store.rows("SELECT 1 FROM pixel x JOIN blob b ON b.pk=x.blob_pk WHERE b.name LIKE 'spool/%'"))


def test_damaged_metadata_is_corrupt(own_store: Store, damage: Any) -> None:
    store = own_store
    store.put(slice_(1, ImageComments="comment " * 20))
    ((name, extents),) = store.rows("SELECT b.name, r.json FROM record r JOIN blob b ON b.pk=r.blob_pk")
    offset, length = struct.unpack_from("<QI", extents)
    damage(name, offset + length // 2)
    entries = store.select(STUDY).entries
    with pytest.raises(Corrupt):
        store.do(store.web.backend.metadata(entries, BASE, gzip=False))


def test_a_missing_pack_is_corrupt(own_store: Store) -> None:
    store = own_store
    (first,) = store.put(slice_(1))
    for pack in Path(store.data / "pack").iterdir():
        pack.unlink()
    (entry,) = store.select(STUDY).entries
    with pytest.raises(Corrupt):
        store.do(store.web.backend.head(entry))
    with pytest.raises(Corrupt):
        store.document(first.image_set)


# ---------------------------------------------------------------- many at once, and what is derived


def test_several_at_once_are_what_each_is_alone(store: Store) -> None:
    """Raw and encoded, edited and not, in packs of their own: in the order asked for."""
    for number in (1, 2, 3):
        store.put(slice_(number))
    store.encode()
    (last,) = store.put(slice_(4), source="stow")
    image_set = store.image_set(last.image_set)
    store.edit(last.image_set, image_set.version, {"Patient": {"DICOM": {"PatientName": "Xoe^Jane"}}})
    backend = store.web.backend
    entries = list(store.select(STUDY).entries)
    assert len(entries) == 4
    for asked in (entries, entries[::-1], [*entries, entries[0]], entries[2:3], []):
        assert backend.heads(asked) == [store.do(backend.head(entry)) for entry in asked]
        frames = backend.first_frames(asked)
        assert frames == [store.do(backend.frame(entry, 0)) for entry in asked]
        assert backend.first_lengths(asked) == [(frame.syntax, len(frame.data)) for frame in frames]
    assert {frame.syntax for frame in backend.first_frames(entries)} == {HTJ2K, NATIVE}
    assert b"Xoe^Jane" in backend.heads(entries)[0][0]


async def _files(retrieve: Retrieve, wanted: Sequence[Wanted]) -> list[bytes]:
    async with aclosing(retrieve.instances(wanted)) as batches:
        return [b"".join(file.start) async for batch in batches for file in batch]


def test_a_file_is_what_it_was_measured_to_be(store: Store, decoder: DecodePool) -> None:
    """Edited and not, frames as stored and decoded; a frame that waits for its encoding has no length as encoded."""
    for number in (1, 2, 3):
        (last,) = store.put(slice_(number))
    image_set = store.image_set(last.image_set)
    store.edit(last.image_set, image_set.version, {"Patient": {"DICOM": {"PatientName": "Xoe^Jane^Much longer"}}})
    with ThreadPoolExecutor(2) as threads:
        retrieve = Retrieve(store.web.backend, Codecs(), decoder.decode, threads)

        def asked(syntax: str) -> list[Wanted]:
            return [Wanted(entry, syntax) for entry in store.select(STUDY).entries]

        assert store.do(retrieve.measured(asked(HTJ2K))) is None
        waiting = store.do(retrieve.measured(asked(NATIVE)))
        store.encode()
        for measured in (
            waiting,  # what was measured before the encoder came
            store.do(retrieve.measured(asked(NATIVE))),
            store.do(retrieve.measured(asked(HTJ2K))),
        ):
            assert measured is not None
            files = store.do(_files(retrieve, measured))
            assert files == store.do(_files(retrieve, asked(measured[0].syntax)))
            lengths = [each.envelope.length for each in measured if each.envelope]
            assert lengths == [len(file) for file in files]
            assert all(b"Xoe^Jane^Much longer" in file for file in files)


def derived_files(store: Store) -> set[str]:
    return {path.name.partition("_")[0] for path in (store.data / "cache").glob("??/*")}


async def _native(retrieve: Retrieve, entry: Entry) -> bytes:
    """The only file of an instance in Explicit VR LE."""
    async with aclosing(retrieve.instances([Wanted(entry, NATIVE)])) as batches:
        return b"".join([b"".join(file.start) async for batch in batches for file in batch])


def test_a_deleted_image_set_leaves_nothing_derived(
    own_store: Store, decoder: DecodePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = own_store
    (doomed,) = store.put(slice_(1), slice_(2))[:1]
    store.put(instance(uid(2), uid(2, 1), uid(2, 1, 1), pixels(9)))
    store.encode()
    derived = DerivedFolder(store.data / "cache", 1 << 30)
    with ThreadPoolExecutor(2) as threads:
        retrieve = Retrieve(store.web.backend, Codecs(), decoder.decode, threads, derived=derived)
        gone = store.select(STUDY).entries
        (stays,) = store.select(uid(2)).entries
        for number, entry in enumerate(gone, 1):
            assert store.do(retrieve.frame(entry, 0, NATIVE)) == pixels(number).tobytes()
        assert pixels(9).tobytes() in store.do(_native(retrieve, stays))
        late = DerivedFolder(store.data / "cache", 1 << 30)  # of a process that is slow to write
        derived.close()
        assert derived_files(store) == {entry.digest for entry in (*gone, stays)}
        store.delete(doomed.image_set)
        sweeper = store.worker.worker.sweeper
        sweeper.sweep()
        assert derived_files(store) == {entry.digest for entry in (*gone, stays)}, "it can still be restored"
        monkeypatch.setattr(sweeper, "_retention_ms", -1000)
        sweeper.sweep()
        assert derived_files(store) == {stays.digest}
        late.put(gone[0].digest, "late", 0, b"of a patient who is deleted")
        late.close()
        assert gone[0].digest in derived_files(store)
        for _ in range(16):
            sweeper.sweep()
        assert derived_files(store) == {stays.digest}
        assert pixels(9).tobytes() in store.do(_native(retrieve, stays))
