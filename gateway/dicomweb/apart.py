"""Metadata and bulk data that arrive apart, put together to instances (PS3.18 §10.5.1.4, §10.5.2; STOW-03..05).

Metadata, which come first, are held in memory; bulk data wait in one file without a name until the body has ended.
"""

import asyncio
import errno
import json
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urljoin

from ..domain.coded_image import HEADER_BYTES, picture_attributes, read_header, read_picture
from ..domain.errors import InvalidInput, NotAcceptable, OutOfStorage, TooLarge
from ..domain.explicit import Elsewhere, element_head, explicit
from ..domain.header import write_meta
from ..domain.native_model import from_xml
from ..domain.pixels import PIXEL_DATA, PixelFormat
from ..domain.syntaxes import EXPLICIT_LE, IMPLICIT_LE, OCTETS, by_media_type, by_uid
from ..ports import Buffer
from ..services.retrieve import DecodeForeign
from ..services.store import LARGE_WRITE, Part
from .params import DICOM_JSON, DICOM_XML

MAX_METADATA_BYTES: Final = 64 << 20
"""Of one request."""
_PICTURE_BYTES: Final = 256 << 20
"""Of a PNG or GIF, which are decoded whole."""
_DECODED: Final = frozenset({"image/png", "image/gif"})
_READ_BYTES: Final = 1 << 20
_PIXELS: Final = f"{PIXEL_DATA:08X}"
_NATIVE: Final = frozenset({EXPLICIT_LE, IMPLICIT_LE})
_IMAGE_PIXEL: Final = frozenset(f"0028{number:04d}" for number in (2, 4, 10, 11, 100, 101, 102, 103))
_MAX_UID: Final = 64
_UNDEFINED_END: Final = b"\xfe\xff\xdd\xe0\0\0\0\0"


@dataclass(slots=True)
class _Bulk:
    """One part of bulk data, in the file."""

    name: str
    media_type: str
    syntax: str | None
    offset: int
    length: int = 0
    used: bool = False


@dataclass(slots=True)
class _Metadata:
    name: str
    media_type: str
    text: bytearray = field(default_factory=bytearray)


