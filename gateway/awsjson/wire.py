"""Requests and responses of a compiled service model, both ways: the server's and the client's side of one wire.

Python values: structures and maps are dicts without None, timestamps aware datetimes, blobs bytes. Constraints are
checked here and nowhere else, and all faults of a message are told at once, by path and never with the value.
"""

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

import orjson

from .model import Member, Operation, Shape

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_INTEGER = re.compile(r"-?[0-9]{1,19}")
_TOLD = 20
"""Faults spelled out in one message; the rest are counted."""

Path = tuple[Any, ...]
"""Where a value stands, as (the path above, a member's name or a position); () at the top."""


class Malformed(ValueError):
    """A message breaks the model; `faults` name each place and what is wanted there, in order of the model."""

    def __init__(self, faults: list[str]) -> None:
        self.faults = tuple(faults)
        told = list(self.faults[:_TOLD])
        if (untold := len(self.faults) - len(told)) > 0:
            told.append(f"and {untold} more")
        noun = "error" if len(self.faults) == 1 else "errors"
        super().__init__(f"{len(self.faults)} validation {noun} detected: {'; '.join(told)}")


@dataclass(frozen=True, slots=True)
class Request:
    """What a client sends; `path` is percent-encoded, `body` is None where the operation has none."""

    method: str
    path: str
    query: str
    body: bytes | None


@dataclass(frozen=True, slots=True)
class Response:
    """What a server answers."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


def decode_request(operation: Operation, labels: Mapping[str, str], query: str, body: bytes) -> dict[str, Any]:
    """The members of a request, by name. Unknown members and query parameters are ignored, null is absence.

    `labels` are decoded path labels (`ServiceModel.match`), `query` is the query string as it was sent.
    Raises Malformed with all faults.
    """
    reader = _Reader()
    given: dict[str, list[str]] = {}
    for key, value in parse_qsl(query, keep_blank_values=True, errors="replace"):
        given.setdefault(key, []).append(value)
    result: dict[str, Any] = {}
    for member in operation.input.members.values():
        path: Path = ((), member.name)
        if member.location == "uri":
            result[member.name] = reader.text(member.shape, labels[member.name], path)
        elif member.location == "querystring":
            if values := given.get(member.wire_name):
                result[member.name] = reader.texts(member.shape, values, path)
            elif member.name in operation.input.required:
                reader.missing(path)
    if _has_body(operation.input):
        result |= reader.body(operation.input, body)
    reader.finish()
    return result


def encode_response(operation: Operation, result: Mapping[str, Any], *, strict: bool = False) -> Response:
    """The answer to an operation: None is left out, members that the model does not know are dropped.

    `strict` is for tests of our own answers: unknown and missing members and broken constraints raise Malformed.
    """
    if strict:
        _check(operation.output, result)
    headers = [
        (member.wire_name, str(result[member.name]))
        for member in operation.output.members.values()
        if member.location == "header" and result.get(member.name) is not None
    ]
    if payload := operation.output.payload:
        return Response(operation.status, headers, result[payload.name])
    headers.append(("Content-Type", "application/json"))
    return Response(operation.status, headers, orjson.dumps(_write(operation.output, result)))


def encode_request(operation: Operation, parameters: Mapping[str, Any]) -> Request:
    """A request for an operation. Raises Malformed for what the model does not know or allow."""
    _check(operation.input, parameters)
    query: list[tuple[str, str]] = []
    for member in operation.input.members.values():
        value = parameters.get(member.name)
        if member.location == "querystring" and value is not None:
            items = value if member.shape.type == "list" else [value]
            query += [(member.wire_name, _text(item)) for item in items]
    body = None
    if payload := operation.input.payload:
        body = orjson.dumps(_write(payload.shape, parameters.get(payload.name) or {}))
    elif _has_body(operation.input):
        body = orjson.dumps(_write(operation.input, parameters))
    path = "".join(
        "/" + (quote(parameters[part.name], safe="-._~") if isinstance(part, Member) else part)
        for part in operation.path
    )
    return Request(operation.method, path, urlencode(query, quote_via=quote), body)


def decode_response(operation: Operation, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
    """The members of a successful answer, by name; `headers` are keyed in lower case. Raises Malformed."""
    reader = _Reader()
    result: dict[str, Any] = {
        member.name: headers[member.wire_name.lower()]
        for member in operation.output.members.values()
        if member.location == "header" and member.wire_name.lower() in headers
    }
    if payload := operation.output.payload:
        result[payload.name] = body
    else:
        result |= reader.body(operation.output, body)
    reader.finish()
    return result


def decode_error(headers: Mapping[str, str], body: bytes) -> tuple[str, str]:
    """Exception name and message of a failed answer; `headers` are keyed in lower case. Raises nothing."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        document = None
    fields = document if isinstance(document, dict) else {}
    code = headers.get("x-amzn-errortype") or fields.get("code") or fields.get("__type") or "Unknown"
    return re.split("[:?]", str(code).rsplit("#", 1)[-1])[0], str(fields.get("message") or fields.get("Message") or "")


