"""What the service says of itself, made of the table of routes: the capabilities (PS3.18 §8.9; CAP-01, CAP-03).

    Operation, Parameter            what is told of a method, here and in OpenAPI (`http.openapi`)
    wadl(...), wadl_as_json(...)    the capabilities description: one tree, as XML and as JSON
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple
from xml.sax.saxutils import escape, quoteattr

from pydicom.datadict import keyword_for_tag

from .. import __version__
from ..domain.query import SUPPORTED, Level
from .removal import REJECTIONS

WADL: Final = "application/vnd.sun.wadl+xml"
JSON: Final = "application/json"

TITLE: Final = "Imageset Gateway"
ABOUT: Final = (
    "DICOMweb over versioned image sets. Text is UTF-8. Instances, frames and pixel data are to be had in Explicit VR "
    "Little Endian, as they are stored (transfer-syntax=*), and where they are stored without loss in HTJ2K, "
    "JPEG 2000, JPEG-LS and RLE. A transfer syntax is chosen by the parameter transfer-syntax of a media type in "
    "Accept. Faults are application/problem+json."
)


class Parameter(NamedTuple):
    """A parameter of the query, or a header."""

    name: str
    meaning: str
    schema: Mapping[str, Any] = {"type": "string"}
    place: Literal["query", "header"] = "query"


class Operation(NamedTuple):
    """One method of one resource, as callers see it."""

    meaning: str
    gives: tuple[str, ...]
    """Media types of a success; none: 204."""
    parameters: tuple[Parameter, ...] = ()
    takes: tuple[str, ...] = ()
    """Media types of the body."""
    also: tuple[int, ...] = ()
    """Statuses beside that success, and beside those that every request may get."""
    schema: str = ""
    """Of what is given as JSON: its name among the schemas of the OpenAPI document."""


def _matching(pattern: str) -> dict[str, Any]:
    return {"type": "string", "pattern": f"^(?:{pattern})$"}


_COUNT: Final = {"type": "integer", "minimum": 0, "maximum": 10**12 - 1}
_VERSION: Final = {"type": "integer", "minimum": 1, "maximum": 10**9 - 1}
_DECIMAL: Final = r"[+-]?([0-9]{1,12}(\.[0-9]{0,12})?|\.[0-9]{1,12})([eE][+-]?[0-9]{1,2})?"
_SIDES: Final = r"[0-9]{1,5},[0-9]{1,5}"
_WORDS: Final = "(patient|technique)(,(patient|technique))*"
VALUES: Final[Mapping[str, Mapping[str, Any]]] = {
    **{name: _matching("[0-9.]{1,64}") for name in ("study", "series", "sop")},
    "frames": _matching("[0-9]{1,9}(,[0-9]{1,9})*"),
    "code": {"type": "string", "enum": [*REJECTIONS]},
    "path": _matching(r"[0-9A-Fa-f]{8}(\.[0-9]{1,6}\.[0-9A-Fa-f]{8})*"),
}
"""What the values in a path look like."""
ACCEPT: Final = Parameter("accept", "Media types, before those of the Accept header and without wildcards.")
PLACE: Final = (
    Parameter("imageSetId", "Of this image set instead of the primary ones.", _matching("[0-9a-z]{32}")),
    Parameter("asOf", "As things were then: RFC 3339 with a zone.", {"type": "string", "format": "date-time"}),
)
VERSION: Final = Parameter("version", "Of the series' image set, from 1; a study has none.", _VERSION)
SEARCH: Final = (
    Parameter("limit", "Rows at most.", _COUNT),
    Parameter("offset", "Rows to pass over.", _COUNT),
    Parameter(
        "fuzzymatching",
        "true: a word of a name matches the words that begin with it, whatever their case and accents, and all words "
        "have to be found; false: literal matching.",
        {"type": "boolean"},
    ),
    Parameter("includefield", "Attributes to be in the rows beside the usual ones: keywords or tags; all."),
    *PLACE,
)
THUMBNAIL: Final = (
    Parameter("viewport", "width,height of the picture, into which the image is fitted.", _matching(_SIDES)),
)
PICTURE: Final = (
    Parameter(
        "viewport",
        "width,height of the picture; and sx,sy,sw,sh of the image: negative sw and sh flip it.",
        _matching(rf"{_SIDES}((,({_DECIMAL})?){{4}})?"),
    ),
    Parameter(
        "window",
        "center,width,function, the last of which is linear, linear-exact or sigmoid.",
        _matching(rf"{_DECIMAL},{_DECIMAL},(linear|linear-exact|sigmoid)"),
    ),
    Parameter(
        "quality",
        "Of a JPEG, on the scale of its encoders: 100 the best. PNG and GIF lose nothing but colours.",
        {"type": "integer", "minimum": 1, "maximum": 100},
    ),
    Parameter("annotation", "patient, technique, or both: text in the corners.", _matching(_WORDS)),
    Parameter(
        "iccprofile",
        "no; others are taken, and answered by a Warning.",
        {"type": "string", "enum": ["no", "yes", "srgb", "adobergb", "rommrgb"]},
    ),
)
URI: Final = (
    Parameter("requestType", "WADO.", {"type": "string", "const": "WADO"}),
    Parameter("studyUID", "The study.", VALUES["study"]),
    Parameter("seriesUID", "The series.", VALUES["series"]),
    Parameter("objectUID", "The instance.", VALUES["sop"]),
    Parameter("contentType", "Media types, with commas between them; by default a picture of an image of one frame."),
    Parameter(
        "transferSyntax",
        "Of application/dicom: a UID, or * for the one that it is stored in.",
        _matching(r"\*|[0-9.]{1,64}"),
    ),
    Parameter("frameNumber", "Of a picture, from 1.", {"type": "integer", "minimum": 1}),
    Parameter("rows", "Height of a picture at most.", {"type": "integer", "minimum": 1}),
    Parameter("columns", "Width of a picture at most.", {"type": "integer", "minimum": 1}),
    Parameter(
        "region",
        "left,top,right,bottom of the part to be shown, each from 0 to 1 of the image.",
        _matching(rf"{_DECIMAL}(,{_DECIMAL}){{3}}"),
    ),
    Parameter("windowCenter", "With windowWidth.", {"type": "number"}),
    Parameter("windowWidth", "With windowCenter.", {"type": "number"}),
    Parameter("imageQuality", "Of a JPEG, from 1 to 100.", {"type": "integer", "minimum": 1, "maximum": 100}),
    Parameter("annotation", "patient, technique, or both: text in the corners.", _matching(_WORDS)),
    Parameter("charset", "utf-8.", _matching("[Uu][Tt][Ff]-?8")),
)
UNCHANGED: Final = (Parameter("If-None-Match", "ETags that the client has: 304 if one is current.", place="header"),)
RANGES: Final = (
    Parameter("Range", "One range of bytes: 206, or 416 when it begins behind the end.", place="header"),
    Parameter("If-Range", "The ETag that Range is meant for.", place="header"),
)
IF_MATCH: Final = (Parameter("If-Match", "ETags, one of which has to be current: else 412.", place="header"),)
CONFLICTS: Final = (
    Parameter("maxResults", "Conflicts at most.", {"type": "integer", "minimum": 1, "maximum": 1000}),
    Parameter("nextToken", "Of the page before."),
)


def keys(level: Level) -> tuple[Parameter, ...]:
    """The attributes that a search at a level matches."""
    named = sorted(keyword_for_tag(tag) or f"{tag:08X}" for tag in SUPPORTED[level])
    return tuple(Parameter(name, "Matching key.") for name in named)


Table = Mapping[str, Mapping[str, Operation]]
"""Path below the base -> method -> what it does; values of a path are in braces."""


def wadl_as_json(table: Table, base: str) -> dict[str, Any]:
    """The tree of the WADL: attributes have an @, the text of an element is #text."""
    root: dict[str, Any] = {}
    for path, methods in table.items():
        node = root
        for segment in path.strip("/").split("/") if path != "/" else ():
            node = node.setdefault("resource", {}).setdefault(segment, {})
        node["method"] = [_method(path, name, operation) for name, operation in methods.items()]
    of_base = {"@path": "", "method": root.pop("method")} if "method" in root else None
    listed = [*([of_base] if of_base else []), *_resource(root)["resource"]]
    application = {
        "@xmlns": "http://wadl.dev.java.net/2009/02",
        "@xmlns:xs": "http://www.w3.org/2001/XMLSchema",
        "doc": {"@title": f"{TITLE} {__version__}", "@xml:lang": "en", "#text": ABOUT},
        "resources": {"@base": base, "resource": listed},
    }
    return {"application": application}


