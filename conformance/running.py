"""One run of the suite: store the samples, judge, remove what was stored."""

import re
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
from pydicom import config

from . import dicomweb, dimse, reading
from .peer import Broken, Peer
from .samples import Samples
from .server import DICOM_JSON, Server, multipart
from .suite import CASES, Ended, Fault, NotApplicable, Requirement, Shared, Trial, Verdict, requirements

__all__ = ["Report", "Result", "Run", "Target", "Unreachable", "dicomweb", "dimse", "run"]


class Unreachable(Exception):
    """Nobody answers at the URL, or no HTTP server does."""


@dataclass(frozen=True, slots=True)
class Target:
    """The server to judge."""

    url: str
    """The base before `/studies`."""
    auth: str | None = None
    """NAME:PASSWORD for Basic, or the whole value of an Authorization header."""
    aet: str | None = None
    host: str | None = None
    """By default that of the URL."""
    port: int | None = None
    calling: str = "CONFORMANCE"
    """The AE title that the suite calls itself."""


@dataclass(slots=True)
class Result:
    """What came of one case."""

    requirement: Requirement
    verdict: Verdict
    faults: list[Fault] = field(default_factory=list)
    reason: str = ""
    """Why it does not apply."""
    checks: int = 0
    """Statements judged."""
    seconds: float = 0.0


@dataclass(slots=True)
class Report:
    """What came of a run."""

    target: Target
    began: float
    """Seconds since 1970."""
    results: list[Result]
    refused: dict[str, str]
    """The samples that the server did not store, and why."""
    left: list[str]
    """Study Instance UIDs that could not be removed."""
    seconds: float = 0.0
    run: str = ""
    """What stands in every Patient ID of the run."""

    @property
    def is_conformant(self) -> bool:
        """Whether no binding requirement failed."""
        return not any(r.verdict is Verdict.FAIL and r.requirement.is_binding for r in self.results)

    def count(self, verdict: Verdict, basis: str | None = None) -> int:
        return sum(r.verdict is verdict and basis in (None, r.requirement.basis) for r in self.results)


class Run:
    """A server, and the samples of one run: `store` them, `judge` requirements, `remove` what was stored."""

    def __init__(self, target: Target) -> None:
        """Raises Unreachable."""
        self.samples = Samples()
        self.server = Server(target.url, target.auth)
        self.server.own = self.samples.is_own
        peer = None
        if target.aet:
            host = target.host or httpx.URL(target.url).host
            peer = Peer(host, target.port or 104, target.aet, target.calling)
        self._shared = Shared(self.server, self.samples, peer)
        try:
            self.server.send("GET", "/studies", {"PatientID": self.samples.patient_id("nobody"), "limit": "1"})
        except (httpx.HTTPError, httpx.InvalidURL) as fault:
            self.server.close()
            raise Unreachable(f"no answer from {target.url} ({type(fault).__name__})") from None

    def store(self) -> None:
        """Sends each sample in a request of its own, so that one refusal does not take others with it."""
        for sample in self.samples:
            boundary = self.samples.boundary()
            try:
                answer = self.server.send(
                    "POST",
                    "/studies",
                    accept=DICOM_JSON,
                    headers={"Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}'},
                    content=multipart([("application/dicom", sample.body)], boundary),
                )
            except httpx.HTTPError as fault:
                sample.refusal = f"no answer: {type(fault).__name__}"
                continue
            sample.is_stored = answer.status in (200, 202)
            sample.refusal = "" if sample.is_stored else _refusal(answer.status, answer.body)

    def judge(self, requirement: Requirement) -> Result:
        """Runs the case of a requirement."""
        with config.disable_value_validation(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is odd in a case is meant to be
            return self._judge(requirement)

    def _judge(self, requirement: Requirement) -> Result:
        trial = Trial(self._shared)
        exchanges = self.server.exchanges
        exchanges.clear()
        began = time.monotonic()
        verdict, reason = Verdict.PASS, ""
        try:
            CASES[requirement.id](trial)
            if not trial.checks:
                trial.faults.append(Fault("the case found nothing to judge"))
        except Ended:
            pass
        except Broken as fault:
            trial.faults.append(Fault(str(fault)))
        except NotApplicable as declined:
            verdict, reason = Verdict.NOT_APPLICABLE, str(declined)
        except Exception as fault:
            # An answer that the case did not foresee; where it stumbled tells more than that it did.
            place = traceback.extract_tb(fault.__traceback__)[-1]
            text = f"an answer of an unexpected form: {type(fault).__name__}: {fault} ({place.name}: {place.line})"
            shown = (exchanges[-1].request_text(), exchanges[-1].answer_text()) if exchanges else ("", "")
            trial.faults.append(Fault(text, *shown))
        if trial.faults:
            verdict, reason = Verdict.FAIL, ""
            # What a fault quotes may be another patient's: then only the exchange that shows it is told of.
            strange = next((one for one in exchanges if one.strangers), None)
            if strange is not None:
                text = f"an answer is about {strange.strangers} studies that are none of this run's"
                trial.faults = [Fault(text, strange.request_text(), strange.answer_text())]
        return Result(requirement, verdict, trial.faults, reason, trial.checks, time.monotonic() - began)

    def remove(self) -> list[str]:
        """Deletes every study of the run; those that are still there."""
        left = []
        for study in self.samples.study_uids():
            try:
                answer = self.server.send("DELETE", f"/studies/{study}")
                if answer.status not in (200, 202, 204, 404, 410):
                    found = self.server.send("GET", "/studies", {"StudyInstanceUID": study})
                    if found.rows():
                        left.append(study)
            except (httpx.HTTPError, reading.Unreadable):
                left.append(study)
        self.server.close()
        return left


def run(target: Target, only: str = "", progress: Callable[[Result], None] = lambda result: None) -> Report:
    """Judges a server; `only` is a regular expression that identifiers have to match from their start.

    Without an AE title the requirements of DIMSE are left out. Raises Unreachable.
    """
    began = time.time()
    wanted = re.compile(only)
    chosen = [
        requirement
        for name, requirement in requirements().items()
        if name in CASES and wanted.match(name) and (target.aet or requirement.protocol != "dimse")
    ]
    this = Run(target)
    results = []
    left: list[str] = []
    try:
        if chosen:
            this.store()
        for requirement in chosen:
            result = this.judge(requirement)
            results.append(result)
            progress(result)
    finally:
        left = this.remove()
    refused = {sample.name: sample.refusal for sample in this.samples if chosen and not sample.is_stored}
    return Report(target, began, results, refused, left, time.time() - began, f"CONF{this.samples.run}")


def _refusal(status: int, body: bytes) -> str:
    try:
        document: Any = reading.json_document(body)
    except reading.Unreadable:
        document = None
    items: list[Mapping[str, Any]] = []
    if isinstance(document, Mapping):
        items = reading.values(document, "00081198") + reading.values(document, "0008119A")
    reasons = [f"{int(reason):04X}" for item in items if (reason := reading.value(item, "00081197")) is not None]
    return f"status {status}" + (f", failure reason {', '.join(reasons)}" if reasons else "")
