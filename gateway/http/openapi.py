"""`/openapi.json`: all that the HTTP faces offer, as one OpenAPI 3.1 document.

DICOMweb is described by its table of routes, the HealthImaging API by its service model, and the rest here.
"""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Final

import orjson

from .. import __version__
from ..awsjson import model
from ..awsjson import openapi as described
from ..dicomweb.capabilities import ABOUT, JSON, TITLE, VALUES, Operation, Parameter, identifier
from ..dicomweb.params import DICOM, DICOM_JSON
from ..dicomweb.routes import TOLD
from ..healthimaging.operations import PREVIEWED, SERVED
from ..telemetry import METRICS_TYPE
from .history import DEFAULT_LIMIT, MAX_LIMIT

_ID: Final = {"type": "string", "pattern": "^[0-9a-z]{32}$"}
_ROOT: Final = ({"url": "/", "description": "The gateway."},)
_ALWAYS: Final = (400, 401, 403, 404, 414, 500, 503)
"""What every resource may answer."""
_API_FAULTS: Final = (400, 402, 403, 404, 406, 409, 413, 414, 429, 500, 503)
_WITH_ETAG: Final = (200, 206, 304)

_LISTED: Final = Parameter("limit", "Entries at most.", {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT})
_CHANGES: Final = Operation(
    "What happened to image sets, in order and without gaps.",
    (JSON,),
    (
        Parameter("after", "The number behind which to go on.", {"type": "integer", "minimum": 0, "maximum": 2**53}),
        _LISTED._replace(meaning=f"Entries at most; {DEFAULT_LIMIT} unless it is given."),
    ),
    schema="Changes",
)
_WHICH: Final = {"type": "integer", "minimum": 1, "maximum": 2**31 - 1}
_DIFF: Final = Operation(
    "The attributes and instances that differ between two versions of an image set.",
    (JSON,),
    (
        Parameter("from", "A version; the one before `to` unless it is given.", _WHICH),
        Parameter("to", "A version; the latest unless it is given.", _WHICH),
    ),
    also=(409,),
    schema="Differences",
)
_OURS: Final[Mapping[str, Mapping[str, Operation]]] = {
    "/livez": {"GET": Operation("Whether the process answers.", (JSON,), schema="Live")},
    "/readyz": {"GET": Operation("Whether it can do its work; 503 where it cannot.", (JSON,), schema="Ready")},
    "/metrics": {"GET": Operation("Metrics of all processes, for Prometheus.", (METRICS_TYPE,))},
    "/queue": {"GET": Operation("Waiting and running work, and the processes.", (JSON,), schema="Queue")},
    "/openapi.json": {"GET": Operation("This document.", (JSON,), schema="Document")},
    "/quarantine": {
        "GET": Operation(
            "What was acknowledged and could not be imported, oldest first.",
            (JSON,),
            (_LISTED, Parameter("after", "The id behind which to go on.")),
            schema="Quarantine",
        )
    },
    "/quarantine/{id}": {
        "GET": Operation("The instance as received.", (DICOM,)),
        "POST": Operation(
            "Imports it once more; 202 while that goes on.", (JSON,), also=(202, 409, 429, 507), schema="Retried"
        ),
        "DELETE": Operation("Forgets it.", ()),
    },
    "/datastore/{datastoreId}/imageSet/{imageSetId}/diff": {"GET": _DIFF},
}
_VALUES: Final[Mapping[str, Mapping[str, Any]]] = {
    **VALUES,
    "datastoreId": _ID,
    "imageSetId": _ID,
    "id": {"type": "string", "pattern": "^[0-9]{13}-[0-9a-f]{32}-[0-9]{5}$"},
}
_SHARED: Final = {one.name: one for methods in TOLD.values() for told in methods.values() for one in told.parameters}
"""Parameters of DICOMweb, most of which several resources have; where two have the same name, one of them."""


@lru_cache(maxsize=4)
def description(datastore: str) -> bytes:
    """The document in JSON; `datastore` is the id of the default data store, an example of one."""
    variables = {"datastoreId": {"default": datastore, "description": "The id of a data store."}}
    any_store = {"url": "/datastore/{datastoreId}", "description": "Any.", "variables": variables}
    paths = {path: _item(path, methods) for path, methods in TOLD.items()}
    paths |= {path: {"servers": _ROOT, **_item(path, methods)} for path, methods in _OURS.items()}
    paths["/changes"] = {"servers": [*_ROOT, any_store], **_item("/changes", {"GET": _CHANGES})}
    for path, methods in _api().items():
        paths[path] = {"servers": _ROOT, **methods}
    document = {
        "openapi": "3.1.0",
        "info": {
            "title": TITLE,
            "version": __version__,
            "description": f"{ABOUT} The HealthImaging API is that of AWS's service model, and SDKs speak it as it is.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/dicomweb", "description": "The default data store."}, any_store],
        "security": [{}, {"basic": []}, {"bearer": []}, {"signature": []}],
        "paths": paths,
        "components": {
            "schemas": {**_SCHEMAS, **described.schemas(_served())},
            "headers": _HEADERS,
            "parameters": {name: _parameter(told) for name, told in _SHARED.items()},
            "responses": _failures(),
            "securitySchemes": {
                "basic": {"type": "http", "scheme": "basic"},
                "bearer": {"type": "http", "scheme": "bearer"},
                "signature": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "Authorization",
                    "description": "Signature Version 4 of the service medical-imaging, as AWS SDKs make it.",
                },
            },
        },
    }
    return orjson.dumps(document)