def _resource(node: Mapping[str, Any]) -> dict[str, Any]:
    """A node with the resources below it as a list."""
    made: dict[str, Any] = {}
    if "method" in node:
        made["method"] = node["method"]
    nested = []
    for segment, inner in node.get("resource", {}).items():
        one: dict[str, Any] = {"@path": segment}
        if segment.startswith("{"):
            one["param"] = {"@name": segment[1:-1], "@style": "template", "@type": "xs:string"}
        nested.append({**one, **_resource(inner)})
    if nested:
        made["resource"] = nested
    return made


def _method(path: str, name: str, operation: Operation) -> dict[str, Any]:
    request: dict[str, Any] = {}
    if operation.parameters:
        request["param"] = [
            {"@name": one.name, "@style": one.place, "@type": "xs:string", "doc": {"#text": one.meaning}}
            for one in operation.parameters
        ]
    if operation.takes:
        request["representation"] = [{"@mediaType": kind} for kind in operation.takes]
    response: dict[str, Any] = {"@status": "200" if operation.gives else "204"}
    if operation.gives:
        response["representation"] = [{"@mediaType": kind} for kind in operation.gives]
    return {
        "@name": name,
        "@id": identifier(path, name),
        "doc": {"#text": operation.meaning},
        **({"request": request} if request else {}),
        "response": response,
    }


def identifier(path: str, method: str) -> str:
    """The name of a method of a resource, unique in a table."""
    words = [method.lower(), *re.findall("[A-Za-z]+", path)]
    return "".join(word.capitalize() if place else word for place, word in enumerate(words))


def wadl(table: Table, base: str) -> bytes:
    """The tree of `wadl_as_json` as XML."""
    text = "".join(_xml("application", wadl_as_json(table, base)["application"]))
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'.encode()


def _xml(name: str, node: Mapping[str, Any]) -> Iterator[str]:
    attributes = "".join(f" {key[1:]}={quoteattr(value)}" for key, value in node.items() if key.startswith("@"))
    yield f"<{name}{attributes}>{escape(node.get('#text', ''))}"
    for key, inner in node.items():
        if not key.startswith(("@", "#")):
            for one in inner if isinstance(inner, list) else [inner]:
                yield from _xml(key, one)
    yield f"</{name}>"
