"""The DICOMweb surface: the URL table of PS3.18, and the plain ASGI application that serves it.

The application takes the whole path: `/dicomweb/...` is the default data store, `/datastore/{id}/...` any (ROOT-01).
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Final, NamedTuple

import orjson
import structlog
from starlette.types import Receive, Scope, Send

from ..domain.errors import GatewayError
from ..domain.query import Level
from ..domain.syntaxes import OCTETS, TABLE
from . import problems, qido, removal, rendered, stow, uri, wado
from .capabilities import (
    ACCEPT,
    CONFLICTS,
    IF_MATCH,
    JSON,
    PICTURE,
    PLACE,
    RANGES,
    SEARCH,
    THUMBNAIL,
    UNCHANGED,
    URI,
    VERSION,
    WADL,
    Operation,
    Parameter,
    keys,
    wadl,
    wadl_as_json,
)
from .exchange import ClientGone, DicomwebServices, Request, Response
from .params import DICOM, DICOM_JSON, DICOM_XML, ZIP, choose_first
from .problems import HttpProblem
from .rendered import PICTURES

Handler = Callable[..., Awaitable[Response]]

_SERIES = "/studies/{study}/series/{series}"
_INSTANCE = _SERIES + "/instances/{sop}"
_FRAMES = _INSTANCE + "/frames/{frames}"


class Route(NamedTuple):
    """Who answers a method of a resource, and what callers are told of it."""

    handler: Handler
    told: Operation


_MODELS: Final = (DICOM_JSON, f'multipart/related; type="{DICOM_XML}"')
_FILES: Final = (f'multipart/related; type="{DICOM}"', DICOM, ZIP)
_KINDS: Final = tuple(dict.fromkeys(row.media_type for row in TABLE))
_FRAME_KINDS: Final = (*(f'multipart/related; type="{kind}"' for kind in _KINDS), *_KINDS)
_BULK_KINDS: Final = (f'multipart/related; type="{OCTETS}"', OCTETS, *_FRAME_KINDS, "*/*")
_BODIES: Final = (*(f'multipart/related; type="{kind}"' for kind in (DICOM, DICOM_JSON, DICOM_XML)), DICOM)
_SMALL: Final = (*PICTURES, *(f'multipart/related; type="{kind}"' for kind in PICTURES))
_VIDEOS: Final = tuple(dict.fromkeys(row.media_type for row in TABLE if row.video))
_SHOWN: Final = (*_SMALL, "text/html", "text/plain", "text/xml", "application/pdf", *_VIDEOS)
_READ: Final = (*PLACE, VERSION, ACCEPT, *UNCHANGED)
_CHANGE: Final = (409, 410, 429, 507)
"""Where something is written: another operation holds it; it was deleted; too much waits; no room."""


def _search(handler: Handler, what: str, level: Level) -> Mapping[str, Route]:
    told = Operation(
        f"Searches for {what}.",
        _MODELS,
        (*SEARCH, ACCEPT, *keys(level)),
        also=(204, 406, 413),
        schema="DataSets",
    )
    return {"GET": Route(handler, told)}


def _read(
    handler: Handler,
    meaning: str,
    gives: tuple[str, ...],
    parameters: tuple[Parameter, ...] = (),
    also: tuple[int, ...] = (),
    schema: str = "",
) -> Mapping[str, Route]:
    also = (304, 406, 409, 410, *also)
    return {"GET": Route(handler, Operation(meaning, gives, (*parameters, *_READ), also=also, schema=schema))}


def _models(of: str) -> Mapping[str, Route]:
    return _read(wado.metadata, f"The metadata of {of}.", _MODELS, schema="DataSets")


def _delete(what: str) -> Mapping[str, Route]:
    told = Operation(f"Deletes {what}, for the time being.", (), (PLACE[0], *IF_MATCH), also=(*_CHANGE, 412))
    return {"DELETE": Route(removal.delete, told)}


def _reject(what: str) -> Mapping[str, Route]:
    told = Operation(f"Deletes {what}, as dcm4chee-arc has it.", (), (PLACE[0], *IF_MATCH), also=(*_CHANGE, 412))
    return {"POST": Route(removal.reject, told)}


def _undelete(what: str) -> Mapping[str, Route]:
    told = Operation(f"Puts {what} that was deleted back.", (), PLACE[:1], also=_CHANGE)
    return {"POST": Route(removal.undelete, told)}


def _store(where: str) -> Mapping[str, Route]:
    told = Operation(
        f"Stores instances{where}: 202 where some were refused or changed, 409 where all were refused.",
        (DICOM_JSON, DICOM_XML),
        (ACCEPT,),
        _BODIES,
        also=(202, 406, 409, 413, 415, 429, 507),
        schema="DataSet",
    )
    return {"POST": Route(stow.store, told)}


def _pictures(of: str, resource: str) -> Mapping[str, Mapping[str, Route]]:
    shown = _read(rendered.rendered, f"A picture of {of}; a report as text.", _SHOWN, PICTURE)
    small = _read(rendered.thumbnail, f"A small picture of {of}, without text.", _SMALL, THUMBNAIL)
    return {f"{resource}/rendered": shown, f"{resource}/thumbnail": small}


async def capabilities(request: Request) -> Response:
    """What the service offers, as WADL or as JSON (PS3.18 §8.9, CAP-01)."""
    kind = choose_first(request.accepts, (WADL, JSON))
    headers = [(b"content-type", kind.encode()), (b"allow", b"GET, HEAD, OPTIONS"), *qido.COMMON]
    body = wadl(TOLD, request.root) if kind == WADL else orjson.dumps(wadl_as_json(TOLD, request.root))
    return Response(200, headers, body)


ROUTES: Final[Mapping[str, Mapping[str, Route]]] = {
    "/": {
        "OPTIONS": Route(capabilities, Operation("What the service offers.", (WADL, JSON), (ACCEPT,), also=(406,))),
        "GET": Route(
            uri.instance,
            Operation(
                "An instance or a picture of it, by WADO-URI.",
                (DICOM, *_SHOWN),
                (*URI, *PLACE, VERSION, *UNCHANGED),
                also=(304, 406, 409, 410),
            ),
        ),
    },
    # search (PS3.18 T10.6.1-1)
    "/studies": {**_search(qido.studies, "studies", Level.STUDY), **_store("")},
    "/series": _search(qido.series, "series", Level.SERIES),
    "/instances": _search(qido.instances, "instances", Level.INSTANCE),
    "/studies/{study}/series": _search(qido.series, "series of a study", Level.SERIES),
    "/studies/{study}/instances": _search(qido.instances, "instances of a study", Level.INSTANCE),
    _SERIES + "/instances": _search(qido.instances, "instances of a series", Level.INSTANCE),
    # retrieve (PS3.18 T10.4.1-1..3)
    "/studies/{study}": {
        **_read(wado.instances, "The instances of a study.", _FILES),
        **_store(" of one study"),
        **_delete("a study"),
    },
    "/studies/{study}/metadata": _models("a study"),
    _SERIES: {**_read(wado.instances, "The instances of a series.", _FILES), **_delete("a series")},
    _SERIES + "/metadata": _models("a series"),
    _INSTANCE: {**_read(wado.instances, "An instance.", _FILES), **_delete("an instance")},
    _INSTANCE + "/metadata": _models("an instance"),
    _FRAMES: _read(
        wado.frames, "Frames, numbered from 1, with commas between the numbers.", _FRAME_KINDS, RANGES, (206, 416)
    ),
    _INSTANCE + "/bulkdata/{path}": _read(
        wado.bulk, "The value that a BulkDataURI names.", _BULK_KINDS, RANGES, (206, 416)
    ),
    # render (PS3.18 T10.4.1-3, T10.4.1-4)
    **_pictures("a study", "/studies/{study}"),
    **_pictures("a series", _SERIES),
    **_pictures("an instance", _INSTANCE),
    **_pictures("frames", _FRAMES),
    # beyond the standard
    "/studies/{study}/reject/{code}": _reject("a study"),
    _SERIES + "/reject/{code}": _reject("a series"),
    _INSTANCE + "/reject/{code}": _reject("an instance"),
    "/studies/{study}/undelete": _undelete("a study"),
    _SERIES + "/undelete": _undelete("a series"),
    _INSTANCE + "/undelete": _undelete("an instance"),
    "/conflicts": {
        "GET": Route(
            qido.conflicts,
            Operation("What landed beside its primary image set.", (JSON,), CONFLICTS, schema="Conflicts"),
        )
    },
}
"""Every second segment of a path is a word, the others are values. HEAD goes where GET goes."""

TOLD: Final = {path: {name: route.told for name, route in methods.items()} for path, methods in ROUTES.items()}
"""What callers are told of each."""


def _table() -> dict[tuple[str, ...], tuple[tuple[str, ...], Mapping[str, Route]]]:
    table = {}
    for pattern, methods in ROUTES.items():
        segments = pattern.split("/")[1:]
        values = tuple(segment[1:-1] for segment in segments[1::2])
        table[(*segments[::2], str(len(segments)))] = values, methods
    return table


_TABLE = _table()


class DicomwebApp:
    """The ASGI application for both bases."""

    def __init__(self, services: DicomwebServices) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(self._services, scope, receive)
        try:
            response = await self._answer(request, scope["path"])
        except ClientGone:
            return
        except HttpProblem as refusal:
            body = problems.problem(refusal.status, problems.code_of(refusal.status), refusal.detail)
            response = _problem(refusal.status, body, refusal.headers)
        except GatewayError as error:
            status = problems.status_of(error)
            headers = {b"retry-after": b"%d" % problems.RETRY_AFTER_S} if status in (429, 503) else {}
            response = _problem(status, problems.problem(status, error.code, error.detail), headers)
        try:
            await response.send(send, receive, head=scope["method"] == "HEAD")
        except (GatewayError, OSError) as error:
            # Too late for a status: the connection ends without the closing boundary (MP-07).
            structlog.get_logger("gateway.dicomweb").error("retrieve-broken-off", error=type(error).__name__)

    async def _answer(self, request: Request, path: str) -> Response:
        if path.startswith("/datastore/"):
            _, _, name, rest = [*path.split("/", 3), ""][:4]
            request.datastore = await self._services.resolve(name)
            request.base = f"/datastore/{name}"
        else:
            rest = path[len("/dicomweb/") :]
        segments = rest.split("/")
        if not segments[-1] and len(segments) > 1:
            segments.pop()
        route = _TABLE.get((*segments[::2], str(len(segments))))
        if route is None or (rest and not all(segments)):
            raise HttpProblem(404, "There is no such DICOMweb resource here.")
        names, methods = route
        method = "GET" if request.method == "HEAD" else request.method
        found = methods.get(method)
        if found is None:
            allow = ", ".join(dict.fromkeys([*methods, *(["HEAD"] if "GET" in methods else []), "OPTIONS"])).encode()
            if method == "OPTIONS":
                return Response(204, [(b"allow", allow)])
            raise HttpProblem(405, f"{request.method[:16]} is not possible here.", {b"allow": allow})
        return await found.handler(request, **dict(zip(names, segments[1::2], strict=True)))


def _problem(status: int, body: bytes, headers: Mapping[bytes, bytes]) -> Response:
    common = [(b"content-type", b"application/problem+json"), (b"cache-control", b"no-store")]
    return Response(status, [*common, *headers.items()], body)


__all__ = ["ROUTES", "TOLD", "DicomwebApp", "DicomwebServices"]