def timestamp(moment: datetime) -> float:
    """Epoch seconds with a fraction of whole milliseconds, cut and not rounded: never later than the moment."""
    return (moment - _EPOCH) // timedelta(milliseconds=1) / 1000


class _Reader:
    """Reads values by their shapes and gathers what is wrong with them."""

    def __init__(self, *, strict: bool = False) -> None:
        self.faults: list[str] = []
        self.strict = strict
        """Whether an unknown member is a fault."""

    def finish(self) -> None:
        if self.faults:
            raise Malformed(self.faults)

    def fault(self, path: Path, wanted: str) -> None:
        self.faults.append(f"Value at '{_spell(path)}' failed to satisfy constraint: Member must {wanted}")

    def missing(self, path: Path) -> None:
        self.fault(path, "not be null")

    def body(self, shape: Shape, body: bytes) -> dict[str, Any]:
        """The members of a message that travel in its JSON body; an empty body has none."""
        try:
            document = orjson.loads(body) if body.strip() else None
        except orjson.JSONDecodeError as error:
            self.fault(((), "body"), f"be JSON ({error.msg} at character {error.pos})")
            return {}
        payload = shape.payload
        if payload is None:
            return self.structure(shape, {} if document is None else document, ())
        if document is not None:
            return {payload.name: self.read(payload.shape, document, ((), payload.name))}
        if payload.name in shape.required:
            self.missing(((), payload.name))
        return {}

    def texts(self, shape: Shape, values: list[str], path: Path) -> Any:
        """A query parameter: a list is given by repetition, anything else once."""
        if shape.type == "list" and shape.element:
            element = shape.element
            self._within(shape, len(values), path, "entries")
            return [self.text(element, value, (path, index)) for index, value in enumerate(values, 1)]
        if len(values) > 1:
            self.fault(path, "be given once")
        return self.text(shape, values[0], path)

    def text(self, shape: Shape, value: str, path: Path) -> Any:
        """A label or query parameter, which are text whatever their type."""
        if shape.type == "integer":
            if not _INTEGER.fullmatch(value):
                return self.fault(path, "be an integer")
            return self.read(shape, int(value), path)
        if shape.type == "boolean":
            if value not in ("true", "false"):
                return self.fault(path, "be true or false")
            return value == "true"
        return self.read(shape, value, path)

    def read(self, shape: Shape, value: Any, path: Path) -> Any:
        """A JSON value as its shape says; what comes back after a fault is of no use."""
        match shape.type:
            case "string":
                return self._string(shape, value, path)
            case "structure":
                return self.structure(shape, value, path)
            case "list":
                return self._list(shape, value, path)
            case "timestamp":
                return self._timestamp(value, path)
            case "integer":
                return self._integer(shape, value, path)
            case "boolean":
                return value if isinstance(value, bool) else self.fault(path, "be a boolean")
            case "blob":
                return self._blob(shape, value, path)
            case "map":
                return self._map(shape, value, path)
        raise NotImplementedError(f"no reader for {shape.type} ({shape.name})")

    def structure(self, shape: Shape, value: Any, path: Path) -> dict[str, Any]:
        """The body members of a structure."""
        result: dict[str, Any] = {}
        if not isinstance(value, dict):
            self.fault(path or ((), "body"), "be a JSON object")
            return result
        known = 0
        for member in shape.members.values():
            if member.location != "body":
                continue
            item = value.get(member.wire_name)
            if item is not None:
                known += 1
                result[member.name] = self.read(member.shape, item, (path, member.wire_name))
            elif member.name in shape.required:
                self.missing((path, member.wire_name))
        if shape.union and known != 1:
            self.fault(path, f"have exactly one of: {', '.join(shape.members)}")
        if self.strict:
            for name in value.keys() - {member.wire_name for member in shape.members.values()}:
                self.fault((path, name), "be known to the model")
        return result

    def _string(self, shape: Shape, value: Any, path: Path) -> Any:
        if not isinstance(value, str):
            return self.fault(path, "be a string")
        if shape.enum:
            if value not in shape.enum:
                self.fault(path, f"satisfy enum value set: [{', '.join(shape.enum)}]")
            return value
        # A text of the wrong length is not matched: the length is what is wrong with it.
        if self._within(shape, len(value), path, "characters") and shape.pattern and not shape.pattern.fullmatch(value):
            self.fault(path, f"satisfy regular expression pattern: {shape.published_pattern}")
        return value

    def _integer(self, shape: Shape, value: Any, path: Path) -> Any:
        if not isinstance(value, int) or isinstance(value, bool):
            return self.fault(path, "be an integer")
        low = -(2**31) if shape.minimum is None else shape.minimum
        high = 2**31 - 1 if shape.maximum is None else shape.maximum
        if not low <= value <= high:
            self.fault(path, f"have value between {low} and {high}, both included")
        return value

    def _timestamp(self, value: Any, path: Path) -> Any:
        try:
            if isinstance(value, str):
                moment = datetime.fromisoformat(value)
                return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
            if isinstance(value, int | float) and not isinstance(value, bool):
                return _EPOCH + timedelta(seconds=value)
        except (ValueError, OverflowError):
            pass
        return self.fault(path, "be a timestamp: epoch seconds or ISO 8601 text")

    def _blob(self, shape: Shape, value: Any, path: Path) -> Any:
        data = read_blob(value)
        if data is None:
            return self.fault(path, "be base64 text, or a JSON document as it is")
        self._within(shape, len(data), path, "bytes")
        return data

    def _list(self, shape: Shape, value: Any, path: Path) -> Any:
        if not isinstance(value, list):
            return self.fault(path, "be a JSON array")
        # Beyond the limit nothing is read: a hostile list must cost no more than its parsing.
        if shape.element is None or not self._within(shape, len(value), path, "entries"):
            return value
        element = shape.element
        return [self.read(element, item, (path, index)) for index, item in enumerate(value, 1)]

    def _map(self, shape: Shape, value: Any, path: Path) -> Any:
        if not isinstance(value, dict):
            return self.fault(path, "be a JSON object")
        if shape.key is None or shape.element is None or not self._within(shape, len(value), path, "entries"):
            return value
        key, element = shape.key, shape.element
        return {
            self.read(key, name, (path, index)): self.read(element, item, (path, index))
            for index, (name, item) in enumerate(value.items(), 1)
        }

    def _within(self, shape: Shape, size: int, path: Path, unit: str) -> bool:
        if shape.minimum is not None and size < shape.minimum:
            self.fault(path, f"have at least {shape.minimum} {unit}")
            return False
        if shape.maximum is not None and size > shape.maximum:
            self.fault(path, f"have at most {shape.maximum} {unit}")
            return False
        return True


