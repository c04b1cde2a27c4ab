"""What a modality and a workstation send: C-STORE and C-FIND by pynetdicom, STOW-RS by httpx."""

import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
from pydicom.dataset import Dataset
from pynetdicom import AE
from pynetdicom.association import Association

from .screen import NotAsItShouldBe
from .series import Sample

CALLING = "DEMO_CT"
_PATIENCE_S = 30
"""For an answer."""
_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
"""Study Root Query/Retrieve Information Model - FIND."""


def undisturbed(association: Association) -> Association:
    """The same association, whose answers all reach the caller that waits for them.

    The reactor thread of pynetdicom makes a last round while the next request is already under way. An answer that
    comes in that moment it takes for a request of the peer and drops, and the caller waits in vain (pynetdicom issue
    875). A caller that serves nothing has nothing to be taken there.
    """
    take = association.dimse.get_msg

    def get_msg(block: bool = False) -> Any:
        return take(block) if block else (None, None)

    association.dimse.get_msg = get_msg  # type: ignore[method-assign]
    return association


def c_store(address: str, called: str, sample: Sample, sent: Callable[[], None]) -> list[int]:
    """Sends a series in one association, in the transfer syntax of its files; the status of each (PS3.4 B)."""
    association = _associate(address, called, str(sample.one.SOPClassUID), [str(sample.syntax)])
    statuses = []
    try:
        for path in sample.files:
            answer = association.send_c_store(path)
            if "Status" not in answer:
                raise NotAsItShouldBe(
                    f"C-STORE {len(statuses) + 1} of {len(sample.files)} is answered within {_PATIENCE_S} s"
                )
            statuses.append(int(answer.Status))
            sent()
    finally:
        association.release()
    return statuses


def c_find(address: str, called: str, **keys: str) -> list[Dataset]:
    """The matches of a C-FIND at study level, Study Root (PS3.4 C)."""
    association = _associate(address, called, _FIND)
    identifier = Dataset()
    identifier.QueryRetrieveLevel = "STUDY"
    for keyword, value in keys.items():
        setattr(identifier, keyword, value)
    try:
        answers = list(association.send_c_find(identifier, _FIND))
    finally:
        association.release()
    if not answers or answers[-1][0].Status != 0:
        raise NotAsItShouldBe("the C-FIND ends with status 0000")
    return [found for _, found in answers if found is not None]


def stow(http: httpx.Client, files: Sequence[Path], sent: Callable[[], None]) -> httpx.Response:
    """Stores files by one request (PS3.18 §10.5)."""
    boundary = uuid.uuid4().hex

    def body() -> Iterator[bytes]:
        for path in files:
            yield f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
            yield path.read_bytes()
            yield b"\r\n"
            sent()
        yield f"--{boundary}--\r\n".encode()

    kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
    return http.post(
        "/dicomweb/studies", content=body(), headers={"content-type": kind, "accept": "application/dicom+json"}
    )


def value(item: dict[str, Any], tag: str) -> str:
    """The first value of an attribute of DICOM JSON, as text."""
    first = next(iter(item.get(tag, {}).get("Value", ())), "")
    return str(first.get("Alphabetic", "")) if isinstance(first, dict) else str(first)


def _associate(address: str, called: str, context: str, syntaxes: list[str] | None = None) -> Association:
    host, _, port = address.rpartition(":")
    entity = AE(ae_title=CALLING)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = _PATIENCE_S
    entity.add_requested_context(context, syntaxes)
    association = undisturbed(entity.associate(host, int(port), ae_title=called))
    if not association.is_established:
        raise NotAsItShouldBe(f"{called} at {address} accepts the association")
    return association
