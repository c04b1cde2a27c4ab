"""The published service model of an AWS rest-json API, compiled from the data that botocore ships.

Nothing of the model is copied here: operations, routes, shapes, constraints and error statuses are read from the
installed botocore when the process starts (about 5 ms).
"""

import functools
import gzip
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

import botocore
import orjson

Location = Literal["uri", "querystring", "header", "body"]

_LINEAR = {
    # A Java class that Python does not know.
    r"\p{ASCII}{0,8192}": r"[\x00-\x7F]{0,8192}",
    # As published, its nested repeats take exponential time to refuse a string; this one accepts the same strings.
    r"[a-zA-Z0-9!-~]+([a-zA-Z0-9!-~ ]*[a-zA-Z0-9!-~]+)*": r"[!-~](?:[ -~]*[!-~])?",
}
"""Published pattern -> an equivalent that Python compiles and matches in linear time."""


@dataclass(slots=True, eq=False)
class Shape:
    """One shape of the model; which fields have a meaning depends on `type`."""

    name: str
    type: str
    """structure, list, map, string, integer, boolean, timestamp or blob."""
    minimum: int | None = None
    """Of a number its value, of a string its characters, of a blob its bytes, of a list or map its entries."""
    maximum: int | None = None
    pattern: re.Pattern[str] | None = None
    """For `fullmatch`, with Java's meaning of `\\d` and `\\w`: ASCII alone."""
    published_pattern: str | None = None
    enum: tuple[str, ...] = ()
    members: "Mapping[str, Member]" = field(default_factory=dict)
    required: tuple[str, ...] = ()
    union: bool = False
    payload: "Member | None" = None
    """The member that is the whole body."""
    element: "Shape | None" = None
    """Of a list its member, of a map its value."""
    key: "Shape | None" = None


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """A structure's member: its name, where it travels and what it is called there."""

    name: str
    wire_name: str
    location: Location
    shape: Shape


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """One operation: `path` is the template cut at its slashes, a label as its member, a literal as text."""

    name: str
    method: str
    path: "tuple[str | Member, ...]"
    input: Shape
    output: Shape
    status: int
    host_prefix: str
    """What SDKs put before the host name, e.g. `runtime-`; empty for most."""

    @property
    def greedy(self) -> bool:
        """Whether the last label may hold slashes, as an ARN does."""
        last = self.path[-1]
        return isinstance(last, Member) and "/" in (last.shape.published_pattern or "")

    def match(self, segments: list[str]) -> dict[str, str] | None:
        """The label values, percent-decoded, when the still encoded segments are this operation's; else None."""
        if len(segments) != len(self.path):
            if not self.greedy or len(segments) < len(self.path):
                return None
            segments = [*segments[: len(self.path) - 1], "/".join(segments[len(self.path) - 1 :])]
        labels = {}
        for part, segment in zip(self.path, segments, strict=True):
            if isinstance(part, Member):
                labels[part.name] = unquote(segment)
            elif part != segment:
                return None
        return labels


class ServiceModel:
    """All operations of a service, by name and by route."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        """Compiles a `service-2` document. Raises re.error, KeyError for a model in another dialect."""
        self._sources: Mapping[str, Any] = document["shapes"]
        self._shapes: dict[str, Shape] = {}
        self.signing_name: str = document["metadata"]["signingName"]
        self.operations = {name: self._operation(name, source) for name, source in document["operations"].items()}
        self.errors: dict[str, int] = {
            name: source["error"]["httpStatusCode"]
            for name, source in self._sources.items()
            if source.get("exception")
        }
        """Modelled exceptions and their HTTP statuses."""
        self._by_method: dict[str, list[Operation]] = {}
        for operation in self.operations.values():
            self._by_method.setdefault(operation.method, []).append(operation)

    def match(self, method: str, raw_path: str) -> tuple[Operation, dict[str, str]] | None:
        """The operation of a path as it stood in the request line, and its label values; None when there is none.

        The path must not be percent-decoded before: an ARN arrives as one segment, its slashes encoded.
        """
        segments = raw_path.split("/")[1:]
        for operation in self._by_method.get(method, ()):
            if (labels := operation.match(segments)) is not None:
                return operation, labels
        return None

    def shapes(self) -> Iterator[Shape]:
        """Every shape that an operation reaches."""
        return iter(self._shapes.values())

    def _operation(self, name: str, source: Mapping[str, Any]) -> Operation:
        request = self._shape_or_empty(source.get("input"))
        labels = {member.wire_name: member for member in request.members.values() if member.location == "uri"}
        return Operation(
            name=name,
            method=source["http"]["method"],
            path=tuple(
                labels[part.strip("{}+")] if part.startswith("{") else part
                for part in source["http"]["requestUri"].split("?")[0].split("/")[1:]
            ),
            input=request,
            output=self._shape_or_empty(source.get("output")),
            status=source["http"].get("responseCode", 200),
            host_prefix=source.get("endpoint", {}).get("hostPrefix", ""),
        )

    def _shape_or_empty(self, reference: Mapping[str, Any] | None) -> Shape:
        return self._shape(reference["shape"]) if reference else Shape("Empty", "structure")

    def _shape(self, name: str) -> Shape:
        if name in self._shapes:
            return self._shapes[name]
        source = self._sources[name]
        published = source.get("pattern")
        # Known before its members are, for a shape that holds itself.
        shape = self._shapes[name] = Shape(
            name=name,
            type=source["type"],
            minimum=source.get("min"),
            maximum=source.get("max"),
            pattern=re.compile(_LINEAR.get(published, published), re.ASCII) if published else None,
            published_pattern=published,
            enum=tuple(source.get("enum", ())),
            required=tuple(source.get("required", ())),
            union=source.get("union", False),
        )
        if shape.type == "structure":
            shape.members = {key: self._member(key, reference) for key, reference in source["members"].items()}
            if payload := source.get("payload"):
                shape.payload = shape.members[payload]
        elif shape.type == "list":
            shape.element = self._shape(source["member"]["shape"])
        elif shape.type == "map":
            shape.key, shape.element = self._shape(source["key"]["shape"]), self._shape(source["value"]["shape"])
        return shape

    def _member(self, name: str, reference: Mapping[str, Any]) -> Member:
        location: Location = reference.get("location", "body")
        return Member(name, reference.get("locationName", name), location, self._shape(reference["shape"]))


@functools.cache
def load(service: str = "medical-imaging") -> ServiceModel:
    """The newest model of a service in the installed botocore. Raises LookupError when it has none."""
    folders = sorted((Path(botocore.__file__).parent / "data" / service).glob("*"), reverse=True)
    for folder in folders:
        if (packed := folder / "service-2.json.gz").exists():
            return ServiceModel(orjson.loads(gzip.decompress(packed.read_bytes())))
        if (plain := folder / "service-2.json").exists():
            return ServiceModel(orjson.loads(plain.read_bytes()))
    raise LookupError(f"the installed botocore has no model of {service}: install a newer one")
