"""WADO-URI: one instance, or a picture of it, by the parameters of a query (PS3.18 §9, URI-01, URI-02)."""

import re
from typing import Final

from ..domain.display import Curve, Window
from ..domain.errors import InvalidInput, NotAcceptable, NotFound
from ..domain.model import Entry
from ..domain.presentation import MAX_SIDE, Region, Viewport
from .exchange import Request, Response
from .params import DICOM, Accepts, Query, is_uid, parse_accept
from .problems import HttpProblem
from .rendered import PICTURES, Look, annotation_of, quality_of, show
from .wado import files, select

GIVES: Final = (DICOM, *PICTURES, "text/html", "text/plain", "text/xml", "application/pdf")
_DECIMAL: Final = re.compile(r"[+-]?([0-9]{1,12}(\.[0-9]{0,12})?|\.[0-9]{1,12})([eE][+-]?[0-9]{1,2})?\Z")


async def instance(request: Request) -> Response:
    """An instance as a file, or what can be shown of it.

    Without contentType an image of one frame is a picture, and a report text; all else is a file (§9.1.2.4).
    """
    query = request.query
    kind = query.one("requestType")
    if kind is None and not query.pairs:
        raise HttpProblem(404, "There is no resource here but for OPTIONS and for requestType=WADO.")
    if kind != "WADO":
        raise InvalidInput("requestType must be given, and be WADO.")
    study, series, sop = (_uid(query, name) for name in ("studyUID", "seriesUID", "objectUID"))
    if query.one("anonymize") not in (None, "no"):
        raise InvalidInput("anonymize is not possible here: leave it out.")
    selected = await select(request, study, series, sop)
    entry = selected.entries[0]
    wanted = query.one("contentType")
    pictured = request.services.render.shows(entry) and entry.frames <= 1
    if wanted is None:
        wanted = "image/jpeg" if pictured else DICOM if entry.stored_syntax else f"text/html, {DICOM};q=0.9"
    ranges = parse_accept(wanted)
    shown = ", ".join(f"{r.type};q={r.q}" for r in ranges if r.type not in (DICOM, "*/*"))
    best = max((r.q for r in ranges if r.type in (DICOM, "*/*")), default=0.0)
    if shown and (not best or max(r.q for r in ranges if r.type not in (DICOM, "*/*")) > best):
        try:
            accepts = Accepts(None, shown)
            return await show(request, selected, accepts, _look(query, entry), _frame(query, entry))
        except (NotAcceptable, NotFound):
            if not best:
                raise
    elif not best:
        raise NotAcceptable(f"The instance can be had as {', '.join(GIVES)}.")
    syntax = query.one("transferSyntax")
    asked = DICOM if syntax is None else f"{DICOM}; transfer-syntax={syntax}"
    if syntax is not None and syntax != "*" and not is_uid(syntax):
        raise InvalidInput("transferSyntax must be a UID or *.")
    return await files(request, selected, Accepts(None, asked), multipart=False)


def _uid(query: Query, name: str) -> str:
    value = query.one(name)
    if value is None:
        raise InvalidInput(f"{name} is missing: requestType, studyUID, seriesUID and objectUID are needed.")
    return value


def _frame(query: Query, entry: Entry) -> list[int] | None:
    number = _whole(query, "frameNumber")
    return None if number is None else [number]


def _whole(query: Query, name: str) -> int | None:
    value = query.one(name)
    if value is None:
        return None
    if not re.fullmatch(r"[0-9]{1,9}", value) or not int(value):
        raise InvalidInput(f"{name} must be a whole number from 1.")
    return int(value)


def _look(query: Query, entry: Entry) -> Look:
    center, width = query.one("windowCenter"), query.one("windowWidth")
    window = None
    if center is not None or width is not None:
        if center is None or width is None or not _DECIMAL.match(center) or not _DECIMAL.match(width):
            raise InvalidInput("windowCenter and windowWidth are two numbers, both or neither of them.")
        window = Window(float(center), float(width), Curve.LINEAR)
        if not window.is_valid:
            raise InvalidInput("windowWidth must be 1 or more.")
    return Look(window, _viewport(query, entry), quality_of(query, "imageQuality"), annotation_of(query))


def _viewport(query: Query, entry: Entry) -> Viewport | None:
    """`rows` and `columns` bound the picture, each alone too; `region` is in parts of the image."""
    rows, columns, part = _whole(query, "rows"), _whole(query, "columns"), query.one("region")
    if rows is None and columns is None and part is None:
        return None
    if max(rows or 1, columns or 1) > MAX_SIDE:
        raise InvalidInput(f"rows and columns must be {MAX_SIDE} at most.")
    if part is None:
        return Viewport(columns or MAX_SIDE, rows or MAX_SIDE)
    sides = part.split(",")
    if len(sides) != 4 or not all(_DECIMAL.match(side) for side in sides):
        raise InvalidInput("region must be left,top,right,bottom: four numbers from 0 to 1.")
    left, top, right, bottom = map(float, sides)
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise InvalidInput("region must be left,top,right,bottom from 0 to 1, left before right and top before bottom.")
    wide, high = (entry.format.columns, entry.format.rows) if entry.format else (1, 1)
    region = Region(left * wide, top * high, (right - left) * wide, (bottom - top) * high)
    natural = Viewport(max(1, round(region.width or 1)), max(1, round(region.height or 1)), region)
    if rows is None and columns is None:
        return natural
    return Viewport(columns or MAX_SIDE, rows or MAX_SIDE, region)
