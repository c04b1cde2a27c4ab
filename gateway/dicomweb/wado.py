"""WADO-RS: instances, metadata, frames and bulk data (PS3.18 §10.4, WADO-01..11, BULK-01..03)."""

import asyncio
import hashlib
import io
import json
import re
import zipfile
import zlib
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import aclosing
from typing import Final

from ..domain.errors import InvalidInput, NotAcceptable, NotFound
from ..domain.model import Entry, Selected, Selection
from ..domain.native_model import to_xml
from ..domain.pixels import DOUBLE_FLOAT_PIXEL_DATA, FLOAT_PIXEL_DATA, PIXEL_DATA
from ..domain.syntaxes import EXPLICIT_LE, OCTETS, TABLE
from ..ports import Buffer
from ..services.retrieve import Opened, Wanted, frame_indexes
from .exchange import Request, Response
from .multipart import boundary_for, closing, content_type, part_head
from .params import (
    DICOM,
    DICOM_XML,
    ZIP,
    Accepts,
    Form,
    archive_of,
    bulk_forms,
    choose,
    choose_model,
    frame_forms,
    frame_numbers,
    instance_forms,
    is_uid,
    resource_url,
    selection,
)
from .problems import HttpProblem
from .qido import JSON, xml_response

COMMON: Final = [(b"vary", b"Accept, Accept-Encoding, Origin"), (b"cache-control", b"private, no-cache")]
_BYTES: Final = (b"accept-ranges", b"bytes")
_BULK_PATH: Final = re.compile(r"[0-9A-F]{8}(\.[0-9]{1,6}\.[0-9A-F]{8})*\Z")
_PIXELS: Final = frozenset(f"{tag:08X}" for tag in (PIXEL_DATA, FLOAT_PIXEL_DATA, DOUBLE_FLOAT_PIXEL_DATA))
_DOCUMENT: Final = "00420011"
_GATHERED_BYTES: Final = 64 << 20
"""Up to which frames are put together before they are sent, so that their length is known and ranges are served."""
_DOCUMENTS_AT_ONCE: Final = 16
_ZIP_SMALL: Final = (2 << 30) - (1 << 20)
"""Bytes of a file up to which an archive can be read by programs that do not know ZIP64."""
_LARGE_BYTES: Final = 256 << 10
"""From which on a piece is sent by itself."""
_WITHOUT_PIXELS: Final = (EXPLICIT_LE, *(row.uid for row in TABLE if row.encapsulated))
"""A data set without pixel data is encoded alike in all of these, so it fits whichever is asked for (NEG-14)."""


async def metadata(request: Request, study: str, series: str | None = None, sop: str | None = None) -> Response:
    """DICOM JSON of a study, series or instance, ready as stored: joined, not parsed (WADO-04, CACHE-01).

    As XML, one document an instance, made while they are sent (XML-01, XML-02).
    """
    selected = await select(request, study, series, sop)
    xml = choose_model(request.accepts) == DICOM_XML
    root = request.root
    gzip = request.wants_gzip and not xml
    # The bulk data URIs hold the root, so it is a part of the representation.
    etag = f'"{selected.etag}-{zlib.crc32(root.encode()):08x}{"-xml" if xml else "-gzip" if gzip else ""}"'
    headers = [*COMMON, (b"etag", etag.encode())]
    if request.unchanged(etag):
        return Response(304, headers)
    if xml:
        return await xml_response(headers, boundary_for(etag), _documents(request, selected))
    headers.append(JSON)
    document = await request.services.retrieve.metadata(selected, root, gzip=gzip)
    if document.gzip:
        headers.append((b"content-encoding", b"gzip"))
    return Response(200, headers, document.body)


async def _documents(request: Request, selected: Selected) -> AsyncGenerator[tuple[str, bytes]]:
    """The location and the XML of each instance's metadata, some of which are read at once."""
    retrieve, root = request.services.retrieve, request.root
    for start in range(0, len(selected.entries), _DOCUMENTS_AT_ONCE):
        some = Selected(selected.entries[start : start + _DOCUMENTS_AT_ONCE], selected.etag)
        document = await retrieve.metadata(some, root, gzip=False)
        written = await asyncio.to_thread(_as_xml, document.body)
        for entry, instance in zip(some.entries, written, strict=True):
            yield f"{location_of(root, entry)}/metadata", instance


def _as_xml(text: bytes) -> list[bytes]:
    """Each of the data sets. Numbers stay the text that they are: a float has other digits. *Blocking.*"""
    return [to_xml(instance) for instance in json.loads(text, parse_float=str, parse_int=str)]


