"""Rendered resources and thumbnails of a study, series, instance or frame (PS3.18 §8.3.5, §8.7.4, §10.4.1.1.3..4).

One request gives one picture: of the frame named, of an instance's first frame, of the middle instance of a study's or
series' first pictures. Whoever accepts multipart gets a part for each instance, and a list of frames always is one.
"""

import re
import zlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Final, NamedTuple

from ..domain.errors import InvalidInput, NotAcceptable, NotFound
from ..domain.model import Entry, Selected
from ..domain.pixels import THUMBNAIL_SIDE
from ..domain.presentation import DEFAULT_QUALITY, MAX_SIDE, Curve, Region, Rendering, Viewport, Window
from ..domain.report import FORMS as TEXTS
from ..domain.report import is_report
from ..domain.syntaxes import by_uid
from ..services.retrieve import frame_indexes, in_order
from .exchange import Request, Response
from .multipart import boundary_for, closing, content_type, part_head
from .params import Accepts, PictureForm, Query, choose_picture, frame_numbers
from .wado import COMMON, location_of, select

PICTURES: Final = ("image/jpeg", "image/png", "image/gif")
"""The default first (REND-01)."""
_PDF: Final = "application/pdf"
_DOCUMENT: Final = "00420011"
_PRESENTATION_STATES: Final = "1.2.840.10008.5.1.4.1.1.11."
_AHEAD: Final = 4
"""Pictures that are made while an earlier one is sent."""
_CURVES: Final = {"linear": Curve.LINEAR, "linear-exact": Curve.LINEAR_EXACT, "sigmoid": Curve.SIGMOID}
_NUMBER: Final = re.compile(r"[+-]?([0-9]{1,12}(\.[0-9]{0,12})?|\.[0-9]{1,12})([eE][+-]?[0-9]{1,2})?\Z")


class Look(NamedTuple):
    """How a picture is to be."""

    window: Window | None
    viewport: Viewport | None
    quality: int


class _Place(NamedTuple):
    """A frame that a picture is asked of."""

    entry: Entry
    frame: int
    """From 0."""
    path: str
    """Of the resource, below the instance."""


async def rendered(
    request: Request, study: str, series: str | None = None, sop: str | None = None, frames: str | None = None
) -> Response:
    """Pictures (REND-01..09); a report as text, a document or a video as it is (REND-09)."""
    numbers = frame_numbers(frames) if frames is not None else None
    query = request.query
    look = Look(_window(query), _viewport(query), quality_of(query, "quality"))
    return await show(request, await select(request, study, series, sop), request.accepts, look, numbers)


async def show(
    request: Request, selected: Selected, accepts: Accepts, look: Look, numbers: Sequence[int] | None = None
) -> Response:
    """What was selected as it is to look; `numbers` are those of frames, from 1."""
    window, viewport, quality = look
    for entry in selected.entries:
        if entry.sop_class.startswith(_PRESENTATION_STATES) and (window or (viewport and viewport.region)):
            raise InvalidInput("A presentation state has its own window and region: leave them out.")
    shown = [entry for entry in selected.entries if request.services.render.shows(entry)]
    if not shown:
        return await _without_pictures(request, selected, accepts)
    form = choose_picture(accepts, PICTURES)
    if form is None:
        raise _not_acceptable(PICTURES)
    wanted = Rendering(form.media_type, window, viewport, quality)
    warnings = _warnings(request, form)
    if numbers is not None:
        places = [_Place(shown[0], n, f"/frames/{n + 1}/rendered") for n in frame_indexes(shown[0], numbers)]
        form = PictureForm(form.media_type, form.multipart or len(places) > 1)
    elif form.multipart:
        places = [_Place(entry, 0, "/rendered") for entry in shown]
    else:
        places = [_Place(_middle(shown), 0, "/rendered")]
    return await _answer(request, selected, form, wanted, places, warnings)


