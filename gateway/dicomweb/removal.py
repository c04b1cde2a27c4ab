"""DELETE of studies, series and instances, and taking it back within the retention (DEL-01, DEL-02)."""

from typing import Final

from ..domain.errors import InvalidInput, VersionConflict
from ..domain.model import Selected
from .exchange import Request, Response
from .params import selection
from .qido import COMMON
from .wado import select

REJECTIONS: Final = {
    "113001^DCM": "Rejected for Quality Reasons",
    "113037^DCM": "Rejected for Patient Safety Reasons",
    "113038^DCM": "Incorrect Modality Worklist Entry",
    "113039^DCM": "Data Retention Policy Expired",
}
"""Titles of rejection notes (PS3.16 CID 7011), code value and coding scheme."""


async def delete(request: Request, study: str, series: str | None = None, sop: str | None = None) -> Response:
    """Leaves a tombstone: 410 from now on, and searches do not find it. Heeds If-Match with the ETag of any answer."""
    selected = await select(request, study, series, sop)
    _check(request, selected)
    wanted = selection(request.datastore, request.query, study, series, sop)
    await request.services.removal.remove(wanted, selected, request.principal)
    return Response(204, [*COMMON])


async def reject(
    request: Request, study: str, series: str | None = None, sop: str | None = None, *, code: str
) -> Response:
    """DELETE in the words of dcm4chee-arc, which OHIF uses: the same, for whichever of the reasons (DEL-02)."""
    if code not in REJECTIONS:
        known = ", ".join(f"{one} ({title})" for one, title in REJECTIONS.items())
        raise InvalidInput(f"This is no reason to reject instances. Known are {known}.")
    return await delete(request, study, series, sop)


async def undelete(request: Request, study: str, series: str | None = None, sop: str | None = None) -> Response:
    """Lifts the tombstone: everything is as it was, in new versions; of the image set that is named, or the primary
    ones."""
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
