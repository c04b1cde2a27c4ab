"""What the service says of itself, made of the table of routes: capabilities (PS3.18 §8.9; CAP-01, CAP-03), OpenAPI.

    wadl(...), wadl_as_json(...)    the capabilities description: one tree, as XML and as JSON
    openapi(...)                    an OpenAPI 3.1 document
"""

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple
from xml.sax.saxutils import escape, quoteattr

from pydicom.datadict import keyword_for_tag

from .. import __version__
from ..domain.query import SUPPORTED, Level

WADL: Final = "application/vnd.sun.wadl+xml"
JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"

_TITLE: Final = "Imageset Gateway"
_ABOUT: Final = (
    "DICOMweb over versioned image sets. Text is UTF-8. Instances, frames and pixel data are to be had in Explicit VR "
    "Little Endian, as they are stored (transfer-syntax=*), and where they are stored without loss in HTJ2K, "
    "JPEG 2000, JPEG-LS and RLE. A transfer syntax is chosen by the parameter transfer-syntax of a media type in "
    "Accept. Faults are application/problem+json."
)


class Parameter(NamedTuple):
    """A query parameter."""

    name: str
    meaning: str
    schema: Mapping[str, Any] = {"type": "string"}


class Operation(NamedTuple):
    """One method of one resource, as callers see it."""

    meaning: str
    gives: tuple[str, ...]
    """Media types of a success; none: 204."""
    parameters: tuple[Parameter, ...] = ()
    takes: tuple[str, ...] = ()
    """Media types of the body."""


_COUNT: Final = {"type": "integer", "minimum": 0}
ACCEPT: Final = Parameter("accept", "Media types, before those of the Accept header and without wildcards.")
PLACE: Final = (
    Parameter("imageSetId", "Of this image set instead of the primary ones."),
    Parameter("asOf", "As things were then: RFC 3339 with a zone.", {"type": "string", "format": "date-time"}),
)
VERSION: Final = Parameter("version", "Of the series' image set, from 1.", {"type": "integer", "minimum": 1})
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
THUMBNAIL: Final = (Parameter("viewport", "width,height of the picture, into which the image is fitted."),)
PICTURE: Final = (
    Parameter("viewport", "width,height of the picture; and sx,sy,sw,sh of the image: negative sw and sh flip it."),
    Parameter("window", "center,width,function, the last of which is linear, linear-exact or sigmoid."),
    Parameter(
        "quality",
        "Of a JPEG, on the scale of its encoders: 100 the best. PNG and GIF lose nothing but colours.",
        {"type": "integer", "minimum": 1, "maximum": 100},
    ),
    Parameter("annotation", "patient, technique, or both: text in the corners."),
    Parameter("iccprofile", "no; others are taken, and answered by a Warning.", {"type": "string"}),
)
URI: Final = (
    Parameter("requestType", "WADO.", {"type": "string", "const": "WADO"}),
    Parameter("studyUID", "The study."),
    Parameter("seriesUID", "The series."),
    Parameter("objectUID", "The instance."),
    Parameter("contentType", "Media types, with commas between them; by default a picture of an image of one frame."),
    Parameter("transferSyntax", "Of application/dicom: a UID, or * for the one that it is stored in."),
    Parameter("frameNumber", "Of a picture, from 1.", {"type": "integer", "minimum": 1}),
    Parameter("rows", "Height of a picture at most.", {"type": "integer", "minimum": 1}),
    Parameter("columns", "Width of a picture at most.", {"type": "integer", "minimum": 1}),
    Parameter("region", "left,top,right,bottom of the part to be shown, each from 0 to 1 of the image."),
    Parameter("windowCenter", "With windowWidth.", {"type": "number"}),
    Parameter("windowWidth", "With windowCenter.", {"type": "number"}),
    Parameter("imageQuality", "Of a JPEG, from 1 to 100.", {"type": "integer", "minimum": 1, "maximum": 100}),
    Parameter("annotation", "patient, technique, or both: text in the corners."),
    Parameter("charset", "utf-8."),
)
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
        "doc": {"@title": f"{_TITLE} {__version__}", "@xml:lang": "en", "#text": _ABOUT},
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
            {"@name": one.name, "@style": "query", "@type": "xs:string", "doc": {"#text": one.meaning}}
            for one in operation.parameters
        ]
    if operation.takes:
        request["representation"] = [{"@mediaType": kind} for kind in operation.takes]
    response: dict[str, Any] = {"@status": "200" if operation.gives else "204"}
    if operation.gives:
        response["representation"] = [{"@mediaType": kind} for kind in operation.gives]
    return {
        "@name": name,
        "@id": _identifier(path, name),
        "doc": {"#text": operation.meaning},
        **({"request": request} if request else {}),
        "response": response,
    }


def _identifier(path: str, method: str) -> str:
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


@lru_cache(maxsize=4)
def _problem_schema() -> dict[str, Any]:
    texts = {name: {"type": "string"} for name in ("type", "title", "detail", "code", "message")}
    return {"type": "object", "properties": {**texts, "status": {"type": "integer"}}, "required": ["status", "detail"]}


def openapi(table: Table) -> dict[str, Any]:
    """The OpenAPI 3.1 document; HEAD goes where GET goes, and OPTIONS tells what may be done."""
    paths: dict[str, Any] = {}
    for path, methods in table.items():
        item: dict[str, Any] = {}
        if values := re.findall(r"\{(\w+)\}", path):
            item["parameters"] = [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in values
            ]
        for name, operation in methods.items():
            item[name.lower()] = _operation(path, name, operation)
        paths[path] = item
    data_store = {"default": "default", "description": "The id of a data store."}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": _TITLE,
            "version": __version__,
            "description": f"{_ABOUT} The HealthImaging API of the same server is that of AWS's service model.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [
            {"url": "/dicomweb", "description": "The default data store."},
            {"url": "/datastore/{datastoreId}", "description": "Any.", "variables": {"datastoreId": data_store}},
        ],
        "security": [{}, {"basic": []}, {"bearer": []}],
        "paths": paths,
        "components": {
            "schemas": {"Problem": _problem_schema()},
            "responses": {
                "Problem": {
                    "description": "A fault (RFC 9457).",
                    "content": {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}},
                }
            },
            "securitySchemes": {
                "basic": {"type": "http", "scheme": "basic"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
    }


def _operation(path: str, method: str, operation: Operation) -> dict[str, Any]:
    success: dict[str, Any] = {"description": "Done."}
    if operation.gives:
        success = {"description": "What was asked for.", "content": {kind: {} for kind in operation.gives}}
    made: dict[str, Any] = {
        "operationId": _identifier(path, method),
        "summary": operation.meaning,
        "responses": {
            "200" if operation.gives else "204": success,
            "default": {"$ref": "#/components/responses/Problem"},
        },
    }
    if operation.parameters:
        made["parameters"] = [
            {"name": one.name, "in": "query", "description": one.meaning, "schema": dict(one.schema)}
            for one in operation.parameters
        ]
    if operation.takes:
        made["requestBody"] = {"required": True, "content": {kind: {} for kind in operation.takes}}
    return made
