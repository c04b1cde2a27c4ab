"""The service model as OpenAPI 3.1: what each operation takes and gives, its shapes as JSON Schemas.

item(operation)       the operation object, without what its failures look like
schemas(operations)   the shapes that the operations refer to, by name
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .model import Operation, Shape

_ASCII = {r"\p{ASCII}{0,8192}": r"[\x00-\x7F]{0,8192}"}
"""A Java class that ECMAScript, whose patterns a JSON Schema has, does not know."""


def path(operation: Operation) -> str:
    """Its path, labels in braces."""
    return "".join(f"/{part if isinstance(part, str) else f'{{{part.wire_name}}}'}" for part in operation.path)


def item(operation: Operation) -> dict[str, Any]:
    """The operation object: parameters, body and the success."""
    made: dict[str, Any] = {
        "operationId": operation.name,
        "summary": f"API: {operation.name}.",
        "parameters": [
            {
                "name": member.wire_name,
                "in": "path" if member.location == "uri" else "query",
                "required": member.location == "uri" or member.name in operation.input.required,
                "schema": _schema(member.shape, bounded=True),
            }
            for member in operation.input.members.values()
            if member.location in ("uri", "querystring")
        ],
        "responses": {str(operation.status): {"description": "Done.", "content": _content(operation.output)}},
    }
    taken = [member for member in operation.input.members.values() if member.location == "body"]
    if taken:
        made["requestBody"] = {
            "required": any(member.name in operation.input.required for member in taken),
            "content": {"application/json": {"schema": _body(operation.input, bounded=True)}},
        }
    return made


def schemas(operations: Iterable[Operation]) -> dict[str, Any]:
    """The structures that bodies of these operations hold, by name."""
    found: dict[str, Any] = {}
    for bounded in (True, False):
        for operation in operations:
            for member in (operation.input if bounded else operation.output).members.values():
                if member.location == "body":
                    for inner in _structures(member.shape, found):
                        found[inner.name] = _structure(inner, bounded=bounded)
    return dict(sorted(found.items()))


def _structures(shape: Shape, known: Mapping[str, Any]) -> Iterator[Shape]:
    """The structures that a shape reaches, and are not known yet."""
    if shape.type == "structure":
        if shape.name in known:
            return
        yield shape
        for member in shape.members.values():
            yield from _structures(member.shape, known)
    for inner in (shape.element, shape.key):
        if inner is not None:
            yield from _structures(inner, known)


def _content(shape: Shape) -> dict[str, Any]:
    """Of an answer. A payload is of the type that its header names."""
    if shape.payload is None:
        return {"application/json": {"schema": _body(shape, bounded=False)}}
    if shape.payload.shape.type == "blob":
        return {"*/*": {}}
    return {"application/json": {"schema": _schema(shape.payload.shape, bounded=False)}}


def _body(shape: Shape, *, bounded: bool) -> dict[str, Any]:
    """Of the members of a message that travel in its body."""
    return _schema(shape.payload.shape, bounded=bounded) if shape.payload else _structure(shape, bounded=bounded)


def _structure(shape: Shape, *, bounded: bool) -> dict[str, Any]:
    members = [member for member in shape.members.values() if member.location == "body"]
    made: dict[str, Any] = {
        "type": "object",
        "properties": {member.wire_name: _schema(member.shape, bounded=bounded) for member in members},
    }
    if shape.union:
        return {**made, "minProperties": 1, "maxProperties": 1}
    required = [member.wire_name for member in members if member.name in shape.required]
    return {**made, "required": required} if required else made


def _schema(shape: Shape, *, bounded: bool) -> dict[str, Any]:
    match shape.type:
        case "structure":
            return {"$ref": f"#/components/schemas/{shape.name}"}
        case "list" if shape.element:
            items = _schema(shape.element, bounded=bounded)
            return {"type": "array", "items": items, **_bounds(shape, "Items", bounded)}
        case "map" if shape.key and shape.element:
            values = _schema(shape.element, bounded=bounded)
            made = {"type": "object", "additionalProperties": values, **_bounds(shape, "Properties", bounded)}
            return {**made, "propertyNames": _schema(shape.key, bounded=bounded)}
        case "integer":
            low = -(2**31) if shape.minimum is None else shape.minimum
            return {"type": "integer", "minimum": low, "maximum": 2**31 - 1 if shape.maximum is None else shape.maximum}
        case "boolean":
            return {"type": "boolean"}
        case "timestamp":
            return {"type": ["number", "string"], "description": "Seconds since 1970, or ISO 8601."}
        case "blob":
            return {"type": "string", "contentEncoding": "base64"}
    if shape.enum:
        return {"type": "string", "enum": list(shape.enum)}
    made = {"type": "string", **_bounds(shape, "Length", bounded)}
    if shape.published_pattern and bounded:
        made["pattern"] = f"^(?:{_ASCII.get(shape.published_pattern, shape.published_pattern)})$"
    return made


def _bounds(shape: Shape, of: str, bounded: bool) -> dict[str, int]:
    bounds = {f"min{of}": shape.minimum, f"max{of}": shape.maximum}
    return {name: bound for name, bound in bounds.items() if bound is not None and bounded}
