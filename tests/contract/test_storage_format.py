"""Data stores of the two lossless formats: what is stored, what is told, and that decoding gives what was sent."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file

from adapters.codecs.registry import Codecs
from gateway.domain.errors import InvalidInput
from gateway.domain.syntaxes import EXPLICIT_LE, JPEG_2000_LOSSLESS, LOSSLESS, decoded
from tests.contract.embedded import Store
from tests.contract.test_edits import STUDY, slice_
from tests.makers import instance, uid

# A file that pydicom brings -> the one whose native samples it has.
FILES = {
    "CT_small.dcm": "CT_small.dcm",  # signed, 16 bits
    "MR_small_RLE.dcm": "MR_small.dcm",
    "MR_small_jp2klossless.dcm": "MR_small.dcm",  # JPEG 2000 already
    "SC_rgb_rle_2frame.dcm": "SC_rgb_rle_2frame.dcm",
    "examples_rgb_color.dcm": "examples_rgb_color.dcm",
    "rtdose.dcm": "rtdose.dcm",  # 32 bits
}


@pytest.fixture(params=sorted(LOSSLESS))
def formatted(store: Store, request: pytest.FixtureRequest) -> tuple[Store, str]:
    """An empty data store of each format, and the syntax of what it transcodes."""
    made = store.do(store.web.backend.create_datastore("formatted", storage_format=request.param))
    assert store.do(store.web.backend.get_datastore(made.id)).storage_format == request.param
    return replace(store, datastore=made.id), LOSSLESS[request.param]


@pytest.mark.parametrize("name", FILES)
def test_every_frame_is_stored_lossless_in_the_format_of_its_data_store(
    formatted: tuple[Store, str], name: str
) -> None:
    store, syntax = formatted
    path = Path(str(get_testdata_file(name)))
    sent = dcmread(path)
    (outcome,) = store.put(path.read_bytes())
    assert outcome.failure is None
    expected = syntax
    if sent.BitsAllocated == 32 and syntax == JPEG_2000_LOSSLESS:
        expected = EXPLICIT_LE
    (node,) = _instances(store, outcome.image_set).values()
    assert node["StoredTransferSyntaxUID"] == expected
    (entry,) = store.select(sent.StudyInstanceUID).entries
    assert entry.stored_syntax == expected
    assert entry.format is not None
    pixels = dcmread(str(get_testdata_file(FILES[name]))).pixel_array
    for encoded in (False, True):  # while it waits for its encoding, and after it
        if encoded:
            store.encode()
        frames = []
        for position, told in enumerate(node["ImageFrames"]):
            frame = store.do(store.web.backend.get_frame(store.ref(outcome.image_set), told["ID"]))
            assert frame.syntax == expected
            native = Codecs().decode(frame.data, frame.syntax, decoded(entry.format, frame.syntax))
            frames.append(native)
            if encoded:
                assert store.do(store.web.backend.frame(entry, position)).syntax == expected
        assert np.array_equal(np.frombuffer(b"".join(frames), pixels.dtype).reshape(pixels.shape), pixels)


def _instances(store: Store, image_set: Any) -> dict[str, Any]:
    (series,) = store.document(image_set)["Study"]["Series"].values()
    return series["Instances"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2"])
def test_samples_beyond_their_bits_stored_are_kept_too(formatted: tuple[Store, str], dtype: str) -> None:
    store, syntax = formatted
    limits = np.iinfo(dtype)
    image = np.array([[limits.min, limits.max], [0, 1]] * 16, dtype).repeat(16, axis=1)
    bits = limits.bits - 4
    file = instance(STUDY, uid(1, 1), uid(1, 1, 1), image, BitsStored=bits, HighBit=bits - 1)
    (outcome,) = store.put(file)
    store.encode()
    (node,) = _instances(store, outcome.image_set).values()
    frame = store.do(store.web.backend.get_frame(store.ref(outcome.image_set), node["ImageFrames"][0]["ID"]))
    (entry,) = store.select(STUDY).entries
    assert frame.syntax == syntax
    assert entry.format is not None
    assert Codecs().decode(frame.data, syntax, entry.format) == image.tobytes()


def test_an_unknown_format_is_refused_and_the_two_do_not_mix(store: Store) -> None:
    with pytest.raises(InvalidInput, match="HTJ2K or JPEG_2000_LOSSLESS"):
        store.do(store.web.backend.create_datastore("x", storage_format="JPEG_XL"))
    store.put(slice_(1))
    other = store.do(store.web.backend.create_datastore("y", storage_format="JPEG_2000_LOSSLESS"))
    second = replace(store, datastore=other.id)
    second.put(slice_(1))
    syntaxes = [one.select(STUDY).entries[0].stored_syntax for one in (store, second)]
    assert syntaxes == [LOSSLESS["HTJ2K"], LOSSLESS["JPEG_2000_LOSSLESS"]]
