"""The frame of the cases: requirements, the `@case` registry, and the `Trial` with which a case asks and judges.

A case is a function of a `Trial`, named by the requirement that it judges. It asks the server through the trial and
states what must hold by `expect` and its kin: each statement that does not hold is a fault, kept with the exchange
that it is about, and the case goes on. `Trial.demand` ends the case where nothing more can be learnt.
`NotApplicable` is for an optional service that the server declined in the standard's way.
"""

import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

import httpx
from pydicom.dataset import FileDataset

from . import reading
from .samples import Sample, Samples
from .server import DICOM_JSON, Answer, Params, PartToSend, Server, multipart

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .peer import Peer


@dataclass(frozen=True, slots=True)
class Requirement:
    """One entry of requirements.toml."""

    id: str
    protocol: str
    """dicomweb or dimse."""
    level: str
    """MUST, SHOULD or MAY."""
    basis: str
    """standard, practice or choice: see requirements.toml."""
    text: str
    source: str = ""

    @property
    def is_binding(self) -> bool:
        """Whether a server that does otherwise is at fault, rather than different."""
        return self.level == "MUST" and self.basis != "choice"


def requirements() -> dict[str, Requirement]:
    """All requirements, by identifier."""
    text = resources.files(__package__).joinpath("requirements.toml").read_text("utf-8")
    return {name: Requirement(id=name, **entry) for name, entry in tomllib.loads(text).items()}


class Verdict(StrEnum):
    PASS = "pass"
    FAIL = "fail"
    NOT_APPLICABLE = "not applicable"


class NotApplicable(Exception):
    """The server does not offer what the requirement is about, and says so as it should; the text says how."""


DECLINED: Final = frozenset({403, 404, 405, 406, 415, 501})
"""Statuses by which a server says that it does not offer something; 400 and 500 say something else."""


class Ended(Exception):
    """A case cannot go on; its fault has been noted."""


@dataclass(slots=True)
class Fault:
    """One statement that does not hold, and the exchange that shows it."""

    text: str
    request: str = ""
    answer: str = ""


CaseFunction = Callable[["Trial"], None]
CASES: Final[dict[str, CaseFunction]] = {}
"""Every case, by its requirement."""


def case(name: str) -> Callable[[CaseFunction], CaseFunction]:
    """Registers a case; a requirement has one."""

    def register(function: CaseFunction) -> CaseFunction:
        if name in CASES:
            raise ValueError(f"{name} has two cases")
        CASES[name] = function
        return function

    return register


def _as_list(statuses: int | Iterable[int]) -> list[int]:
    return [statuses] if isinstance(statuses, int) else [*statuses]


@dataclass(slots=True)
class Shared:
    """What the cases of one run have in common."""

    server: Server
    samples: Samples
    peer: "Peer | None" = None
    offers: dict[str, Any] = field(default_factory=dict)
    """What has been learnt of the server once, by name."""


