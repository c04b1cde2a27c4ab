"""DELETE of studies, series and instances, and taking it back within the retention (DEL-01)."""

from ..domain.errors import VersionConflict
from ..domain.model import Selected
from .exchange import Request, Response
from .params import selection
from .qido import COMMON
from .wado import select


async def delete(request: Request, study: str, series: str | None = None, sop: str | None = None) -> Response:
    """Leaves a tombstone: 410 from now on, and searches do not find it. Heeds If-Match with the ETag of any answer."""
    selected = await select(request, study, series, sop)
    _check(request, selected)
    wanted = selection(request.datastore, request.query, study, series, sop)
    await request.services.removal.remove(wanted, selected, request.principal)
    return Response(204, [*COMMON])


async def undelete(request: Request, study: str, series: str | None = None, sop: str | None = None) -> Response:
    """Lifts the tombstone: everything is as it was, in new versions."""
    wanted = selection(request.datastore, request.query, study, series, sop)
    await request.services.removal.restore(wanted, request.principal)
    return Response(204, [*COMMON])


def _check(request: Request, selected: Selected) -> None:
    """The ETag of each representation begins with that of what is represented. Raises VersionConflict."""
    condition = request.header(b"if-match")
    if condition is None or condition.strip() == "*":
        return
    known = (tag.strip().strip('"') for tag in condition.split(","))
    if not any(tag.startswith(selected.etag) for tag in known):
        raise VersionConflict()
