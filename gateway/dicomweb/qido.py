"""QIDO-RS: searches (PS3.18 §10.6, QIDO-01..32), and the list of conflicts."""

import secrets
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from datetime import UTC
from typing import Any, Final

import orjson
from isal import igzip

from ..domain.errors import InvalidInput
from ..domain.ids import ImageSetId
from ..domain.model import PageRequest
from ..domain.native_model import to_xml
from ..domain.query import (
    MODALITIES_IN_STUDY,
    SERIES_UID,
    STUDY_UID,
    DicomQuery,
    Key,
    Level,
    TagPath,
    attribute,
    vr_of,
)
from .exchange import Request, Response
from .multipart import closing, content_type, part_head
from .params import DICOM_XML, as_of, choose_model, image_set_of, is_uid, resource_url

JSON: Final = (b"content-type", b"application/dicom+json")
COMMON: Final = [(b"vary", b"Accept, Accept-Encoding, Origin"), (b"cache-control", b"no-store")]
_GZIP_FROM: Final = 1024
"""Bytes from which a body is worth compressing."""
_SPELLINGS: Final = {"includeField": "includefield", "fuzzyMatching": "fuzzymatching"}
_MAX_CONFLICTS: Final = 1000


async def studies(request: Request) -> Response:
    """Studies of the data store."""
    return await _search(request, Level.STUDY)


async def series(request: Request, study: str | None = None) -> Response:
    """Series of a study, or of all."""
    return await _search(request, Level.SERIES, study)


async def instances(request: Request, study: str | None = None, series: str | None = None) -> Response:
    """Instances of a series, of a study, or of all."""
    return await _search(request, Level.INSTANCE, study, series)


async def _search(request: Request, level: Level, study: str | None = None, series: str | None = None) -> Response:
    services = request.services
    model = choose_model(request.accepts)
    query = read_query(request, level, study, series)
    answer = await services.search.find(query)
    headers = [*COMMON]
    if answer.remaining:
        text = f'299 {request.host} "There are {answer.remaining} additional results that can be requested"'
        headers.append((b"warning", text.encode("latin-1")))
    if not answer.rows:
        for uid in (study, series):
            if uid is not None and not is_uid(uid):
                raise InvalidInput("A UID is digits and periods, 64 at most.")
        if services.empty_qido_status == 204 or model == DICOM_XML:  # a multipart has a part at least
            return Response(204, headers)
    root = request.root
    rows = [with_url(row, root, level, query.image_set) for row in answer.rows]
    if model == DICOM_XML:
        return await xml_response(headers, secrets.token_hex(16), _documents(rows))
    return json_response(request, [JSON, *headers], orjson.dumps(rows))


async def _documents(rows: Iterable[Mapping[str, Any]]) -> AsyncGenerator[tuple[str, bytes]]:
    for row in rows:
        yield row["00081190"]["Value"][0], to_xml(row)


def json_response(request: Request, headers: list[tuple[bytes, bytes]], body: bytes) -> Response:
    """200 with a JSON body, compressed where that pays (COMP-01)."""
    if len(body) >= _GZIP_FROM and request.wants_gzip:
        return Response(200, [*headers, (b"content-encoding", b"gzip")], igzip.compress(body, 1))
    return Response(200, headers, body)


async def xml_response(
    headers: list[tuple[bytes, bytes]], boundary: str, documents: AsyncGenerator[tuple[str, bytes]]
) -> Response:
    """200 with the location and the XML of each data set as a part, sent as they come (XML-02)."""
    location, document = await anext(documents)  # what fails here still gets its status
    begun = part_head(boundary, DICOM_XML, location, len(document), first=True) + document

    async def parts() -> AsyncGenerator[bytes]:
        async with aclosing(documents):
            yield begun
            async for location, document in documents:
                yield part_head(boundary, DICOM_XML, location, len(document), first=False) + document
            yield closing(boundary)

    return Response(200, [(b"content-type", content_type(DICOM_XML, boundary).encode()), *headers], parts())