async def thumbnail(
    request: Request, study: str, series: str | None = None, sop: str | None = None, frames: str | None = None
) -> Response:
    """One small picture, without any text (THUMB-01)."""
    numbers = frame_numbers(frames) if frames is not None else None
    viewport = _viewport(request.query) or Viewport(THUMBNAIL_SIDE, THUMBNAIL_SIDE, enlarges=False)
    if viewport.region is not None:
        raise InvalidInput("The viewport of a thumbnail is width and height: it shows the whole image.")
    selected = await select(request, study, series, sop)
    render = request.services.render
    shown = [entry for entry in selected.entries if render.shows(entry)]
    if not shown:
        raise NotFound("Nothing here has frames that could be shown.")
    form = choose_picture(request.accepts, PICTURES)
    if form is None:
        raise _not_acceptable(PICTURES)
    entry = _middle(shown)
    if numbers is not None:
        place = _Place(entry, frame_indexes(entry, numbers)[0], f"/frames/{numbers[0]}/thumbnail")
    else:
        place = _Place(entry, (await render.presentation(entry)).representative, "/thumbnail")
    single = PictureForm(form.media_type, False)
    return await _answer(request, selected, single, Rendering(form.media_type, None, viewport), [place], [])


async def _answer(
    request: Request,
    selected: Selected,
    form: PictureForm,
    wanted: Rendering,
    places: Sequence[_Place],
    warnings: Sequence[tuple[bytes, bytes]],
) -> Response:
    """The only picture, or each as a part."""
    render = request.services.render
    first = places[0]
    if all(place.entry is first.entry for place in places):
        # Pictures of one instance change with its pixels and the way to show them, and with nothing else.
        validator = f"{first.entry.digest[:32]}{(await render.presentation(first.entry)).fingerprint}"
    else:
        validator = selected.etag
    what = repr((form, wanted, [(place.entry.sop_uid, place.path) for place in places]))
    etag = f'"{validator}-{zlib.crc32(what.encode()):08x}"'
    headers = [*COMMON, (b"etag", etag.encode()), *warnings]
    if request.unchanged(etag):
        return Response(304, headers)

    async def picture(place: _Place) -> bytes:
        return await render.picture(place.entry, place.frame, await render.presentation(place.entry), wanted)

    def location(place: _Place) -> str:
        return location_of(request.root, place.entry) + place.path

    if not form.multipart:
        body = await picture(first)
        headers += [
            (b"content-type", form.media_type.encode()),
            (b"content-location", location(first).encode("latin-1")),
        ]
        return Response(200, headers, body)
    boundary = boundary_for(etag)
    headers.append((b"content-type", content_type(form.media_type, boundary).encode()))
    pictures = in_order(places, picture, _AHEAD)
    begun = await anext(pictures)  # what fails here still gets its status

    async def parts() -> AsyncGenerator[bytes]:
        async with aclosing(pictures):
            body = begun
            for number, place in enumerate(places):
                if number:
                    body = await anext(pictures)
                yield part_head(boundary, form.media_type, location(place), len(body), first=not number) + body
            yield closing(boundary)

    return Response(200, headers, parts())


async def _without_pictures(request: Request, selected: Selected, accepts: Accepts) -> Response:
    """What is no image but can be shown: a report as text, a PDF or a video as it is (REND-01, REND-09)."""
    retrieve = request.services.retrieve
    for entry in selected.entries:
        row = by_uid(entry.stored_syntax) if entry.stored_syntax else None
        types: Sequence[str]
        if row is not None and row.video:
            types = (row.media_type,)
        elif entry.stored_syntax is None and is_report(entry.sop_class):
            types = tuple(TEXTS)
        elif entry.stored_syntax is None and await retrieve.document_type(entry) == _PDF:
            types = (_PDF,)
        else:
            continue
        form = choose_picture(accepts, types)
        if form is None:
            raise _not_acceptable(types)
        etag = f'"{selected.etag}-{zlib.crc32(f"{entry.sop_uid}{form}".encode()):08x}"'
        headers = [*COMMON, (b"etag", etag.encode()), (b"x-content-type-options", b"nosniff")]
        if request.unchanged(etag):
            return Response(304, headers)
        kind = form.media_type
        if kind in TEXTS:
            body = await request.services.render.text(entry, kind)
            kind += "; charset=utf-8"
            headers.append((b"content-security-policy", b"sandbox"))
        elif row is None:
            _, body = await retrieve.bulk(entry, _DOCUMENT)
        elif entry.frames:
            body = await retrieve.frame(entry, 0, row.uid)
        else:
            _, body = await retrieve.received_pixels(entry)
        location = f"{location_of(request.root, entry)}/rendered"
        if not form.multipart:
            headers += [(b"content-type", kind.encode()), (b"content-location", location.encode("latin-1"))]
            return Response(200, headers, body)
        boundary = boundary_for(etag)
        headers.append((b"content-type", content_type(form.media_type, boundary).encode()))
        head = part_head(boundary, kind, location, len(body), first=True)
        return Response(200, headers, b"".join((head, body, closing(boundary))))
    raise NotFound("Nothing here can be shown: there are no frames, no report, no document in PDF and no video.")


