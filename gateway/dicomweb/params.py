"""What a request asks for: its query parameters, and the forms that its Accept lists allow (PS3.18 §8.3, §8.7).

    parse_accept(text)      an Accept list as media ranges
    choose(...)             which form of one instance's bytes to send, or None: 406
    choose_picture(...)     which form of a rendered resource to send, or None: 406
    choose_first(...)       which of some media types
    archive_of(...)         whether an archive is wanted
    choose_model(...)       whether data sets are to be JSON or XML
    Query                   the query string, decoded once
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import quote, unquote_to_bytes

from ..domain.errors import InvalidInput, NotAcceptable
from ..domain.ids import DatastoreId, ImageSetId
from ..domain.model import Selection
from ..domain.syntaxes import ALIASES, EXPLICIT_LE, OCTETS, by_media_type, media_type

DICOM: Final = "application/dicom"
DICOM_JSON: Final = "application/dicom+json"
DICOM_XML: Final = "application/dicom+xml"
ZIP: Final = "application/zip"
ANY: Final = "*/*"

_MAX_PARAMETERS: Final = 1000
_MAX_CACHED_ACCEPT: Final = 1024


def resource_url(root: str, study: str, series: str | None = None, sop: str | None = None) -> str:
    """The URL of a study, a series or an instance (PS3.18 §10.1.1); `root` ends before `/studies`.

    What was received as a UID and is none is escaped: it may hold anything, also what ends a header's line.
    """
    uids = (("studies", study), ("series", series), ("instances", sop))
    return root + "".join(f"/{word}/{quote(uid, safe='')}" for word, uid in uids if uid is not None)


# --- Accept ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MediaRange:
    """One element of an Accept list, with multipart/related unwrapped to the type of its parts."""

    type: str
    """Lower case, an alias replaced by its name, e.g. `application/dicom`, `image/*`, `*/*`."""
    multipart: bool | None
    """Whether parts are asked for; None: either (`*/*`)."""
    syntaxes: tuple[str, ...] = ()
    """The transfer-syntax parameters in order: UIDs or `*`; the later ones are fallbacks (NEG-04)."""
    q: float = 1.0


_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_TYPE = re.compile(rf"({_TOKEN})/({_TOKEN})$")
_PIECE = re.compile(r'"(?:[^"\\]|\\.)*"|[^",;]+|[,;]|"')
_QUOTED_PAIR = re.compile(r"\\(.)")


def parse_accept(text: str) -> tuple[MediaRange, ...]:
    """The usable ranges of an Accept list, in order; what is not one is passed over (NEG-01..06)."""
    return tuple(found for element in _elements(text) if (found := _range(element)) is not None)


def _elements(text: str) -> Iterator[list[str]]:
    """Each element's type and parameters as written, quoted strings kept whole."""
    element: list[str] = [""]
    for piece in _PIECE.findall(text):
        if piece == ",":
            yield element
            element = [""]
        elif piece == ";":
            element.append("")
        else:
            element[-1] += piece
    yield element


def _range(element: Sequence[str]) -> MediaRange | None:
    name, *rest = element
    parameters = list(_parameters(rest))
    outer = _TYPE.match(name.strip().lower())
    if outer is None:
        return None
    kind: str = outer.group()
    multipart = None if kind == ANY else False
    if kind in ("multipart/related", "multipart/*"):
        multipart = True
        inner, *unpacked = next((value for key, value in parameters if key == "type"), ANY).split(";")  # NEG-06
        kind = inner.strip().lower()
        parameters += _parameters(unpacked)
        if not _TYPE.match(kind):
            return None
    try:
        q = float(next((value for key, value in parameters if key == "q"), "1"))
    except ValueError:
        return None
    if not 0 <= q <= 1:
        return None
    syntaxes = tuple(value for key, value in parameters if key == "transfer-syntax" and value)
    return MediaRange(ALIASES.get(kind, kind), multipart, syntaxes, q)


def _parameters(texts: Iterable[str]) -> Iterator[tuple[str, str]]:
    for text in texts:
        key, _, value = text.partition("=")
        yield key.strip().lower(), _unquoted(value)


def _unquoted(value: str) -> str:
    value = value.strip()
    if len(value) > 1 and value[0] == value[-1] == '"':
        return _QUOTED_PAIR.sub(r"\1", value[1:-1]).strip()
    return value


def parameters_of(text: str) -> tuple[str, dict[str, str]]:
    """A Content-Type: its media type in lower case, and its parameters without their quotes."""
    name, *rest = next(_elements(text))
    return name.strip().lower(), dict(_parameters(rest))


