"""STOW-RS: instances in (PS3.18 §10.5, STOW-01..22)."""

import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, Final

import orjson

from ..domain.errors import InvalidInput
from ..domain.model import Outcome
from ..domain.native_model import to_xml
from ..domain.syntaxes import OCTETS
from ..ports import Buffer
from ..services.store import Part
from .apart import Apart
from .exchange import Request, Response
from .multipart import Reader
from .params import DICOM, DICOM_JSON, DICOM_XML, choose_model, parameters_of, resource_url
from .problems import HttpProblem
from .qido import COMMON

_TAKEN: Final = frozenset({DICOM, OCTETS, ""})
"""Media types of parts; what is in them is told by the bytes (STOW-06)."""
_METADATA: Final = (DICOM_JSON, DICOM_XML)
_ACCEPTED: Final = f'{DICOM}, ' + ", ".join(f'multipart/related; type="{kind}"' for kind in (DICOM, *_METADATA))
_MAX_COMMENT: Final = 64
"""Characters of LO."""


async def store(request: Request, study: str | None = None) -> Response:
    """Stores what the body holds, and says of each instance what became of it (STOW-10..13, STOW-18)."""
    model = choose_model(request.accepts)  # before anything is stored (STOW-19)
    parts = _parts(request)
    outcomes = await request.services.store.receive(
        request.datastore, parts, study_uid=study, principal=request.principal
    )
    if not outcomes:
        raise InvalidInput("The body holds no instance.")
    root = request.root
    studies = {outcome.study_uid for outcome in outcomes if outcome.failure is None}
    url = resource_url(root, studies.pop() or "") if len(studies) == 1 else None
    headers = [(b"content-type", model.encode()), *COMMON]
    if url is not None:
        headers.append((b"content-location", url.encode("latin-1")))
    module = response_module(outcomes, root, url)
    return Response(status_of(outcomes), headers, to_xml(module) if model == DICOM_XML else orjson.dumps(module))


def _parts(request: Request) -> AsyncIterator[Part | Buffer]:
    """The instances of the body. Raises HttpProblem 411 and 415, InvalidInput."""
    declared = request.header(b"content-type")
    if declared is None:
        raise HttpProblem(415, f"The request has no Content-Type; send {_ACCEPTED}.", {b"accept": _ACCEPTED.encode()})
    kind, parameters = parameters_of(declared)
    root_type = parameters_of(parameters.get("type", DICOM))[0]
    if kind == DICOM:
        return _single(request)
    if kind != "multipart/related" or root_type not in (DICOM, OCTETS, *_METADATA):
        raise HttpProblem(415, f"Send {_ACCEPTED}.", {b"accept": _ACCEPTED.encode()})
    boundary = parameters.get("boundary", "")
    if not boundary:
        raise InvalidInput("The Content-Type names no boundary.")
    reader = Reader(boundary.encode("latin-1"))
    return _apart(request, reader) if root_type in _METADATA else _several(request, reader)


async def _single(request: Request) -> AsyncIterator[Part | Buffer]:
    begun = False
    async for chunk in request.body():
        if not begun:
            yield Part("the body")
            begun = True
        yield chunk


async def _several(request: Request, reader: Reader) -> AsyncIterator[Part | Buffer]:
    number = 0
    empty = True
    async for chunk in request.body():
        empty = False
        for event in reader.feed(chunk):
            if isinstance(event, Mapping):
                number += 1
                kind = parameters_of(event.get("content-type", ""))[0]
                refusal = None if kind in _TAKEN else f"Its media type is not {DICOM}."
                if event.get("content-transfer-encoding", "binary").lower() not in ("binary", "8bit", "7bit"):
                    refusal = "Its Content-Transfer-Encoding is not binary."
                yield Part(f"part {number}", refusal)
            else:
                yield event
    if empty:
        raise InvalidInput("The body is empty.")
    reader.close()


async def _apart(request: Request, reader: Reader) -> AsyncIterator[Part | Buffer]:
    """Metadata and bulk data, put together when all is there; instances among them as they come (STOW-03, STOW-04)."""
    number = 0
    with Apart(f"{request.root}/studies", request.services.decode, request.services.temporary) as apart:
        collecting = False
        async for chunk in request.body():
            for event in reader.feed(chunk):
                if isinstance(event, Mapping):
                    number += 1
                    kind, parameters = parameters_of(event.get("content-type", ""))
                    collecting = kind != DICOM
                    if collecting:
                        apart.begin(f"part {number}", kind, parameters, event.get("content-location"))
                    else:
                        yield Part(f"part {number}")
                elif collecting:
                    await apart.write(event)
                else:
                    yield event
        reader.close()
        async for piece in apart.instances():
            yield piece


def status_of(outcomes: Sequence[Outcome]) -> int:
    """200 all stored without a warning, 202 some, 409 none (STOW-10)."""
    if all(outcome.failure is not None for outcome in outcomes):
        return 409
    return 200 if all(outcome.failure is None and outcome.warning is None for outcome in outcomes) else 202


def response_module(outcomes: Sequence[Outcome], root: str, study_url: str | None) -> dict[str, Any]:
    """The Store Instances Response Module in DICOM JSON (PS3.18 I.1, STOW-12, STOW-13, STOW-23).

    `root` ends before `/studies`; `study_url` is None when the instances are of several studies. A failed item says
    in Error Comment (0000,0902) what is wrong, as peers do.
    """
    referenced, failed, other = [], [], []
    for outcome in outcomes:
        if outcome.failure is None:
            referenced.append(dict(_referenced(outcome, root)))
        elif outcome.sop_uid:
            failed.append(dict(_failed(outcome)))
        else:
            other.append(dict(_failed(outcome)))
    module: dict[str, Any] = {"00081190": _element("UR", study_url)}
    for tag, items in (("00081198", failed), ("00081199", referenced), ("0008119A", other)):
        if items:
            module[tag] = {"vr": "SQ", "Value": items}
    return module


def _referenced(outcome: Outcome, root: str) -> Iterator[tuple[str, Any]]:
    yield "00081150", _element("UI", outcome.sop_class)
    yield "00081155", _element("UI", outcome.sop_uid)
    url = resource_url(root, outcome.study_uid or "", outcome.series_uid, outcome.sop_uid)
    if not outcome.is_primary:
        url += f"?imageSetId={outcome.image_set}"
    yield "00081190", _element("UR", url)
    if outcome.warning is not None:
        yield "00081196", _element("US", outcome.warning)


def _failed(outcome: Outcome) -> Iterator[tuple[str, Any]]:
    if outcome.message:
        yield "00000902", _element("LO", _comment(outcome.message))
    if outcome.sop_class or outcome.sop_uid:
        yield "00081150", _element("UI", outcome.sop_class)
        yield "00081155", _element("UI", outcome.sop_uid)
    yield "00081197", _element("US", outcome.failure)


def _comment(message: str) -> str:
    """As LO, which has no backslash and 64 characters."""
    return re.sub(r"[\\\x00-\x1f]", " ", message)[:_MAX_COMMENT]


def _element(vr: str, value: str | int | None) -> dict[str, Any]:
    return {"vr": vr} if value is None or value == "" else {"vr": vr, "Value": [value]}