def _middle(shown: Sequence[Entry]) -> Entry:
    """The middle instance of the first series."""
    series = [entry for entry in shown if entry.series_uid == shown[0].series_uid]
    return series[len(series) // 2]


def _not_acceptable(types: Sequence[str]) -> NotAcceptable:
    return NotAcceptable(f"The rendered resource can be had as: {', '.join(types)}.")


# --- query parameters ------------------------------------------------------------------------------------------------


def _given(query: Query, name: str) -> str | None:
    """The value of a parameter, None where it is not given. Raises InvalidInput for an empty one (REND-03..06)."""
    value = query.one(name)
    if value is None and any(key == name for key, _ in query.pairs):
        raise InvalidInput(f"The parameter {name} has no value.")
    return value


def quality_of(query: Query, name: str) -> int:
    """The parameter of that name. Raises InvalidInput (REND-03)."""
    value = _given(query, name)
    if value is None:
        return DEFAULT_QUALITY
    if not re.fullmatch(r"[0-9]{1,3}", value) or not 1 <= int(value) <= 100:
        raise InvalidInput(f"{name} must be a whole number from 1 to 100.")
    return int(value)


def _window(query: Query) -> Window | None:
    value = _given(query, "window")
    if value is None:
        return None
    parts = [part.strip() for part in value.split(",")]
    if len(parts) == 3 and _NUMBER.match(parts[0]) and _NUMBER.match(parts[1]) and parts[2].lower() in _CURVES:
        window = Window(float(parts[0]), float(parts[1]), _CURVES[parts[2].lower()])
        if window.is_valid:
            return window
    raise InvalidInput(
        "window must be center,width,function: two numbers, the width above 0 (from 1 for linear), and linear, "
        "linear-exact or sigmoid."
    )


def _viewport(query: Query) -> Viewport | None:
    """`vw,vh[,[sx],[sy],[sw],[sh]]` (REND-04)."""
    value = _given(query, "viewport")
    if value is None:
        return None
    parts = [part.strip() for part in value.split(",")]
    sides = parts[:2]
    region = parts[2:]
    if (
        len(parts) in (2, 6)
        and all(re.fullmatch(r"[0-9]{1,5}", side) and 1 <= int(side) <= MAX_SIDE for side in sides)
        and all(not part or _NUMBER.match(part) for part in region)
    ):
        width, height = map(int, sides)
        if not region:
            return Viewport(width, height)
        left, top, wide, high = (float(part) if part else None for part in region)
        if (left or 0) >= 0 and (top or 0) >= 0 and wide != 0 and high != 0:
            return Viewport(
                width,
                height,
                Region(
                    left or 0.0,
                    top or 0.0,
                    None if wide is None else abs(wide),
                    None if high is None else abs(high),
                    mirrored=wide is not None and wide < 0,
                    flipped=high is not None and high < 0,
                ),
            )
    raise InvalidInput(
        f"viewport must be vw,vh or vw,vh,sx,sy,sw,sh: width and height of the picture from 1 to {MAX_SIDE}, and the "
        "region of the image, of which any part may be left empty; sx and sy from 0, sw and sh not 0."
    )


def _warnings(request: Request, form: PictureForm) -> list[tuple[bytes, bytes]]:
    """What was asked for and is not done (REND-06, REND-07). Raises InvalidInput for what cannot be meant."""
    unsupported = []
    annotation = _given(request.query, "annotation")
    if annotation is not None:
        words = [word.strip() for word in annotation.split(",")]
        if not set(words) <= {"patient", "technique"}:
            raise InvalidInput("annotation must be patient, technique, or both with a comma between.")
        unsupported.append(f"The following annotation values are not supported: {', '.join(words)}")
    profile = _given(request.query, "iccprofile")
    if profile is not None and profile != "no":
        if profile not in ("yes", "srgb", "adobergb", "rommrgb") or form.media_type == "image/gif":
            raise InvalidInput("iccprofile must be no, yes, srgb, adobergb or rommrgb, and no for image/gif.")
        unsupported.append("The iccprofile parameter is not supported: no profile is embedded")
    return [(b"warning", f'299 {request.host} "{text}"'.encode("latin-1")) for text in unsupported]