class Form(NamedTuple):
    """How the bytes of one instance can go out."""

    media_type: str
    """Of the part, without parameters."""
    syntax: str
    """The transfer syntax that they are in."""
    multipart: bool

    @property
    def content_type(self) -> str:
        """Of the part: it always names its transfer syntax, unquoted (TS-07)."""
        return f"{self.media_type}; transfer-syntax={self.syntax}"


class Accepts(NamedTuple):
    """The two Accept lists of a request, as written."""

    parameter: str | None
    """Of the query; ranks first, and holds no wildcards (NEG-08)."""
    header: str | None


@lru_cache(maxsize=256)
def instance_forms(offers: tuple[str, ...]) -> tuple[Form, ...]:
    """The forms of a Part 10 file; `offers` are the transfer syntaxes it can be had in, the stored one first."""
    return tuple(Form(DICOM, syntax, multipart) for syntax in offers for multipart in (True, False))


@lru_cache(maxsize=256)
def frame_forms(offers: tuple[str, ...], *, single: bool) -> tuple[Form, ...]:
    """The forms of frames: compressed ones under their own type, or as octets, as viewers ask (TS-06).

    `single`: there is one frame, which needs no multipart (WADO-09).
    """
    return tuple(
        Form(kind, syntax, multipart)
        for syntax in offers
        for kind in dict.fromkeys((media_type(syntax), OCTETS))
        for multipart in ((True, False) if single else (True,))
    )


def bulk_forms(document_type: str | None) -> tuple[Form, ...]:
    """The forms of a bulk value: octets, or the type that an encapsulated document names (BULK-01)."""
    kinds = (OCTETS,) if document_type is None else (document_type.lower(), OCTETS)
    return tuple(Form(kind, EXPLICIT_LE, multipart) for kind in kinds for multipart in (True, False))


def choose(accepts: Accepts, forms: tuple[Form, ...]) -> Form | None:
    """The form to send, None when none would be accepted (NEG-07, NEG-10, NEG-11).

    `forms` come in the order that decides between equals. Raises InvalidInput for explicit DICOM and rendered types
    in one list (NEG-12).
    """
    if max(len(accepts.parameter or ""), len(accepts.header or "")) > _MAX_CACHED_ACCEPT:
        return _choose(accepts, forms)
    return _choose_cached(accepts, forms)


def _choose(accepts: Accepts, forms: tuple[Form, ...]) -> Form | None:
    for ranges in _lists(accepts):
        ranked: list[tuple[float, int, int]] = []
        for order, form in enumerate(forms):
            fits = [(*fit, r.q) for r in ranges if (fit := _fit(form, r, forms)) is not None]
            if fits:
                _, place, q = max(fits, key=lambda fit: (fit[0], fit[2]))
                if q > 0:
                    ranked.append((-q, place, order))
        if ranked:
            return forms[min(ranked)[2]]
    return None


_choose_cached = lru_cache(maxsize=1024)(_choose)


def _lists(accepts: Accepts) -> Iterator[tuple[MediaRange, ...]]:
    if accepts.parameter is not None:
        ranges = tuple(r for r in parse_accept(accepts.parameter) if "*" not in r.type)
        _refuse_mixture(ranges)
        yield ranges
    if accepts.header:
        ranges = parse_accept(accepts.header)
        if accepts.parameter is None:  # a browser's header means nothing beside the parameter (NEG-09)
            _refuse_mixture(ranges)
        yield ranges
    elif accepts.parameter is None:
        yield parse_accept(ANY)  # NEG-07


_RENDERED = {"image/gif", "image/png", "text/html", "text/plain", "text/xml", "text/rtf"}


def _refuse_mixture(ranges: Sequence[MediaRange]) -> None:
    """image/jpeg and the like count as neither: the resource decides what they mean."""
    named = {r.type for r in ranges if r.q}
    if named & _RENDERED and any(name.startswith(DICOM) or name == OCTETS for name in named):
        raise InvalidInput("Accept mixes DICOM and rendered media types; ask for one kind (PS3.18 §8.7.5).")


def _fit(form: Form, wanted: MediaRange, forms: tuple[Form, ...]) -> tuple[tuple[int, int], int] | None:
    """How specifically a range names a form, and the place of its transfer syntax that does; None when it does not."""
    if wanted.type == ANY and not wanted.syntaxes:
        return ((0, 0), 0) if form == _default(forms) else None
    if wanted.multipart is not None and wanted.multipart != form.multipart:
        return None
    if wanted.syntaxes:
        place = next((n for n, uid in enumerate(wanted.syntaxes) if uid in (form.syntax, "*")), -1)
        if place < 0:
            return None
        named = 0 if wanted.syntaxes[place] == "*" else 2
    elif form.syntax == _default_syntax(form, forms):
        place, named = 0, 1
    else:
        return None
    own = form.media_type.lower()
    if wanted.type == own:
        return (2, named), place
    if wanted.type == own.partition("/")[0] + "/*":
        return (1, named), place
    # A `*` behind a named transfer syntax takes what there is, whatever its type (NEG-04).
    if wanted.type == ANY or (place and not named and wanted.type.startswith("image/")):
        return (0, named), place
    return None