def _item(path: str, methods: Mapping[str, Operation]) -> dict[str, Any]:
    """The path item. HEAD goes where GET goes, and OPTIONS tells what may be done."""
    made: dict[str, Any] = {}
    if values := re.findall(r"\{(\w+)\}", path):
        made["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": _VALUES[name]} for name in values
        ]
    return made | {name.lower(): _operation(path, name, operation) for name, operation in methods.items()}


def _operation(path: str, method: str, operation: Operation) -> dict[str, Any]:
    schema = {"schema": {"$ref": f"#/components/schemas/{operation.schema}"}} if operation.schema else {}
    given = {kind: schema if kind in (JSON, DICOM_JSON) else {} for kind in operation.gives}
    statuses = sorted({200 if given else 204, *operation.also, *_ALWAYS})
    made: dict[str, Any] = {
        "operationId": identifier(path, method),
        "summary": operation.meaning,
        "responses": {str(status): _response(operation, status, given) for status in statuses},
    }
    if operation.parameters:
        made["parameters"] = [
            {"$ref": f"#/components/parameters/{one.name}"} if _SHARED.get(one.name) == one else _parameter(one)
            for one in operation.parameters
        ]
    if operation.takes:
        made["requestBody"] = {"required": True, "content": {kind: {} for kind in operation.takes}}
    return made


def _parameter(told: Parameter) -> dict[str, Any]:
    return {"name": told.name, "in": told.place, "description": told.meaning, "schema": told.schema}