class Apart:
    """Takes the parts of one request, then gives the instances. A context manager: it holds a file."""

    def __init__(self, url: str, decode: DecodeForeign, folder: Path | None) -> None:
        """`url` is that of the request: what relative Content-Locations and BulkDataURIs are relative to.

        `decode` takes the media type of a PNG or GIF in place of a transfer syntax. The file is in `folder`, or where
        the system has such ones. Raises OutOfStorage.
        """
        self._url = url
        self._decode = decode
        with _room():
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  closed by __exit__
        self._size = 0
        self._metadata: list[_Metadata] = []
        self._metadata_size = 0
        self._bulk: dict[str, list[_Bulk]] = {}
        self._current: _Metadata | _Bulk | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def begin(self, name: str, media_type: str, parameters: Mapping[str, str], location: str | None) -> None:
        """A part begins: metadata by its media type, else bulk data. Raises InvalidInput where that has no place."""
        if media_type in (DICOM_JSON, DICOM_XML):
            self._current = _Metadata(name, media_type)
            self._metadata.append(self._current)
            return
        if not location:
            raise InvalidInput(f"{name} is bulk data and has no Content-Location, which a BulkDataURI would name.")
        self._current = _Bulk(name, media_type or OCTETS, parameters.get("transfer-syntax"), self._size)
        self._bulk.setdefault(self._place(location), []).append(self._current)

    async def write(self, data: Buffer) -> None:
        """The next bytes of the current part. Raises TooLarge, OutOfStorage."""
        current = self._current
        if isinstance(current, _Metadata):
            self._metadata_size += len(data)
            if self._metadata_size > MAX_METADATA_BYTES:
                raise TooLarge(f"The metadata are longer than {MAX_METADATA_BYTES} bytes: send large values apart.")
            current.text += data
        elif current is not None:
            current.length += len(data)
            self._size += len(data)
            with _room():
                if len(data) >= LARGE_WRITE:
                    await asyncio.to_thread(self._file.write, data)
                else:
                    self._file.write(data)

    async def instances(self) -> AsyncIterator[Part | Buffer]:
        """Each data set as a part with its Part 10 file; what cannot be made one, as a part that is refused.

        Raises InvalidInput where JSON cannot be read: nothing then tells which data sets it holds.
        """
        with _room():
            self._file.flush()
        for part in self._metadata:
            for name, document in await asyncio.to_thread(self._documents, part):
                if isinstance(document, str):
                    yield Part(name, document)
                    continue
                told = [_first(document, tag) for tag in ("00080016", "00080018")]
                try:
                    pieces = await asyncio.to_thread(self._instance, document)
                except InvalidInput as fault:
                    yield Part(name, fault.detail, told[0], told[1])
                    continue
                yield Part(name)
                for piece in pieces:
                    if isinstance(piece, bytes):
                        yield piece
                    else:
                        async for some in self._read(piece):
                            yield some
        for bulk in self._all_bulk():
            if not bulk.used:
                yield Part(bulk.name, "No BulkDataURI names its Content-Location.")

    def _documents(self, part: _Metadata) -> list[tuple[str, dict[str, Any] | str]]:
        """The data sets of a part, each with its name; a text says why one cannot be read. *Blocking.*"""
        if part.media_type == DICOM_XML:
            try:
                return [(part.name, from_xml(bytes(part.text)))]
            except InvalidInput as fault:
                return [(part.name, fault.detail)]
        try:
            # Numbers stay the text that they are: a float has other digits. NaN is no JSON, and many write it.
            # Decoded here: given bytes, it would take half a character for one.
            text = str(part.text, "utf-8-sig")
            read = json.loads(text, parse_float=str, parse_int=str, parse_constant=str)
            if b"\\u" in part.text:  # half a character can be escaped, and written nowhere
                json.dumps(read, ensure_ascii=False).encode()
        except (ValueError, RecursionError):
            raise InvalidInput(f"{part.name} is no JSON.") from None
        read = read if isinstance(read, list) else [read]
        if not all(isinstance(one, dict) for one in read):
            raise InvalidInput(f"{part.name}: DICOM JSON is an array of data sets, which are objects.")
        found: list[tuple[str, dict[str, Any] | str]] = []
        for number, document in enumerate(read, 1):
            name = f"{part.name}, data set {number}" if len(read) > 1 else part.name
            found.append((name, {tag.upper(): element for tag, element in document.items()}))
        return found

    def _instance(self, document: Mapping[str, Any]) -> list[bytes | _Bulk]:
        """A Part 10 file in pieces. *Blocking.*"""
        sop_class, sop_uid = _first(document, "00080016"), _first(document, "00080018")
        for keyword, uid in (("SOPClassUID", sop_class), ("SOPInstanceUID", sop_uid)):
            if not uid:
                raise InvalidInput(f"DICOM attribute {keyword} does not exist")
            if len(uid) > _MAX_UID:
                raise InvalidInput(f"DICOM attribute {keyword} is longer than {_MAX_UID} characters")
        element = document.get(_PIXELS)
        uri = element.get("BulkDataURI") if isinstance(element, Mapping) else None
        if not isinstance(uri, str):
            meta = write_meta(sop_class or "", sop_uid or "", EXPLICIT_LE)
            return [meta, *self._placed(explicit(document, self._length))]
        syntax, derived, pixels = self._pixels(document, self._named(uri))
        before = {tag: element for tag, element in document.items() if tag < _PIXELS}
        # What is decoded here is as the image tells; of what stays as it came, the metadata may know better.
        before = {**before, **derived} if derived and syntax == EXPLICIT_LE else {**derived, **before}
        after = {tag: element for tag, element in document.items() if tag > _PIXELS}
        return [
            write_meta(sop_class or "", sop_uid or "", syntax),
            *self._placed(explicit(before, self._length)),
            *pixels,
            *self._placed(explicit(after, self._length, follows=True)),
        ]

    def _pixels(
        self, document: Mapping[str, Any], parts: Sequence[_Bulk]
    ) -> tuple[str, Mapping[str, Any], list[bytes | _Bulk]]:
        """Transfer syntax, attributes that the images tell, and the element of Pixel Data."""
        kinds = {(part.media_type, part.syntax) for part in parts}
        if len(kinds) > 1:
            raise InvalidInput("The frames of Pixel Data have several media types or transfer syntaxes.")
        ((kind, syntax),) = kinds
        if kind == OCTETS and (syntax is None or syntax in _NATIVE):
            length = sum(part.length for part in parts)
            words = (_first(document, "00280100") or "16") != "8"
            head = element_head(PIXEL_DATA, b"OW" if words else b"OB", length + length % 2)
            return EXPLICIT_LE, {}, [head, *parts, b"\0" * (length % 2)]
        if kind in _DECODED:
            return self._decoded(kind, parts)
        allowed = by_media_type(kind)
        if kind != OCTETS and not allowed:
            raise InvalidInput(
                "The media type of Pixel Data is not taken: send application/octet-stream, image/jpeg, image/jls, "
                "image/jp2, image/jphc, image/dicom-rle, image/png, image/gif, or an instance as application/dicom."
            )
        row = by_uid(syntax) if syntax else None
        derived: dict[str, Any] = {}
        is_described = document.keys() >= _IMAGE_PIXEL or (row is not None and row.video)
        if syntax is None or not is_described:
            image = read_header(self._start(parts[0]))
            row = by_uid(image.syntax) if syntax is None else row
            if not is_described:
                frames = {"00280008": {"vr": "IS", "Value": [str(len(parts))]}} if len(parts) > 1 else {}
                derived = {**frames, **image.attributes()}
        if row is None or not row.encapsulated or (kind != OCTETS and row not in allowed):
            raise InvalidInput("The transfer syntax of Pixel Data is not one that its media type may have.")
        told = _first({**derived, **document}, "00280008") or "1"
        if told != str(len(parts)) and not row.video:
            raise InvalidInput(f"Number of Frames is not the number of parts of Pixel Data, which is {len(parts)}.")
        pieces: list[bytes | _Bulk] = [element_head(PIXEL_DATA, b"OB", None), _item(0)]
        for part in parts:
            pieces += (_item(part.length + part.length % 2), part, b"\0" * (part.length % 2))
        return row.uid, derived, [*pieces, _UNDEFINED_END]

    def _decoded(self, kind: str, parts: Sequence[_Bulk]) -> tuple[str, Mapping[str, Any], list[bytes | _Bulk]]:
        """Images that DICOM has no transfer syntax for, as native samples. *Blocking.*"""
        formats: list[PixelFormat] = []
        made: list[bytes | _Bulk] = []
        length = 0
        for part in parts:
            if part.length > _PICTURE_BYTES:
                raise InvalidInput(f"A PNG or GIF image of more than {_PICTURE_BYTES} bytes is not taken.")
            self._file.seek(part.offset)
            data = self._file.read(part.length)
            format = read_picture(data)
            together = replace(format, rows=format.rows * format.frames, frames=1)
            if not 0 < together.frame_bytes <= _PICTURE_BYTES:
                raise InvalidInput(f"A PNG or GIF image of more than {_PICTURE_BYTES} bytes decoded is not taken.")
            try:
                samples = self._decode(data, kind, together)
            except NotAcceptable as fault:
                raise InvalidInput(f"An image of Pixel Data cannot be read. {fault.detail}") from None
            # Back into the file: a study of them would not fit into memory.
            with _room():
                self._file.seek(self._size)
                self._file.write(samples)
                self._file.flush()
            made.append(_Bulk(part.name, OCTETS, None, self._size, len(samples)))
            self._size += len(samples)
            length += len(samples)
            formats.append(format)
        if len({replace(one, frames=1) for one in formats}) > 1:
            raise InvalidInput("The images of Pixel Data are of several sizes or kinds.")
        format = replace(formats[0], frames=sum(one.frames for one in formats))
        head = element_head(PIXEL_DATA, b"OW" if format.bits_allocated > 8 else b"OB", length + length % 2)
        return EXPLICIT_LE, picture_attributes(format), [head, *made, b"\0" * (length % 2)]

    def _placed(self, pieces: Sequence[bytes | Elsewhere]) -> Iterator[bytes | _Bulk]:
        for piece in pieces:
            if isinstance(piece, bytes):
                yield piece
            else:
                yield from self._named(piece.uri)

    def _length(self, uri: str) -> int:
        return sum(part.length for part in self._named(uri))

    def _named(self, uri: str) -> Sequence[_Bulk]:
        """The parts that a BulkDataURI names: those at that place, or its frames. Raises InvalidInput."""
        place = self._place(uri)
        found = self._bulk.get(place)
        if found is None:
            found = []
            while frame := self._bulk.get(f"{place}/frames/{len(found) + 1}"):
                found += frame
        if not found:
            raise InvalidInput("A BulkDataURI names no part: none has it as its Content-Location.")
        for part in found:
            part.used = True
        return found

    def _place(self, uri: str) -> str:
        try:
            return urljoin(self._url, uri)
        except ValueError:
            raise InvalidInput("A Content-Location or BulkDataURI is no URI.") from None

    def _all_bulk(self) -> Iterator[_Bulk]:
        for parts in self._bulk.values():
            yield from parts

    def _start(self, bulk: _Bulk) -> bytes:
        """*Blocking.*"""
        self._file.seek(bulk.offset)
        return self._file.read(min(bulk.length, HEADER_BYTES))

    async def _read(self, bulk: _Bulk) -> AsyncIterator[bytes]:
        at, end = bulk.offset, bulk.offset + bulk.length
        while at < end:
            self._file.seek(at)
            some = await asyncio.to_thread(self._file.read, min(_READ_BYTES, end - at))
            at += len(some)
            yield some


@contextmanager
def _room() -> Iterator[None]:
    """A full disk in the words of the domain. Raises OutOfStorage."""
    try:
        yield
    except OSError as fault:
        if fault.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OutOfStorage("There is no room for bulk data until their metadata have come.") from None


def _item(length: int) -> bytes:
    if length > 0xFFFFFFFE:
        raise InvalidInput("A frame is longer than 4 GiB.")
    return b"\xfe\xff\x00\xe0" + length.to_bytes(4, "little")


def _first(document: Mapping[str, Any], tag: str) -> str | None:
    """The first value of an attribute as text, where it has one."""
    element = document.get(tag)
    values = element.get("Value") if isinstance(element, Mapping) else None
    return str(values[0]) if isinstance(values, list) and values and isinstance(values[0], str | int) else None