class Trial:
    """One case on its way."""

    def __init__(self, shared: Shared) -> None:
        self.server = shared.server
        self.samples = shared.samples
        self.shared = shared
        self.faults: list[Fault] = []
        self.checks = 0
        """Statements judged; a case that made none has shown nothing."""
        self._last: Answer | None = None

    # what holds

    def expect(self, truth: Any, text: str, answer: Answer | None = None) -> bool:
        """Notes a fault unless `truth`; `answer` is the exchange that shows it, by default the last one."""
        self.checks += 1
        if not truth:
            shown = answer or self._last
            self.faults.append(
                Fault(text, shown.request_text(), shown.answer_text()) if shown is not None else Fault(text)
            )
        return bool(truth)

    def demand(self, truth: Any, text: str, answer: Answer | None = None) -> None:
        """As `expect`, and ends the case."""
        if not self.expect(truth, text, answer):
            raise Ended

    def status(self, answer: Answer, wanted: int | Iterable[int], why: str = "") -> bool:
        """The status is one of these; a fault of the server (5xx) is named as such."""
        allowed = _as_list(wanted)
        names = " or ".join(map(str, allowed))
        reason = f": {why}" if why else ""
        return self.expect(answer.status in allowed, f"status {answer.status}, expected {names}{reason}", answer)

    def must_be(self, answer: Answer, wanted: int | Iterable[int], why: str = "") -> Answer:
        """As `status`, and ends the case."""
        if not self.status(answer, wanted, why):
            raise Ended
        return answer

    def equal(self, found: Any, wanted: Any, what: str, answer: Answer | None = None) -> bool:
        return self.expect(found == wanted, f"{what}: {_short(found)}, expected {_short(wanted)}", answer)

    # asking

    def ask(self, method: str, path: str, params: Params = (), **more: Any) -> Answer:
        """One request; see Server.send."""
        self._last = None
        try:
            self._last = self.server.send(method, path, params, **more)
        except httpx.HTTPError as fault:
            self.demand(False, f"{method} {self.server.url(path, params)}: no answer ({type(fault).__name__})")
        assert self._last is not None
        return self._last

    def get(self, path: str, params: Params = (), **more: Any) -> Answer:
        return self.ask("GET", path, params, **more)

    def raw(self, method: str, target: str, lines: Sequence[str] = (), body: bytes = b"") -> Answer:
        self._last = None
        try:
            self._last = self.server.raw(method, target, lines, body)
        except httpx.HTTPError as fault:
            self.demand(False, f"{method} {target}: {fault}")
        assert self._last is not None
        return self._last

    def rows(self, path: str, params: Params = (), **more: Any) -> list[dict[str, Any]]:
        """The data sets of a JSON answer; ends the case where there are none to be had, or a stranger's among them."""
        answer = self.must_be(self.get(path, params, **more), (200, 204))
        with self.readable(answer):
            found = answer.rows()
        uids = [str(uid) for row in found for uid in reading.values(row, "0020000D")]
        strangers = sum(not self.samples.is_own(uid) for uid in uids)
        self.demand(
            not strangers, f"{strangers} of {len(found)} data sets are none of those that the keys name", answer
        )
        return found

    def finds_nothing(self, path: str, params: Params, what: str) -> bool:
        """A search answers nothing."""
        found = self.rows(path, params)
        return self.expect(not found, f"{what}: {len(found)} data sets, expected none")

    def row(self, path: str, params: Params = (), **more: Any) -> dict[str, Any]:
        """The only data set of a JSON answer."""
        found = self.rows(path, params, **more)
        self.demand(len(found) == 1, f"{len(found)} data sets, expected 1")
        return found[0]

    def parts(self, answer: Answer) -> list[reading.Part]:
        """The parts of an answer; ends the case where they cannot be told apart."""
        with self.readable(answer):
            return answer.parts()

    def instance(self, body: bytes) -> FileDataset:
        """A PS3.10 file; ends the case where it is none."""
        with self.readable():
            return reading.instance(body)

    def instances(self, path: str, accept: str = 'multipart/related; type="application/dicom"') -> list[FileDataset]:
        """The instances that a retrieval answers."""
        answer = self.must_be(self.get(path, accept=accept), 200)
        return [self.instance(part.body) for part in self.parts(answer)]

    def metadata(self, sample: Sample, params: Params = ()) -> dict[str, Any]:
        return self.row(f"{sample.path}/metadata", params)

    @contextmanager
    def readable(self, answer: Answer | None = None) -> "Iterator[None]":
        """What cannot be read within ends the case."""
        try:
            yield
        except reading.Unreadable as fault:
            self.demand(False, str(fault), answer)

    # samples

    def sample(self, name: str) -> Sample:
        """A stored instance; the case does not apply where the server has not taken it."""
        found = self.samples[name]
        if not found.is_stored:
            raise NotApplicable(f"the server did not store the instance it needs ({name}: {found.refusal})")
        return found

    def find(self, resource: str, params: Params) -> set[str]:
        """The names of this run's studies, series or instances that a search answers; others are passed over."""
        rows = self.rows(resource, params)
        return {name for row in rows if (name := self.samples.name_of(row)) is not None}

    def finds(self, resource: str, params: Params, wanted: Iterable[str], why: str = "") -> bool:
        """A search answers exactly these."""
        found = self.find(resource, params)
        reason = f" ({why})" if why else ""
        return self.expect(
            found == set(wanted), f"found {_short(sorted(found))}, expected {_short(sorted(set(wanted)))}{reason}"
        )

    def store(
        self,
        parts: Iterable[PartToSend],
        *,
        type: str = "application/dicom",
        path: str = "/studies",
        accept: str | None = DICOM_JSON,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """A multipart STOW-RS request."""
        boundary = self.samples.boundary()
        named = {"Content-Type": f'multipart/related; type="{type}"; boundary={boundary}', **(headers or {})}
        return self.ask("POST", path, accept=accept, headers=named, content=multipart(parts, boundary))

    def offered(self, name: str, path: str, params: Params = (), **more: Any) -> None:
        """Goes on where a resource is served; else the requirement does not apply: asked once in a run."""
        if name not in self.shared.offers:
            answer = self.get(path, params, **more)
            self.shared.offers[name] = answer.status if answer.status in DECLINED else None
        status = self.shared.offers[name]
        if status is not None:
            raise NotApplicable(f"{name} is not served here (status {status})")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 300 else text[:297] + "..."