async def instances(request: Request, study: str, series: str | None = None, sop: str | None = None) -> Response:
    """Part 10 files of a study, series or instance, each in the transfer syntax chosen for it (NEG-14, WADO-02); in an
    archive for who asks for one (NEG-16)."""
    selected = await select(request, study, series, sop)
    if (accepts := archive_of(request.accepts)) is not None:
        return await _archive(request, selected, accepts, sop or series or study)
    return await files(request, selected, request.accepts, multipart=sop is None)


async def files(request: Request, selected: Selected, accepts: Accepts, *, multipart: bool) -> Response:
    """Part 10 files as parts; of one instance also without parts, where `multipart` need not be."""
    wanted, multipart = _wanted(request, selected, accepts, multipart)
    retrieve = request.services.retrieve
    fingerprint = zlib.crc32("".join(each.syntax for each in wanted).encode())
    etag = f'"{selected.etag}-{fingerprint:08x}{"-multipart" if multipart else ""}"'
    headers = [*COMMON, (b"etag", etag.encode())]
    if request.unchanged(etag):
        return Response(304, headers)
    root = request.root
    measured = await retrieve.measured(wanted) if len(wanted) > 1 else None
    opened = retrieve.instances(measured or wanted)
    batch = await anext(opened)  # what fails here still gets its status
    first = batch[0]
    if not multipart:
        headers += [
            (b"content-type", Form(DICOM, first.syntax, False).content_type.encode()),
            (b"content-location", location_of(root, wanted[0].entry).encode("latin-1")),
        ]
        return _streamed(headers, b"", first, b"")
    boundary = boundary_for(etag)
    headers.append((b"content-type", content_type(DICOM, boundary).encode()))
    if len(wanted) == 1:
        head = _instance_head(root, boundary, wanted[0].entry, first.syntax, first.length, 0)
        return _streamed(headers, head, first, closing(boundary))
    length = None if measured is None else _measured_length(root, boundary, measured)
    return Response(200, headers, _instance_parts(root, boundary, wanted, batch, opened), length)


def _wanted(
    request: Request, selected: Selected, accepts: Accepts, multipart: bool
) -> tuple[list[Wanted], bool]:
    """The transfer syntax chosen for each instance, and whether parts are. Raises NotAcceptable."""
    retrieve = request.services.retrieve
    wanted: list[Wanted] = []
    chosen: dict[tuple[str, ...], Form | None] = {}  # most series have one kind of instances
    for entry in selected.entries:
        has_pixels = entry.stored_syntax is not None
        offers = retrieve.offers(entry) if has_pixels else _WITHOUT_PIXELS
        forms = instance_forms(offers)
        if offers not in chosen:
            chosen[offers] = choose(accepts, forms)
        form = chosen[offers]
        if form is None:
            what = "The instance" if len(selected.entries) == 1 else "An instance of it"
            raise _not_acceptable(what, forms if has_pixels else forms[:1])
        multipart = multipart or form.multipart
        if has_pixels:
            or_stored = form.syntax != offers[0] and choose(accepts, instance_forms(offers[:1])) is not None
            wanted.append(Wanted(entry, form.syntax, or_stored))
        else:
            wanted.append(Wanted(entry, EXPLICIT_LE))
    return wanted, multipart


async def _archive(request: Request, selected: Selected, accepts: Accepts, uid: str) -> Response:
    """A ZIP archive of Part 10 files, named by their UIDs: the same bytes each time."""
    wanted, _ = _wanted(request, selected, accepts, False)
    fingerprint = zlib.crc32("".join(each.syntax for each in wanted).encode())
    etag = f'"{selected.etag}-{fingerprint:08x}-zip"'
    headers = [*COMMON, (b"etag", etag.encode())]
    if request.unchanged(etag):
        return Response(304, headers)
    named = f'attachment; filename="{_file_name(uid)}.zip"'
    headers += [(b"content-type", ZIP.encode()), (b"content-disposition", named.encode())]
    opened = request.services.retrieve.instances(wanted)
    batch = await anext(opened)  # what fails here still gets its status
    return Response(200, headers, _archived(wanted, batch, opened))