def _default(forms: tuple[Form, ...]) -> Form:
    """What `*/*` means: uncompressed multipart, if it is to be had."""
    usual = (form for form in forms if form.multipart and form[:2] in ((DICOM, EXPLICIT_LE), (OCTETS, EXPLICIT_LE)))
    return next(usual, forms[0])


def _default_syntax(form: Form, forms: tuple[Form, ...]) -> str:
    """What a media type without transfer-syntax means; where that is not to be had, what is stored (TS-01).

    What is stored in the type that is asked for goes before the type's own default: it costs nothing, and the part
    names it (NEG-10).
    """
    if media_type(forms[0].syntax) == form.media_type:
        return forms[0].syntax
    syntaxes = by_media_type(form.media_type)
    default = syntaxes[0].uid if syntaxes else EXPLICIT_LE
    return default if any(other.syntax == default for other in forms) else forms[0].syntax


class PictureForm(NamedTuple):
    """How a rendered resource can go out."""

    media_type: str
    multipart: bool


def choose_picture(accepts: Accepts, types: Sequence[str]) -> PictureForm | None:
    """The form of a rendered resource that can be had in `types`, the default first; None: 406 (NEG-10, NEG-11).

    Transfer syntaxes are passed over (REND-02). A request for octets gets the default, in one part: viewers fetch
    thumbnails with the header of their bulk data (CL-05). Raises InvalidInput for a mixture of kinds (NEG-12).
    """
    for ranges in _lists(accepts):
        ranked: list[tuple[float, int, int, bool]] = []
        for order, name in enumerate(types):
            fits = []
            for wanted in ranges:
                if wanted.type == name.lower():
                    fits.append((2, wanted.q, bool(wanted.multipart)))
                elif wanted.type == name.lower().partition("/")[0] + "/*":
                    fits.append((1, wanted.q, bool(wanted.multipart)))
                elif wanted.type in (ANY, OCTETS) and not order:
                    fits.append((0, wanted.q, bool(wanted.multipart) and wanted.type == ANY))
            if fits:
                how, q, multipart = max(fits)
                if q > 0:
                    ranked.append((-q, -how, order, multipart))
        if ranked:
            _, _, order, multipart = min(ranked)
            return PictureForm(types[order], multipart)
    return None


_ANSWERS: Final[Sequence[tuple[str, Sequence[tuple[str, bool]]]]] = (
    (DICOM_JSON, ((DICOM_JSON, False), ("application/json", False), ("application/*", False), (ANY, False))),
    # Never for */*, nor for application/xml, which browsers ask for before anything (CL-16).
    (DICOM_XML, ((DICOM_XML, False), (DICOM_XML, True), ("application/*", True), (ANY, True))),
)
"""How data sets without pixels are written, the default first: media type -> the ranges that mean it, the most specific
first; True: as the type of parts."""


def choose_model(accepts: Accepts) -> str:
    """DICOM_JSON or DICOM_XML, for metadata, searches and the answers of stores (NEG-10, NEG-11, NEG-13).

    Whether XML goes out in parts is the resource's business. Raises NotAcceptable, InvalidInput.
    """
    if accepts.parameter is None and accepts.header in (None, DICOM_JSON, ANY):
        return DICOM_JSON
    for ranges in _lists(accepts):
        wanted = {(r.type, bool(r.multipart)): r.q for r in reversed(ranges)}
        best, chosen = 0.0, ""
        for model, meanings in _ANSWERS:
            q = next((wanted[meaning] for meaning in meanings if meaning in wanted), 0.0)
            if q > best:
                best, chosen = q, model
        if chosen:
            return chosen
    raise NotAcceptable(f'This resource can be had as {DICOM_JSON} or multipart/related; type="{DICOM_XML}".')


def choose_first(accepts: Accepts, types: Sequence[str]) -> str:
    """The type of a whole body that is accepted most, the first among equals. Raises NotAcceptable."""
    form = choose_picture(accepts, types)
    if form is None:
        raise NotAcceptable(f"This resource can be had as {' or '.join(types)}.")
    return form.media_type