def read_query(request: Request, level: Level, study: str | None, series: str | None) -> DicomQuery:
    """The search that a request asks for. Raises InvalidInput."""
    query = request.query
    keys: dict[TagPath, Key] = {}
    for tag, uid in ((STUDY_UID, study), (SERIES_UID, series)):
        if uid is not None:
            keys[(tag,)] = Key((tag,), "UI", (uid,))
    include: set[TagPath] = set()
    options: dict[str, str] = {}
    include_all = False
    seen: set[TagPath] = set()
    for spelled, value in query.pairs:
        name = _SPELLINGS.get(spelled, spelled)
        if name == "includefield":
            names = [field for field in value.split(",") if field]
            include_all = include_all or "all" in names
            include.update(_included(names))
        elif name in ("limit", "offset", "fuzzymatching"):
            if name in options:
                raise InvalidInput(f"The parameter {name} is given more than once.")
            options[name] = value
        elif name == "version":
            raise InvalidInput("A search has no version; use asOf.")
        elif _is_attribute(name):
            key = _key(name, value)
            if key.path in seen:
                raise InvalidInput(f"{name} is given more than once; a list of UIDs goes into one, with commas.")
            seen.add(key.path)
            if keys.setdefault(key.path, key) != key and key.values:
                raise InvalidInput(f"{name} is in the path already, with another value.")
    limit = _number(options, "limit", request.services.max_results)
    return DicomQuery(
        datastore=request.datastore,
        level=level,
        keys=tuple(keys.values()),
        include=frozenset(include),
        include_all=include_all,
        limit=min(limit, request.services.max_results),
        offset=_number(options, "offset", 0),
        fuzzy=_flag(options, "fuzzymatching"),
        image_set=image_set_of(query),
        as_of=as_of(query),
    )


def _is_attribute(name: str) -> bool:
    """A keyword or a tag; other words in lower case are parameters that mean nothing here (QIDO-23)."""
    head = name.partition(".")[0]
    return name[:1].isupper() or (len(head) == 8 and all(digit in "0123456789abcdefABCDEF" for digit in head))


def _key(name: str, value: str) -> Key:
    path = attribute(name)
    vr = vr_of(path[-1])
    if vr == "UI":
        values = value.replace("\\", ",").split(",")
    elif path == (MODALITIES_IN_STUDY,):
        values = value.split(",")
    else:
        values = [value]
    return Key(path, vr, tuple(one for one in values if one))


def _included(names: Iterable[str]) -> Iterable[TagPath]:
    """The attributes asked for; words that are none are passed over (QIDO-21)."""
    for name in names:
        try:
            yield attribute(name)
        except InvalidInput:
            continue


def _number(options: dict[str, str], name: str, default: int) -> int:
    text = options.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdecimal() or len(text) > 12:
        raise InvalidInput(f"{name} must be a whole number from 0.")
    return int(text)


def _flag(options: dict[str, str], name: str) -> bool:
    text = options.get(name, "false")
    if text not in ("true", "false"):
        raise InvalidInput(f"{name} must be true or false.")
    return text == "true"


def with_url(row: dict[str, Any], root: str, level: Level, image_set: ImageSetId | None) -> dict[str, Any]:
    """A row with its RetrieveURL, tags still ascending (JSON-02, QIDO-30)."""
    tags = ("0020000D", "0020000E", "00080018")[: 1 + (level is not Level.STUDY) + (level is Level.INSTANCE)]
    url = resource_url(root, *(row[tag]["Value"][0] for tag in tags))
    if image_set is not None:
        url += f"?imageSetId={image_set}"
    row["00081190"] = {"vr": "UR", "Value": [url]}
    return dict(sorted(row.items()))


async def conflicts(request: Request) -> Response:
    """What landed beside its primary image set, and the attribute that differed (architecture 0)."""
    size = _number(dict(request.query.pairs), "maxResults", 50)
    if not 1 <= size <= _MAX_CONFLICTS:
        raise InvalidInput(f"maxResults must be a whole number from 1 to {_MAX_CONFLICTS}.")
    page = await request.services.intake.conflicts(request.datastore, PageRequest(size, request.query.one("nextToken")))
    answer: dict[str, Any] = {
        "conflicts": [
            {
                "imageSetId": entry.image_set,
                "version": entry.version,
                "studyInstanceUID": entry.study_uid,
                "seriesInstanceUID": entry.series_uid,
                "attribute": entry.attribute,
                "instances": entry.instances,
                "at": entry.at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                "source": entry.source,
            }
            for entry in page.items
        ]
    }
    if page.next_token is not None:
        answer["nextToken"] = page.next_token
    return json_response(request, [(b"content-type", b"application/json"), *COMMON], orjson.dumps(answer))