async def _archived(
    wanted: Sequence[Wanted], first: Sequence[Opened], others: AsyncGenerator[Sequence[Opened]]
) -> AsyncGenerator[bytes]:
    """Stored, not deflated: frames are compressed, or would be in their transfer syntax."""
    out = _Pieces()
    entries = iter(wanted)
    async with aclosing(others):
        with zipfile.ZipFile(out, "w") as archive:
            batch: Sequence[Opened] | None = first
            while batch is not None:
                for file in batch:
                    entry = next(entries).entry
                    name = f"{_file_name(entry.series_uid)}/{_file_name(entry.sop_uid)}.dcm"
                    large = file.length is None or file.length > _ZIP_SMALL
                    with archive.open(zipfile.ZipInfo(name), "w", force_zip64=large) as member:
                        for piece in file.start:
                            member.write(piece)
                        yield out.taken()
                        if file.rest is not None:
                            async for piece in file.rest:
                                member.write(piece)
                                yield out.taken()
                batch = await anext(others, None)
        yield out.taken()


class _Pieces(io.RawIOBase):
    """What an archive has been written to since it was taken from last. It cannot seek: sizes follow the files."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer) -> int:  # type: ignore[override]
        self._pieces.append(bytes(data))
        return len(data)

    def taken(self) -> bytes:
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)


def _file_name(uid: str) -> str:
    """What was received as a UID and is none may hold anything, also a path."""
    return uid if is_uid(uid) and uid.strip(".") else hashlib.sha256(uid.encode()).hexdigest()[:32]


async def frames(request: Request, study: str, series: str, sop: str, frames: str) -> Response:
    """Frames as stored or native, one part each, in the order asked for (WADO-05..07, TS-01..09)."""
    retrieve = request.services.retrieve
    numbers = frame_numbers(frames)
    entry = (await select(request, study, series, sop)).entries[0]
    indexes = frame_indexes(entry, numbers)
    single = len(indexes) == 1
    offers = retrieve.offers(entry)
    forms = frame_forms(offers, single=single)
    form = choose(request.accepts, forms)
    if form is None:
        raise _not_acceptable("The frames" if single else "Several frames", forms)
    etag = f'"{entry.digest}-{zlib.crc32(f"{frames} {form}".encode()):08x}"'
    headers = [*COMMON, _BYTES, (b"etag", etag.encode())]
    if request.unchanged(etag):
        return Response(304, headers)
    try:
        first = await retrieve.frame(entry, indexes[0], form.syntax)
    except NotAcceptable:
        stored = choose(request.accepts, frame_forms(offers[:1], single=single))
        if stored is None or form.syntax == offers[0]:
            raise
        form = stored  # asked for without a transfer syntax, and not to be decoded (TS-01)
        first = await retrieve.frame(entry, indexes[0], form.syntax)
    location = f"{location_of(request.root, entry)}/frames/"
    if not form.multipart:
        headers += [
            (b"content-type", form.content_type.encode()),
            (b"content-location", f"{location}{numbers[0]}".encode("latin-1")),
        ]
        return _ranged(request, etag, headers, first)
    boundary = boundary_for(etag)
    headers.append((b"content-type", content_type(form.media_type, boundary).encode()))
    head = part_head(boundary, form.content_type, f"{location}{numbers[0]}", len(first), first=True)
    if single:
        return _ranged(request, etag, headers, b"".join((head, first, closing(boundary))))
    others = retrieve.frames(entry, indexes[1:], form.syntax)
    body = _frame_parts(head, first, others, numbers[1:], form, location, boundary)
    return await _gathered(request, etag, headers, body, len(first) * len(numbers))


async def bulk(request: Request, study: str, series: str, sop: str, path: str) -> Response:
    """The value that a BulkDataURI names (BULK-01, BULK-02)."""
    retrieve = request.services.retrieve
    selected = await select(request, study, series, sop)
    entry = selected.entries[0]
    path = path.upper()
    if not _BULK_PATH.match(path):
        raise NotFound("There is no such bulk data: its path is a tag, or tags and item numbers joined by periods.")
    if path in _PIXELS:
        return await _pixel_data(request, entry)
    vr, value = await retrieve.bulk(entry, path)
    document = await retrieve.document_type(entry) if path == _DOCUMENT else None
    forms = bulk_forms(document)
    form = choose(request.accepts, forms)
    if form is None:
        raise _not_acceptable("The bulk data", forms)
    location = f"{location_of(request.root, entry)}/bulkdata/{path}"
    return _bulk(request, f"{selected.etag}-{path}-{vr}", form, location, value)


async def _pixel_data(request: Request, entry: Entry) -> Response:
    """Pixel Data as bulk data: native frames joined, or each stored frame as a part; a video is one stream."""
    retrieve = request.services.retrieve
    if entry.stored_syntax is None:
        raise NotFound("The instance has no pixel data.")
    offers = retrieve.offers(entry)
    forms = tuple(
        form
        for form in frame_forms(offers, single=True)
        if form.multipart or form.syntax == EXPLICIT_LE or entry.frames <= 1
    )
    form = choose(request.accepts, forms)
    if form is None:
        raise _not_acceptable("The pixel data", forms)
    location = f"{location_of(request.root, entry)}/bulkdata/7FE00010"
    if entry.frames <= 1:
        if entry.frames:
            value = await retrieve.frame(entry, 0, form.syntax)
        else:
            _, value = await retrieve.received_pixels(entry)
        return _bulk(request, entry.digest, form, location, value)
    etag = f'"{entry.digest}-{zlib.crc32(f"bulk {form}".encode()):08x}"'
    headers = [*COMMON, _BYTES, (b"etag", etag.encode())]
    if request.unchanged(etag):
        return Response(304, headers)
    boundary = boundary_for(etag)
    size = entry.format.frame_bytes * entry.frames if entry.format else _GATHERED_BYTES
    if not form.multipart:
        headers += [(b"content-type", form.content_type.encode()), (b"content-location", location.encode("latin-1"))]
        return await _gathered(request, etag, headers, retrieve.pixels(entry), size)
    headers.append((b"content-type", content_type(form.media_type, boundary).encode()))
    if form.syntax == EXPLICIT_LE:
        head = part_head(boundary, form.content_type, location, None, first=True)
        body = _chained((head,), retrieve.pixels(entry), (closing(boundary),))
        return await _gathered(request, etag, headers, body, size)
    parts = retrieve.frames(entry, range(entry.frames), form.syntax)
    numbers = range(2, entry.frames + 1)
    location = f"{location_of(request.root, entry)}/frames/"
    first = await anext(parts)
    head = part_head(boundary, form.content_type, f"{location}1", len(first), first=True)
    return await _gathered(
        request, etag, headers, _frame_parts(head, first, parts, numbers, form, location, boundary), size
    )


def _bulk(request: Request, identity: str, form: Form, location: str, value: bytes) -> Response:
    """One value as a single part, or as the only part of several."""
    etag = f'"{identity}-{zlib.crc32(f"bulk {form}".encode()):08x}"'
    headers = [*COMMON, _BYTES, (b"etag", etag.encode()), (b"x-content-type-options", b"nosniff")]
    if request.unchanged(etag):
        return Response(304, headers)
    named = form.content_type
    if form.media_type.partition("/")[0] in ("application", "text", "model") and form.media_type != OCTETS:
        named = form.media_type
        if named != "application/pdf":
            # The sender of a document chose its type: it must not run scripts in this origin.
            headers.append((b"content-security-policy", b"sandbox"))
    if not form.multipart:
        headers += [(b"content-type", named.encode()), (b"content-location", location.encode("latin-1"))]
        return _ranged(request, etag, headers, value)
    boundary = boundary_for(etag)
    headers.append((b"content-type", content_type(form.media_type, boundary).encode()))
    head = part_head(boundary, named, location, len(value), first=True)
    return _ranged(request, etag, headers, b"".join((head, value, closing(boundary))))


async def select(request: Request, study: str, series: str | None, sop: str | None) -> Selected:
    """Raises NotFound, Gone, and InvalidInput for a UID that is none, unless something is stored so (ROOT-06)."""
    try:
        return await request.services.retrieve.select(selection_of(request, study, series, sop))
    except NotFound:
        if not all(uid is None or is_uid(uid) for uid in (study, series, sop)):
            raise InvalidInput("A UID is digits and periods, 64 at most.") from None
        raise


def selection_of(request: Request, study: str, series: str | None, sop: str | None) -> Selection:
    """What `select` selects. Raises InvalidInput."""
    return selection(request.datastore, request.query, study, series, sop)


def _not_acceptable(what: str, forms: Sequence[Form]) -> NotAcceptable:
    listed = dict.fromkeys(
        f'multipart/related; type="{form.media_type}"; transfer-syntax={form.syntax}'
        if form.multipart
        else form.content_type
        for form in forms
    )
    return NotAcceptable(f"{what} can be had as: {', '.join(listed)}.")


def location_of(root: str, entry: Entry) -> str:
    return resource_url(root, entry.study_uid, entry.series_uid, entry.sop_uid)


def _streamed(headers: list[tuple[bytes, bytes]], head: bytes, file: Opened, tail: bytes) -> Response:
    """One file between what goes before and after it."""
    if file.rest is None:
        return Response(200, headers, b"".join((head, *file.start, tail)))
    length = None if file.length is None else len(head) + file.length + len(tail)
    return Response(200, headers, _chained((head, *file.start), file.rest, (tail,)), length)


def _instance_head(root: str, boundary: str, entry: Entry, syntax: str, length: int | None, number: int) -> bytes:
    named = Form(DICOM, syntax, True).content_type
    return part_head(boundary, named, location_of(root, entry), length, first=number == 0)


def _measured_length(root: str, boundary: str, wanted: Sequence[Wanted]) -> int:
    """Of what `_instance_parts` gives."""
    length = len(closing(boundary))
    for number, (entry, syntax, _, envelope) in enumerate(wanted):
        assert envelope is not None
        length += len(_instance_head(root, boundary, entry, syntax, envelope.length, number)) + envelope.length
    return length


async def _instance_parts(
    root: str,
    boundary: str,
    wanted: Sequence[Wanted],
    first: Sequence[Opened],
    others: AsyncGenerator[Sequence[Opened]],
) -> AsyncGenerator[bytes]:
    """A batch of files in few pieces: each costs a turn of the loop, and joining large ones costs more than that."""
    async with aclosing(others):
        number = 0
        batch: Sequence[Opened] | None = first
        while batch is not None:
            pieces: list[bytes] = []
            for file in batch:
                entry = wanted[number].entry
                pieces += (_instance_head(root, boundary, entry, file.syntax, file.length, number), *file.start)
                number += 1
            for some in _joined(pieces):
                yield some
            if batch[-1].rest is not None:
                async for piece in batch[-1].rest:
                    yield piece
            batch = await anext(others, None)
        yield closing(boundary)


def _joined(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in the same order: small pieces joined, large ones as they are."""
    small: list[bytes] = []
    for piece in pieces:
        if len(piece) < _LARGE_BYTES:
            small.append(piece)
            continue
        yield b"".join(small)
        yield piece
        small = []
    yield b"".join(small)