def read_blob(value: Any) -> bytes | None:
    """A blob that holds a JSON document, as clients send it; None when it is nothing of the kind.

    SDKs send base64. Also taken: base64 twice over, which is what the first AWS CLI makes of base64 text; the
    document itself as text or as a JSON object, which no base64 text can be mistaken for.
    """
    if isinstance(value, dict):
        return orjson.dumps(value)
    if not isinstance(value, str):
        return None
    if value.lstrip().startswith("{"):
        return value.encode()
    data = _base64("".join(value.split()))
    if data is None or data.lstrip().startswith(b"{"):
        return data
    inner = _base64(b"".join(data.split()))
    return inner if inner is not None and inner.lstrip().startswith(b"{") else data


def _base64(text: str | bytes) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


def _has_body(shape: Shape) -> bool:
    return any(member.location == "body" for member in shape.members.values())


def _write(shape: Shape, value: Any, *, keep_unknown: bool = False) -> Any:
    """A value as what JSON can hold; unknown members are dropped, or kept as they are for a strict reader to find."""
    match shape.type:
        case "structure":
            document = {name: value[name] for name in value.keys() - shape.members.keys()} if keep_unknown else {}
            for member in shape.members.values():
                if member.location == "body" and (item := value.get(member.name)) is not None:
                    document[member.wire_name] = _write(member.shape, item, keep_unknown=keep_unknown)
            return document
        case "list" if shape.element:
            element = shape.element
            return [_write(element, item, keep_unknown=keep_unknown) for item in value]
        case "map" if shape.element:
            element = shape.element
            return {key: _write(element, item, keep_unknown=keep_unknown) for key, item in value.items()}
        case "timestamp":
            return timestamp(value)
        case "blob":
            return base64.b64encode(value).decode()
    return value


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check(shape: Shape, values: Mapping[str, Any]) -> None:
    """Raises Malformed for members that the model does not know or misses, and for values it does not allow."""
    reader = _Reader(strict=True)
    present = {name: value for name, value in values.items() if value is not None}
    for name in present.keys() - shape.members.keys():
        reader.fault(((), name), "be known to the model")
    for name, member in shape.members.items():
        if name not in present:
            if name in shape.required:
                reader.missing(((), name))
        elif member is not shape.payload or member.shape.type != "blob":
            reader.read(member.shape, _write(member.shape, present[name], keep_unknown=True), ((), name))
    reader.finish()


def _spell(path: Path) -> str:
    return ".".join(str(part) for part in _parts(path))


def _parts(path: Path) -> Iterator[Any]:
    if path:
        yield from _parts(path[0])
        yield path[1]