def archive_of(accepts: Accepts) -> Accepts | None:
    """Where an archive is wanted more than parts, what is accepted for the files in it; else None (NEG-16)."""
    if not any(text and "zip" in text.lower() for text in accepts):  # which is nearly always
        return None
    for ranges in _lists(accepts):
        archives = [r for r in ranges if r.type == ZIP and r.q]
        if not archives:
            continue
        best = max(archives, key=lambda r: r.q)
        if best.q <= max((r.q for r in ranges if r.type in (DICOM, "application/*", ANY)), default=0.0):
            return None
        files = [f"{DICOM}; transfer-syntax={uid}" for uid in best.syntaxes] or [DICOM]
        return Accepts(None, ", ".join(f"{name}; q={1 - place / 100}" for place, name in enumerate(files[:50])))
    return None


# --- query -----------------------------------------------------------------------------------------------------------


class Query:
    """The parameters of a query string, percent-decoded once; `+` is a space (QIDO-08)."""

    __slots__ = ("_accept", "pairs")

    def __init__(self, raw: bytes) -> None:
        self.pairs: list[tuple[str, str]] = []
        self._accept: list[str] = []
        if not raw:
            return
        fields = raw.split(b"&")
        if len(fields) > _MAX_PARAMETERS:
            raise InvalidInput(f"The query has more than {_MAX_PARAMETERS} parameters.")
        for field in fields:
            if field:
                name, _, value = field.partition(b"=")
                self.pairs.append((_decoded(name), _decoded(value)))
                if self.pairs[-1][0] == "accept":
                    self._accept.append(_text(unquote_to_bytes(value)))  # a raw + stays one (NEG-08)

    def one(self, name: str) -> str | None:
        """The value of a parameter that may come once; an empty one counts as absent. Raises InvalidInput."""
        values = [value for key, value in self.pairs if key == name]
        if len(values) > 1:
            raise InvalidInput(f"The parameter {name} is given more than once.")
        return values[0] or None if values else None

    @property
    def accept(self) -> str | None:
        """The `accept` parameters as one list."""
        return ", ".join(self._accept) or None


def _decoded(value: bytes) -> str:
    return _text(unquote_to_bytes(value.replace(b"+", b" ")))


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise InvalidInput("The query is not valid UTF-8 after percent-decoding.") from None


_UID = re.compile(r"[0-9.]{1,64}\Z")
_IMAGE_SET = re.compile(r"[0-9a-z]{32}\Z")
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)\Z")


def is_uid(text: str) -> bool:
    """Whether a path segment looks like a UID (ROOT-06)."""
    return _UID.match(text) is not None


def image_set_of(query: Query) -> ImageSetId | None:
    """`?imageSetId=`. Raises InvalidInput."""
    value = query.one("imageSetId")
    if value is not None and not _IMAGE_SET.match(value):
        raise InvalidInput("imageSetId must be 32 lower-case letters and digits.")
    return None if value is None else ImageSetId(value)


def as_of(query: Query) -> datetime | None:
    """`?asOf=`: RFC 3339 with a zone. Raises InvalidInput."""
    value = query.one("asOf")
    if value is None:
        return None
    # A raw + of the offset has become a space.
    value = re.sub(r" (\d\d:\d\d)\Z", r"+\1", value)
    try:
        if _RFC3339.match(value):
            return datetime.fromisoformat(value.upper().replace("Z", "+00:00"))
    except ValueError:
        pass
    raise InvalidInput("asOf must be an RFC 3339 time with a zone, such as 2026-11-05T14:30:00Z.")


def selection(
    datastore: DatastoreId, query: Query, study: str, series: str | None = None, sop: str | None = None
) -> Selection:
    """The instances that a path and its query mean (architecture 0, Time). Raises InvalidInput."""
    if not query.pairs:
        return Selection(datastore, study, series, sop)
    number = query.one("version")
    moment = as_of(query)
    if number is not None:
        if series is None:
            raise InvalidInput("version is of a series' image set: a study has none. Use asOf.")
        if not re.fullmatch(r"[1-9][0-9]{0,8}", number):
            raise InvalidInput("version must be a whole number from 1.")
        if moment is not None:
            raise InvalidInput("Give either version or asOf.")
    if (charset := query.one("charset")) is not None and charset.lower() not in ("utf-8", "utf8"):
        raise InvalidInput("The only charset is utf-8.")
    return Selection(datastore, study, series, sop, image_set_of(query), int(number) if number else None, moment)


def frame_numbers(text: str) -> list[int]:
    """Frame numbers from 1, as listed in a path, in the order asked for (WADO-05). Raises InvalidInput."""
    if not re.fullmatch(r"[0-9]{1,9}(,[0-9]{1,9})*", text):
        raise InvalidInput("A frame list is numbers from 1, separated by commas.")
    numbers = [int(number) for number in text.split(",")]
    if 0 in numbers:
        raise InvalidInput("Frames are numbered from 1.")
    if len(set(numbers)) != len(numbers):
        raise InvalidInput("A frame is listed more than once.")
    return numbers
