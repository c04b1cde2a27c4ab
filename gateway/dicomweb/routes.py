"""The DICOMweb surface: the URL table of PS3.18, and the plain ASGI application that serves it.

The application takes the whole path: `/dicomweb/...` is the default data store, `/datastore/{id}/...` any (ROOT-01).
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import structlog
from starlette.types import Receive, Scope, Send

from ..domain.errors import GatewayError
from . import problems, qido, rendered, stow, wado
from .exchange import ClientGone, DicomwebServices, Request, Response
from .problems import HttpProblem

Handler = Callable[..., Awaitable[Response]]

_SERIES = "/studies/{study}/series/{series}"
_INSTANCE = _SERIES + "/instances/{sop}"

ROUTES: Final[Mapping[str, Mapping[str, Handler]]] = {
    # search (PS3.18 T10.6.1-1)
    "/studies": {"GET": qido.studies, "POST": stow.store},
    "/series": {"GET": qido.series},
    "/instances": {"GET": qido.instances},
    "/studies/{study}/series": {"GET": qido.series},
    "/studies/{study}/instances": {"GET": qido.instances},
    _SERIES + "/instances": {"GET": qido.instances},
    # retrieve (PS3.18 T10.4.1-1..3)
    "/studies/{study}": {"GET": wado.instances, "POST": stow.store},
    "/studies/{study}/metadata": {"GET": wado.metadata},
    _SERIES: {"GET": wado.instances},
    _SERIES + "/metadata": {"GET": wado.metadata},
    _INSTANCE: {"GET": wado.instances},
    _INSTANCE + "/metadata": {"GET": wado.metadata},
    _INSTANCE + "/frames/{frames}": {"GET": wado.frames},
    _INSTANCE + "/bulkdata/{path}": {"GET": wado.bulk},
    # render (PS3.18 T10.4.1-3, T10.4.1-4)
    "/studies/{study}/rendered": {"GET": rendered.rendered},
    "/studies/{study}/thumbnail": {"GET": rendered.thumbnail},
    _SERIES + "/rendered": {"GET": rendered.rendered},
    _SERIES + "/thumbnail": {"GET": rendered.thumbnail},
    _INSTANCE + "/rendered": {"GET": rendered.rendered},
    _INSTANCE + "/thumbnail": {"GET": rendered.thumbnail},
    _INSTANCE + "/frames/{frames}/rendered": {"GET": rendered.rendered},
    _INSTANCE + "/frames/{frames}/thumbnail": {"GET": rendered.thumbnail},
    # beyond the standard
    "/conflicts": {"GET": qido.conflicts},
}
"""Every second segment of a path is a word, the others are values. HEAD goes where GET goes."""


def _table() -> dict[tuple[str, ...], tuple[tuple[str, ...], Mapping[str, Handler]]]:
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
        if route is None or not all(segments):
            raise HttpProblem(404, "There is no such DICOMweb resource here.")
        names, methods = route
        method = "GET" if request.method == "HEAD" else request.method
        handler = methods.get(method)
        if handler is None:
            allow = ", ".join([*methods, *(["HEAD"] if "GET" in methods else []), "OPTIONS"]).encode()
            if method == "OPTIONS":
                return Response(204, [(b"allow", allow)])
            raise HttpProblem(405, f"{request.method[:16]} is not possible here.", {b"allow": allow})
        return await handler(request, **dict(zip(names, segments[1::2], strict=True)))


def _problem(status: int, body: bytes, headers: Mapping[bytes, bytes]) -> Response:
    common = [(b"content-type", b"application/problem+json"), (b"cache-control", b"no-store")]
    return Response(status, [*common, *headers.items()], body)


__all__ = ["ROUTES", "DicomwebApp", "DicomwebServices"]
