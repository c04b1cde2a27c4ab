"""Rendered resources and thumbnails of a study, series, instance or frame (PS3.18 §8.3.5, §8.7.4, §10.4.1.1.3..4).

One request gives one picture: of the frame named, of an instance's first frame, of the middle instance of a study's or
series' first pictures. Whoever accepts multipart gets a part for each instance, and a list of frames always is one.
A presentation state is shown by the first image that it is about, or in parts by each of them.
"""

import hashlib
import re
import zlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Final, NamedTuple

from ..domain.caption import KINDS
from ..domain.display import Curve, Window
from ..domain.errors import InvalidInput, NotAcceptable, NotFound
from ..domain.model import Entry, Selected
from ..domain.pixels import THUMBNAIL_SIDE
from ..domain.presentation import DEFAULT_QUALITY, MAX_SIDE, Region, Rendering, Viewport
from ..domain.report import FORMS as TEXTS
from ..domain.report import is_report
from ..domain.syntaxes import by_uid
from ..services.render import Sight
from ..services.retrieve import frame_indexes, in_order
from .exchange import Request, Response
from .multipart import boundary_for, closing, content_type, part_head
from .params import Accepts, PictureForm, Query, choose_picture, frame_numbers
from .wado import COMMON, location_of, select, selection_of

PICTURES: Final = ("image/jpeg", "image/png", "image/gif")
"""The default first (REND-01)."""
_PDF: Final = "application/pdf"
_DOCUMENT: Final = "00420011"
_AHEAD: Final = 4
"""Pictures that are made while an earlier one is sent."""
_CURVES: Final = {"linear": Curve.LINEAR, "linear-exact": Curve.LINEAR_EXACT, "sigmoid": Curve.SIGMOID}
_NUMBER: Final = re.compile(r"[+-]?([0-9]{1,12}(\.[0-9]{0,12})?|\.[0-9]{1,12})([eE][+-]?[0-9]{1,2})?\Z")


class Look(NamedTuple):
    """How a picture is to be."""

    window: Window | None
    viewport: Viewport | None
    quality: int
    annotation: tuple[str, ...]
    """Kinds of `caption.KINDS`."""


class _Place(NamedTuple):
    """A resource that a picture is asked of."""

    entry: Entry
    path: str
    """Of the resource, below the instance."""
    frame: int = 0
    """From 0."""
    sight: Sight | None = None
    """What is seen, where that is known already."""


async def rendered(
    request: Request, study: str, series: str | None = None, sop: str | None = None, frames: str | None = None
) -> Response:
    """Pictures (REND-01..10); a report as text, a document or a video as it is (REND-09)."""
    numbers = frame_numbers(frames) if frames is not None else None
    query = request.query
    look = Look(_window(query), _viewport(query), quality_of(query, "quality"), annotation_of(query))
    return await show(request, await select(request, study, series, sop), request.accepts, look, numbers)


async def show(
    request: Request, selected: Selected, accepts: Accepts, look: Look, numbers: Sequence[int] | None = None
) -> Response:
    """What was selected as it is to look; `numbers` are those of frames, from 1."""
    shown = [entry for entry in selected.entries if request.services.render.shows(entry)]
    states = [] if shown else _states(request, selected)
    if states and (look.window or (look.viewport and look.viewport.region)):
        raise InvalidInput("A presentation state has its own window and region: leave them out.")
    if not shown and not states:
        return await _without_pictures(request, selected, accepts)
    form = choose_picture(accepts, PICTURES)
    if form is None:
        raise _not_acceptable(PICTURES)
    wanted = Rendering(form.media_type, look.window, look.viewport, look.quality)
    warnings = _warnings(request, form)
    if numbers is not None:
        entry = [*shown, *states][0]
        places = [_Place(entry, f"/frames/{n + 1}/rendered", n) for n in frame_indexes(entry, numbers)]
        form = PictureForm(form.media_type, form.multipart or len(places) > 1)
    elif states:
        asked = states if form.multipart else [_middle(states)]
        places = [
            place
            for state in asked
            for place in await _seen(request, state, "/rendered", look.annotation, first=not form.multipart)
        ]
    elif form.multipart:
        places = [_Place(entry, "/rendered") for entry in shown]
    else:
        places = [_Place(_middle(shown), "/rendered")]
    return await _answer(request, selected, form, wanted, places, warnings, look.annotation)


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
    states = [] if shown else _states(request, selected)
    if not shown and not states:
        raise NotFound("Nothing here has frames that could be shown.")
    form = choose_picture(request.accepts, PICTURES)
    if form is None:
        raise _not_acceptable(PICTURES)
    entry = _middle(states or shown)
    if numbers is not None:
        place = _Place(entry, f"/frames/{numbers[0]}/thumbnail", frame_indexes(entry, numbers)[0])
    elif states:
        (place,) = await _seen(request, entry, "/thumbnail", (), first=True)
    else:
        place = _Place(entry, "/thumbnail", sight=await render.sight(entry, None))
    single = PictureForm(form.media_type, False)
    wanted = Rendering(form.media_type, None, viewport, has_texts=False)
    return await _answer(request, selected, single, wanted, [place], [], ())