def _response(operation: Operation, status: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """One status. A store that took nothing (409), and operations while something is amiss (503), say what is the case
    in the form of a success."""
    if status >= 400:
        if (status == 409 and operation.takes) or (status == 503 and operation.schema in ("Ready", "Queue")):
            return _answer(status, (), {**given, **_PROBLEM})
        return {"$ref": f"#/components/responses/{_name('Problem', status)}"}
    names = ["ETag"] if status in _WITH_ETAG and 304 in operation.also else []
    if status == 206:
        names.append("Content-Range")
    return _answer(status, names, {} if status in (204, 304) else given)


def _answer(status: int, headers: Iterable[str], content: Mapping[str, Any]) -> dict[str, Any]:
    named = {name: {"$ref": f"#/components/headers/{name}"} for name in ("x-amzn-RequestId", *headers)}
    made: dict[str, Any] = {"description": f"{HTTPStatus(status).phrase}.", "headers": named}
    return made | ({"content": content} if content else {})


def _failures() -> dict[str, Any]:
    """What is answered in the same way wherever it is."""
    statuses = {status for methods in TOLD.values() for told in methods.values() for status in told.also}
    problems = sorted({*_ALWAYS, *(status for status in statuses if status >= 400)})
    again = {429: ["Retry-After"], 503: ["Retry-After"]}
    return {
        **{_name("Problem", status): _answer(status, again.get(status, ()), _PROBLEM) for status in problems},
        **{_name("Fault", status): _answer(status, ["x-amzn-ErrorType"], _FAULT) for status in _API_FAULTS},
    }


def _name(kind: str, status: int) -> str:
    return f"{kind}{status}"


def _api() -> dict[str, dict[str, Any]]:
    """The path items of the HealthImaging API."""
    items: dict[str, dict[str, Any]] = {}
    for operation in _served():
        made = described.item(operation)
        done = made["responses"][str(operation.status)]["content"]
        if operation.name in PREVIEWED:
            meaning = "true: nothing is done, and the answer is what would change."
            made["parameters"].append({"name": "dryRun", "in": "query", "description": meaning, "schema": _FLAG})
            preview = {"$ref": "#/components/schemas/Preview"}
            done = {JSON: {"schema": {"anyOf": [done[JSON]["schema"], preview]}}}
        faults = {str(status): {"$ref": f"#/components/responses/{_name('Fault', status)}"} for status in _API_FAULTS}
        made["responses"] = {str(operation.status): _answer(operation.status, (), done), **faults}
        items.setdefault(described.path(operation), {})[operation.method.lower()] = made
    return items


def _served() -> Iterable[model.Operation]:
    return [model.load().operations[name] for name in SERVED]


def _header(meaning: str, schema: Mapping[str, Any], *, required: bool = True) -> dict[str, Any]:
    return {"description": meaning, "required": required, "schema": schema}


_TEXT: Final = {"type": "string"}
_WHOLE: Final = {"type": "integer"}
_FLAG: Final = {"type": "boolean"}


def _object(required: Mapping[str, Any], optional: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {"type": "object", "properties": {**required, **(optional or {})}, "required": list(required)}


def _list(of: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": of}


def _map(of: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": of}


_HEADERS: Final = {
    "x-amzn-RequestId": _header("Of this request, also in the log.", _TEXT),
    "x-amzn-ErrorType": _header("The name of the exception.", _TEXT),
    "ETag": _header("Of this representation.", _TEXT),
    "Content-Range": _header("The bytes that these are, and how many there are.", _TEXT),
    "Retry-After": _header("Seconds after which to try again.", {"type": "integer", "minimum": 0}, required=False),
}
_PROBLEM: Final = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
_FAULT: Final = {JSON: {"schema": {"$ref": "#/components/schemas/Fault"}}}
_NULLABLE: Final = {"type": ["string", "null"]}
_DIFFERENCE: Final = _object(
    {"level": {"type": "string", "enum": ["Patient", "Study", "Series", "Instance"]}, "change": _TEXT},
    {"series": _TEXT, "instance": _TEXT, "attribute": _TEXT, "from": {}, "to": {}},
)
_SCHEMAS: Final[Mapping[str, Any]] = {
    "Problem": _object({**dict.fromkeys(("type", "title", "detail", "code", "message"), _TEXT), "status": _WHOLE}),
    "Fault": _object({"message": _TEXT}),
    "DataSet": {
        "description": "A data set in the DICOM JSON Model (PS3.18 F).",
        "type": "object",
        "propertyNames": {"pattern": "^[0-9A-F]{8}$"},
        "additionalProperties": _object(
            {"vr": {"type": "string", "pattern": "^[A-Z]{2}$"}},
            {"Value": {"type": "array"}, "BulkDataURI": _TEXT, "InlineBinary": _TEXT},
        ),
    },
    "DataSets": _list({"$ref": "#/components/schemas/DataSet"}),
    "Conflicts": _object(
        {
            "conflicts": _list(
                _object(
                    {
                        **dict.fromkeys(("imageSetId", "studyInstanceUID", "seriesInstanceUID", "at", "source"), _TEXT),
                        "version": _WHOLE,
                        "attribute": _NULLABLE,
                        "instances": _WHOLE,
                    }
                )
            )
        },
        {"nextToken": _TEXT},
    ),
    "Changes": _object(
        {
            "datastoreId": _TEXT,
            "changes": _list(
                _object(
                    {
                        "seq": _WHOLE,
                        **dict.fromkeys(("at", "kind", "imageSetId", "versionId"), _TEXT),
                        "isPrimary": _FLAG,
                    },
                    dict.fromkeys(("studyInstanceUID", "seriesInstanceUID", "jobId", "principal"), _TEXT),
                )
            ),
            "next": _WHOLE,
            "latest": _WHOLE,
        }
    ),
    "Differences": _object(
        {"datastoreId": _TEXT, "imageSetId": _TEXT, "from": _WHOLE, "to": _WHOLE, "differences": _list(_DIFFERENCE)}
    ),
    "Preview": _object({"dryRun": {"const": True}, "from": _WHOLE, "to": _WHOLE, "differences": _list(_DIFFERENCE)}),
    "Quarantine": _object(
        {
            "quarantine": _list(
                _object(
                    {
                        **dict.fromkeys(("id", "job", "datastoreId", "source", "reason", "message"), _TEXT),
                        **dict.fromkeys(("calledAe", "callingAe", "principal"), _NULLABLE),
                        "receivedAt": {"type": "number"},
                        "sizeBytes": _WHOLE,
                    }
                )
            )
        },
        {"next": _TEXT},
    ),
    "Retried": _object({"stored": _FLAG}, {"reason": _TEXT, "message": _TEXT}),
    "Live": _object({"status": {"const": "live"}, "version": _TEXT}),
    "Ready": _object({"status": {"enum": ["ready", "not ready"]}, "checks": _map(_TEXT)}),
    "Queue": {
        "anyOf": [
            _object({"work": _map(_map({"type": "number"})), "processes": _map({"type": "object"})}),
            _object({"status": _TEXT}),
        ]
    },
    "Document": _object({"openapi": _TEXT, "info": {"type": "object"}, "paths": {"type": "object"}}),
}
