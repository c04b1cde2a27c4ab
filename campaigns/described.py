"""Requests that schemathesis makes of a gateway's OpenAPI document, with ids of what the gateway holds.

every(url, stock, ...)    a number of cases of each operation that the document describes
request_of(case)          the case as it goes over the connection
departures(case, ...)     where an answer is not what the document says
"""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final

import httpx
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from campaigns.hostile import BOUNDARY, Held, Request, Stock

_CHECKS: Final = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
)
_BODIES: Final = ("multipart/related", "application/dicom")


@schemathesis.serializer(*_BODIES)  # type: ignore[misc]
def _as_it_is(context: schemathesis.SerializationContext, value: Any) -> dict[str, Any]:
    return {"data": value}


def every(
    url: str,
    stock: Stock,
    seed: int,
    examples: Callable[[APIOperation, GenerationMode], int],
    use: Callable[[Case], None],
) -> None:
    """Makes `examples` cases of each operation in each mode, and hands each to `use`.

    `url` is the document's. What keeps to the document is positive; what breaks it in one place, negative.
    """
    schema = schemathesis.openapi.from_url(url, config=schemathesis.Config())
    for result in schema.get_all_operations():
        operation = result.ok()
        for mode in GenerationMode:
            count = examples(operation, mode)
            if not count:
                continue

            @seeded(seed)
            @settings(
                max_examples=count,
                database=None,
                deadline=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(_cases(operation, mode, stock, seed))
            def handed(case: Case) -> None:
                use(case)

            # What has nothing but ids, which are given, cannot be broken.
            with suppress(*([Unsatisfiable] if mode.is_negative else [])):
                handed()


def _cases(operation: APIOperation, mode: GenerationMode, stock: Stock, seed: int) -> st.SearchStrategy[Case]:
    """Cases about what is held; a delete, a copy and an edit are about what may be lost."""
    chosen = random.Random(f"{seed} {operation.label}").sample(stock.held, min(3, len(stock.held)))
    return st.sampled_from(chosen).flatmap(lambda held: _about(operation, mode, stock, held))


def _about(operation: APIOperation, mode: GenerationMode, stock: Stock, held: Held) -> st.SearchStrategy[Case]:
    values = _values(operation, stock, held)
    names = {parameter.name for parameter in operation.path_parameters}
    fixed: dict[str, Any] = {"path_parameters": {name: values[name] for name in names & values.keys()}}
    if operation.path == "/" and operation.method == "get":
        fixed["query"] = {
            "requestType": "WADO",
            "studyUID": held.study,
            "seriesUID": held.series,
            "objectUID": held.sop,
        }
    if any(body.media_type.startswith(_BODIES) for body in operation.body):
        head = f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        fixed |= {
            "body": head + stock.sources[0].part10 + f"\r\n--{BOUNDARY}--".encode(),
            "media_type": 'multipart/related; type="application/dicom"',
            "headers": {"Content-Type": f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'},
        }
        mode = GenerationMode.POSITIVE
    strategy: st.SearchStrategy[Case] = operation.as_strategy(mode, **fixed)
    return strategy


def _values(operation: APIOperation, stock: Stock, held: Held) -> Mapping[str, Any]:
    """Of a path."""
    study, series, victim = stock.victims[0]
    changes = operation.method == "delete" or operation.path.endswith(
        ("/undelete", "/reject/{code}", "/updateImageSetMetadata", "/copyImageSet", "/deleteImageSet")
    )
    image_set = victim if changes else stock.image_sets[0]
    uids = {"study": study, "series": series, "sop": f"{series}.1"} if changes else {}
    arn = f"{stock.arn}/imageset/{image_set}"
    return {
        **{"study": held.study, "series": held.series, "sop": held.sop, **uids},
        **{"frames": "1", "path": held.bulk[0] if held.bulk else "7FE00010"},
        **{"datastoreId": stock.datastore, "imageSetId": image_set, "sourceImageSetId": image_set, "resourceArn": arn},
    }


def request_of(case: Case) -> Request:
    """The case as it goes over a connection."""
    prepared = requests.Request(**case.as_transport_kwargs()).prepare()
    body = prepared.body or b""
    headers = [
        (name, value.decode("latin-1") if isinstance(value, bytes) else value)
        for name, value in prepared.headers.items()
        if name.lower() not in ("content-length", "connection")
    ]
    sent = body if isinstance(body, bytes) else body.encode()
    return Request(f"described {case.operation.label}", str(prepared.method), prepared.path_url, headers, sent)


def departures(case: Case, status: int, headers: Mapping[str, str], body: bytes) -> Iterator[str]:
    """What the document does not say of such an answer."""
    asked = httpx.Request(case.method, str(case.operation.base_url))
    # The body has been read already, and is still encoded.
    answer = httpx.Response(status, headers=headers, stream=httpx.ByteStream(body), request=asked)
    answer.read()
    answer.elapsed = timedelta()
    for check in _CHECKS:
        try:
            case.validate_response(answer, checks=[check])
        except (AssertionError, schemathesis.errors.SchemathesisError, BaseExceptionGroup) as fault:
            yield f"{check.__name__}: {fault}"
