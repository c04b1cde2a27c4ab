"""What happened to image sets: the change feed, and the differences between two versions of one.

    GET /changes?after=N&limit=M, GET /datastore/{id}/changes     entries after number N, in order, without gaps
    GET /datastore/{id}/imageSet/{id}/diff?from=N&to=M            attributes and instances that differ

Answers are JSON, refusals `application/problem+json`.
"""

import gzip
from collections.abc import Mapping
from datetime import UTC
from typing import Any, Final
from urllib.parse import parse_qs

import orjson

from ..dicomweb import problems
from ..domain import differences
from ..domain.errors import GatewayError, InvalidInput
from ..domain.ids import DatastoreId, ImageSetId
from ..domain.model import Change, ImageSetRef
from ..ports import HealthImaging, History
from .problems import Receive, Refusal, Scope, Send, refuse

DEFAULT_LIMIT: Final = 100
MAX_LIMIT: Final = 1000
_MAX_VERSION: Final = 2**31 - 1
_MAX_NUMBER: Final = 2**53
"""What every client's JSON can hold."""


class HistoryApp:
    """Answers the paths of `Face.HISTORY`, to GET and HEAD."""

    def __init__(self, backend: HealthImaging, history: History, default: DatastoreId) -> None:
        """`/changes` without a data store is that of the `default` one."""
        self._backend = backend
        self._history = history
        self._default = default

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            allow = ((b"allow", b"GET, HEAD"),)
            await refuse(Refusal(405, "method-not-allowed", "", "Only GET and HEAD work here.", allow), scope, send)
            return
        query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        segments = scope["path"].split("/")
        try:
            if segments[-1] == "changes":
                store = DatastoreId(segments[2]) if len(segments) > 2 else self._default
                document = await self._changes(store, query)
            else:
                document = await self._diff(DatastoreId(segments[2]), ImageSetId(segments[4]), query)
        except GatewayError as error:
            await refuse(Refusal(problems.status_of(error), error.code, "", error.detail), scope, send)
            return
        body = orjson.dumps(document)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _changes(self, store: DatastoreId, query: Mapping[str, list[str]]) -> dict[str, Any]:
        _only(query, "after", "limit")
        after = _number(query, "after", 0, 0, _MAX_NUMBER)
        limit = _number(query, "limit", DEFAULT_LIMIT, 1, MAX_LIMIT)
        entries, newest = await self._history.changes(store, after, limit)
        return {
            "datastoreId": store,
            "changes": [_entry(entry) for entry in entries],
            # Where to go on: also for a reader that is ahead of everything, and would else miss what is to come.
            "next": entries[-1].seq if entries else min(after, newest),
            "latest": max(newest, entries[-1].seq if entries else 0),
        }

    async def _diff(self, store: DatastoreId, image_set: ImageSetId, query: Mapping[str, list[str]]) -> dict[str, Any]:
        _only(query, "from", "to")
        latest = (await self._backend.get_image_set(ImageSetRef(store, image_set))).version
        to = _number(query, "to", latest, 1, _MAX_VERSION)
        start = _number(query, "from", max(1, to - 1), 1, _MAX_VERSION)
        before, after = [await self._document(ImageSetRef(store, image_set, version)) for version in (start, to)]
        return {
            "datastoreId": store,
            "imageSetId": image_set,
            "from": start,
            "to": to,
            "differences": differences.between(before, after),
        }

    async def _document(self, ref: ImageSetRef) -> dict[str, Any]:
        found = await self._backend.get_metadata(ref)
        document: dict[str, Any] = orjson.loads(gzip.decompress(found.body) if found.gzip else found.body)
        return document


def _entry(change: Change) -> dict[str, Any]:
    entry = {
        "seq": change.seq,
        "at": change.at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "kind": change.kind,
        "imageSetId": change.image_set,
        "versionId": str(change.version),
        "isPrimary": change.is_primary,
        "studyInstanceUID": change.study_uid,
        "seriesInstanceUID": change.series_uid,
        "jobId": change.job,
        "principal": change.actor,
    }
    return {name: value for name, value in entry.items() if value is not None}


def _only(query: Mapping[str, list[str]], *known: str) -> None:
    if unknown := sorted(query.keys() - set(known)):
        raise InvalidInput(f"There is no parameter {unknown[0][:64]} here; there are {' and '.join(known)}.")


def _number(query: Mapping[str, list[str]], name: str, default: int, low: int, high: int) -> int:
    given = query.get(name)
    if given is None:
        return default
    text = given[0]
    if len(given) > 1 or not (text.isascii() and text.isdigit() and len(text) <= 16 and low <= int(text) <= high):
        raise InvalidInput(f"{name} is one whole number from {low} to {high}.")
    return int(text)