def _states(request: Request, selected: Selected) -> list[Entry]:
    """The presentation states, where nothing else was selected: beside images, these are shown as they are."""
    states = [entry for entry in selected.entries if request.services.render.is_state(entry)]
    return states if len(states) == len(selected.entries) else []


async def _seen(request: Request, state: Entry, path: str, annotation: Sequence[str], *, first: bool) -> list[_Place]:
    """The images that a presentation state is about, or the first of them."""
    selection = selection_of(request, state.study_uid, state.series_uid, state.sop_uid)
    sights = await request.services.render.sights(state, selection, annotation, first=first)
    return [_Place(state, path, sight=sight) for sight in sights]


async def _answer(
    request: Request,
    selected: Selected,
    form: PictureForm,
    wanted: Rendering,
    places: Sequence[_Place],
    warnings: Sequence[tuple[bytes, bytes]],
    annotation: Sequence[str],
) -> Response:
    """The only picture, or each as a part."""
    render = request.services.render

    async def sight(place: _Place) -> Sight:
        return place.sight or await render.sight(place.entry, place.frame, annotation)

    first = places[0]
    known = [place.sight.validator for place in places if place.sight is not None]
    if known:
        validator = known[0] if len(known) == 1 else hashlib.sha256("".join(known).encode()).hexdigest()[:32]
    elif all(place.entry is first.entry for place in places):
        # Pictures of one instance change with its pixels and the way to show them, and with nothing else.
        validator = (await sight(first)).validator
    else:
        validator = selected.etag
    what = repr((form, wanted, annotation, [(place.entry.sop_uid, place.path) for place in places]))
    etag = f'"{validator}-{zlib.crc32(what.encode()):08x}"'
    headers = [*COMMON, (b"etag", etag.encode()), *warnings]
    if request.unchanged(etag):
        return Response(304, headers)

    async def picture(place: _Place) -> bytes:
        return await render.picture(await sight(place), wanted)

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


def annotation_of(query: Query) -> tuple[str, ...]:
    """The kinds of text that are to be drawn. Raises InvalidInput (REND-06)."""
    value = _given(query, "annotation")
    words = [] if value is None else [word.strip() for word in value.split(",")]
    if not set(words) <= set(KINDS):
        raise InvalidInput("annotation must be patient, technique, or both with a comma between.")
    return tuple(kind for kind in KINDS if kind in words)


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
    """What was asked for and is not done (REND-07). Raises InvalidInput for what cannot be meant."""
    unsupported = []
    profile = _given(request.query, "iccprofile")
    if profile is not None and profile != "no":
        if profile not in ("yes", "srgb", "adobergb", "rommrgb") or form.media_type == "image/gif":
            raise InvalidInput("iccprofile must be no, yes, srgb, adobergb or rommrgb, and no for image/gif.")
        unsupported.append("The iccprofile parameter is not supported: no profile is embedded")
    return [(b"warning", f'299 {request.host} "{text}"'.encode("latin-1")) for text in unsupported]