async def _frame_parts(
    head: bytes,
    first: bytes,
    others: AsyncGenerator[bytes],
    numbers: Sequence[int],
    form: Form,
    location: str,
    boundary: str,
) -> AsyncGenerator[bytes]:
    """The frame at hand, then the other ones, whose numbers are `numbers`."""
    async with aclosing(others):
        yield head
        yield first
        for number in numbers:
            frame = await anext(others)
            yield part_head(boundary, form.content_type, f"{location}{number}", len(frame), first=False)
            yield frame
        yield closing(boundary)


async def _chained(
    before: Sequence[bytes], pieces: AsyncGenerator[bytes], after: Sequence[bytes] = ()
) -> AsyncGenerator[bytes]:
    async with aclosing(pieces):
        for piece in before:
            yield piece
        async for piece in pieces:
            yield piece
        for piece in after:
            yield piece


async def _gathered(
    request: Request, etag: str, headers: list[tuple[bytes, bytes]], body: AsyncGenerator[bytes], size: int
) -> Response:
    """A body of about `size` bytes: whole, with its length and ranges, or streamed when it is too long for that."""
    if size > _GATHERED_BYTES:
        return Response(200, headers, body)
    return _ranged(request, etag, headers, b"".join([piece async for piece in body]))


_RANGE: Final = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})\Z")


def _ranged(request: Request, etag: str, headers: list[tuple[bytes, bytes]], body: bytes) -> Response:
    """The bytes that Range names; what is no single range of bytes is passed over (BULK-02, BULK-03)."""
    asked = request.header(b"range")
    match = _RANGE.match(asked.strip()) if asked else None
    condition = request.header(b"if-range") if match else None
    if match is None or match[1] == match[2] == "" or condition not in (None, etag):
        return Response(200, headers, body)
    size = len(body)
    if match[1]:
        start, end = int(match[1]), min(int(match[2]) if match[2] else size - 1, size - 1)
        if match[2] and int(match[2]) < start:
            return Response(200, headers, body)
    else:
        start, end = max(0, size - int(match[2])), size - 1
    if start >= size:
        raise HttpProblem(416, "The range begins behind the end.", {b"content-range": b"bytes */%d" % size})
    headers.append((b"content-range", b"bytes %d-%d/%d" % (start, end, size)))
    return Response(206, headers, body[start : end + 1])
