"""Whether an instance came back as it was sent: attributes by meaning, pixels by their samples."""

import hashlib
import math
import re
import struct
from collections.abc import Collection, Iterator, Sequence
from functools import cache
from typing import Any

import imagecodecs
import numpy as np
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence as Items

from tests.corpus_doors.samples import Truth

_PIXELS = frozenset((0x7FE00001, 0x7FE00002, 0x7FE00003, 0x7FE00008, 0x7FE00009, 0x7FE00010))
_OF_DECODING = frozenset((0x00280004, 0x00280006))
_TRAILING_PADDING = 0xFFFCFFFC


def differences(sent: Dataset, returned: Dataset, but: Collection[int] = ()) -> Iterator[str]:
    """Every attribute that differs beyond what docs/adr/0005 allows, as its path and both values; without `but`."""
    yield from _differences(sent, returned, "", _OF_DECODING | set(but))


def _differences(sent: Dataset, returned: Dataset, path: str, allowed: Collection[int] = frozenset()) -> Iterator[str]:
    one, other = (
        {
            int(tag)
            for tag in data_set.keys()  # noqa: SIM118 - a Dataset iterates over its elements
            if tag.element != 0 and tag.group > 2 and tag != _TRAILING_PADDING and (path or int(tag) not in _PIXELS)
        }
        for data_set in (sent, returned)
    )
    for tag in sorted((one ^ other).difference(allowed)):
        held = sent if tag in one else returned
        yield f"{path}{tag:08X} only {'sent' if tag in one else 'returned'}: {_shown(_element(held, tag))}"
    for tag in sorted((one & other).difference(allowed)):
        if _same_bytes(sent.get_item(tag), returned.get_item(tag)):
            continue
        a, b = _element(sent, tag), _element(returned, tag)
        if a is None or b is None:
            same = a is b or sent.get_item(tag).value == returned.get_item(tag).value
            if not same:
                yield f"{path}{tag:08X}: unreadable on one side, and not the same bytes"
        elif isinstance(a.value, Items) and isinstance(b.value, Items):
            if len(a.value) != len(b.value):
                yield f"{path}{tag:08X}: {len(a.value)} items sent, {len(b.value)} returned"
            for number, (item, back) in enumerate(zip(a.value, b.value, strict=False)):
                yield from _differences(item, back, f"{path}{tag:08X}[{number}].")
        elif not _equal(a.value, b.value) and not _equal_words(a, b, sent) and not _equal_unknown(a, b):
            yield f"{path}{tag:08X}: {_shown(a)} sent, {_shown(b)} returned"


def _same_bytes(a: Any, b: Any) -> bool:
    """Whether two elements that nothing has converted yet are the same, which is quickly seen."""
    if not isinstance(a, RawDataElement) or not isinstance(b, RawDataElement):
        return False
    return bool(a.VR == b.VR and a.value == b.value and a.is_little_endian == b.is_little_endian)


def _equal_words(a: DataElement, b: DataElement, sent: Dataset) -> bool:
    """Words out of a big-endian data set, which pydicom leaves as they stood."""
    if a.VR != "OW" or sent.original_encoding[1] is not False or len(a.value) != len(b.value):
        return False
    words = f"{len(a.value) // 2}H"
    return struct.unpack(f">{words}", a.value) == struct.unpack(f"<{words}", b.value)


def _equal_unknown(a: DataElement, b: DataElement) -> bool:
    """A private value that one data set has as UN, because it came in Implicit VR, and the other with its VR."""
    if (a.VR == "UN") == (b.VR == "UN") or not a.tag.is_private:
        return False
    known, unknown = (b, a) if a.VR == "UN" else (a, b)
    stream = DicomBytesIO()
    stream.is_little_endian = stream.is_implicit_VR = True
    write_data_element(stream, known)
    return bool(stream.getvalue()[8:] == unknown.value)


def _element(data_set: Dataset, tag: int) -> DataElement | None:
    try:
        return data_set[tag]
    except Exception:
        return None


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, MultiValue | list) or isinstance(b, MultiValue | list):
        one, other = (list(v) if isinstance(v, MultiValue | list) else [v] for v in (a, b))
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(a, bytes) and isinstance(b, bytes):
        return a == b or (abs(len(a) - len(b)) == 1 and a.rstrip(b"\0 ") == b.rstrip(b"\0 "))
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a):
        return math.isnan(b)
    if a is None or b is None or a == "" or b == "":
        return (a or "") == (b or "")
    return a == b or str(a).rstrip(" \0") == str(b).rstrip(" \0")


def _shown(element: DataElement | None) -> str:
    return "unreadable" if element is None else f"{element.VR} {element.value!r:.60}"


def parts(content_type: str, body: bytes) -> list[tuple[str, bytes]]:
    """The parts of a multipart body: Content-Type and payload."""
    found = re.search(r'boundary="?([^";]+)', content_type)
    assert found, content_type
    pieces = (b"\r\n" + body).split(b"\r\n--" + found[1].encode())
    assert pieces[0] == b""
    assert pieces[-1].startswith(b"--")
    made = []
    for piece in pieces[1:-1]:
        head, _, payload = piece.partition(b"\r\n\r\n")
        kind = re.search(rb"(?i)content-type: *([^\r\n]+)", head)
        made.append((kind[1].decode() if kind else "", payload))
    return made


def wrong_pixels(frames: Sequence[bytes], truth: Truth, samples_in_a_frame: int, bits_allocated: int) -> str | None:
    """What is wrong with native frames; None when they are the true ones bit by bit."""
    if bits_allocated == 1:
        frames = [_unpacked(frame, samples_in_a_frame) for frame in frames]
    wrong = []
    for number, digest in enumerate(truth.each_frame, 1):
        if digest == "...":
            break
        if number > len(frames) or hashlib.sha256(frames[number - 1]).hexdigest() != digest:
            wrong.append(number)
    if wrong or hashlib.sha256(b"".join(frames)).hexdigest() != truth.all_frames:
        return f"{len(frames)} frames of {len(frames[0])} bytes are not the true ones: {wrong[:5]}"
    return None


def _unpacked(frame: bytes, samples: int) -> bytes:
    return np.unpackbits(np.frombuffer(frame, np.uint8), bitorder="little")[:samples].tobytes()


@cache
def htj2k_decoded(codestream: bytes, bits_allocated: int) -> bytes:
    """The samples of a codestream in cells of Bits Allocated, by OpenJPEG; by OpenJPH beyond its 31 bits."""
    decode = imagecodecs.jpeg2k_decode if bits_allocated <= 16 else imagecodecs.htj2k_decode
    array = decode(codestream)
    kind = "i" if array.dtype.kind == "i" else "u"
    return array.astype(f"<{kind}{bits_allocated // 8}").tobytes()
