"""The whole HTTP application: which face answers which path, and what stands in front of all of them."""

from collections.abc import Callable

from ..settings import Settings
from .auth import Authentication
from .middleware import Edge
from .problems import Asgi, Face, Receive, Scope, Send, face_of


def build_app(
    settings: Settings,
    *,
    dicomweb: Asgi,
    healthimaging: Asgi,
    history: Asgi,
    operations: Asgi,
    quarantine: Asgi,
    access_log: Callable[..., None],
) -> Asgi:
    """One ASGI application over the faces, each of which sees the full path.

    `/changes`, `/datastore/{id}/changes` and `/datastore/{id}/imageSet/{id}/diff` are history's,
    `/dicomweb/...` and `/datastore/{id}/{studies,series,instances,conflicts}...` are DICOMweb's, `/livez`, `/readyz`,
    `/metrics`, `/queue`, `/openapi.json` and `/quarantine...` the operator's, and all else the HealthImaging API's; the
    Host header routes nothing.
    """
    faces = {
        Face.DICOMWEB: dicomweb,
        Face.OPERATIONS: operations,
        Face.HISTORY: history,
        Face.QUARANTINE: quarantine,
        Face.API: healthimaging,
    }

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        await faces[face_of(scope["path"])](scope, receive, send)

    return Edge(
        Authentication(route, settings) if settings.auth.is_closed else route,
        origins=settings.cors_origins,
        max_requests=settings.http.max_requests,
        access_log=access_log,
    )
