"""Logs without patient data, and every metric, declared once.

Logs are one JSON object a line on standard error. The metrics of all processes meet in the folder that
`PROMETHEUS_MULTIPROC_DIR` names, set before this module is first imported; the web process joins them for `/metrics`.
"""

import logging
import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final

import orjson
import structlog
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram, generate_latest, multiprocess
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from pydicom.datadict import keyword_for_tag

from .domain.levels import LEVELS
from .domain.model import Outcome

REDACTED: Final = "[redacted]"
METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_LONGEST_TEXT = 500
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

HTTP_REQUESTS = Counter("gateway_http_requests_total", "HTTP requests answered.", ["method", "route", "status"])
HTTP_SECONDS = Histogram(
    "gateway_http_seconds", "From a request's head to the end of its answer.", ["route"], buckets=_SECONDS
)
INSTANCES = Counter(
    "gateway_instances_total",
    "Instances imported, by how they came (stow, dimse, import) and what became of them (stored, identical, warned, "
    "failed).",
    ["source", "outcome"],
)
CONFLICTS = Counter("gateway_conflicts_total", "Instances that landed in a non-primary image set.", ["source"])
IMPORT_SECONDS = Histogram(
    "gateway_import_seconds", "From an import job's submission to its end.", ["source"], buckets=_SECONDS
)
ASSOCIATIONS = Counter("gateway_associations_total", "DIMSE associations, by how they ended.", ["end"])
DIMSE_MESSAGES = Counter(
    "gateway_dimse_messages_total", "DIMSE messages answered, by service and hexadecimal status.", ["service", "status"]
)
DIMSE_SECONDS = Histogram(
    "gateway_dimse_seconds", "From a DIMSE request to its final response.", ["service"], buckets=_SECONDS
)
DIMSE_BYTES = Counter("gateway_dimse_bytes_total", "Data set bytes of DIMSE messages.", ["service"])


class DimseMeter:
    """Counts what the DIMSE surface tells; any thread may call it."""

    def association(self, outcome: str) -> None:
        ASSOCIATIONS.labels(outcome).inc()

    def message(self, service: str, status: int, seconds: float, size_bytes: int) -> None:
        DIMSE_MESSAGES.labels(service, f"{status:04X}").inc()
        DIMSE_SECONDS.labels(service).observe(seconds)
        DIMSE_BYTES.labels(service).inc(size_bytes)


class ImportMeter:
    """Counts import jobs that have ended; any thread may call it."""

    def imported(self, source: str, outcomes: Sequence[Outcome], seconds: float) -> None:
        tallies: dict[str, int] = {}
        for outcome in outcomes:
            word = _word(outcome)
            tallies[word] = tallies.get(word, 0) + 1
        for word, count in tallies.items():
            INSTANCES.labels(source, word).inc(count)
        beside = sum(outcome.failure is None and not outcome.is_primary for outcome in outcomes)
        if beside:
            CONFLICTS.labels(source).inc(beside)
        IMPORT_SECONDS.labels(source).observe(seconds)


def _word(outcome: Outcome) -> str:
    if outcome.failure is not None:
        return "failed"
    if outcome.identical:
        return "identical"
    return "stored" if outcome.warning is None else "warned"


class CurrentNumbers(Collector):
    """Numbers that are looked up when they are asked for."""

    def __init__(self, work: Mapping[str, Mapping[str, float]], processes: Mapping[str, Mapping[str, float]]) -> None:
        self._work = work
        self._processes = processes

    def collect(self) -> Iterable[Metric]:
        queue = GaugeMetricFamily("gateway_queue", "Work items, by kind and state.", labels=["kind", "state"])
        oldest = GaugeMetricFamily("gateway_queue_oldest_seconds", "Age of the oldest waiting item.", labels=["kind"])
        for kind, numbers in self._work.items():
            for state in ("waiting", "running"):
                queue.add_metric([kind, state], numbers.get(state, 0))
            oldest.add_metric([kind], numbers.get("oldest_s", 0))
        up = GaugeMetricFamily("gateway_process_up", "1 where the process serves.", labels=["role"])
        restarts = CounterMetricFamily("gateway_process_restarts", "Times it had to be started again.", labels=["role"])
        for role, numbers in self._processes.items():
            up.add_metric([role], numbers.get("up", 0))
            restarts.add_metric([role], numbers.get("restarts", 0))
        yield from (queue, oldest, up, restarts)


def exposition(work: Mapping[str, Mapping[str, float]], processes: Mapping[str, Mapping[str, float]]) -> bytes:
    """All metrics as text (Prometheus 0.0.4). *Blocking.*

    `work` is kind -> waiting, running, oldest_s; `processes` is role -> up, restarts.
    """
    now = CollectorRegistry()
    now.register(CurrentNumbers(work, processes))
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        multiprocess.MultiProcessCollector(now)  # type: ignore[no-untyped-call]
        return generate_latest(now)
    return generate_latest(REGISTRY) + generate_latest(now)


# Logs


_PATIENT_WORDS = frozenset(
    keyword_for_tag(tag).lower() for tag, level in LEVELS.items() if level in ("Patient", "Study", "Series")
) | {"identifier", "dataset", "querystring", "authorization", "sopinstanceuid", "password", "token"}


def redact(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """A structlog processor: attributes of a patient, and whatever could hold them, do not reach a log.

    Values are numbers, short texts, and lists of them; of anything else only the type is told; of an exception its
    type and the place where it was raised, since its text may quote the data.
    """
    fault = event.pop("exc_info", None)
    if fault:
        error = fault if isinstance(fault, BaseException) else sys.exc_info()[1]
        if error is not None:
            event["error"], event["at"] = type(error).__name__, place(error)
    for key, value in event.items():
        if key.replace("_", "").lower() in _PATIENT_WORDS:
            event[key] = REDACTED
        elif type(value) not in (str, int, float, bool, type(None)):
            event[key] = _tame(value)
        elif type(value) is str and len(value) > _LONGEST_TEXT:
            event[key] = value[:_LONGEST_TEXT] + "…"
    return event


def _tame(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [item if type(item) in (str, int, float, bool, type(None)) else _tame(item) for item in value[:20]]
    if isinstance(value, (str, int, float)):
        return str(value)  # enums and other children of plain types
    return f"<{type(value).__name__}>"


def place(error: BaseException) -> str:
    """`file:line function` of where an exception was raised: no values."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return ""
    last = frames[-1]
    return f"{'/'.join(last.filename.split('/')[-3:])}:{last.lineno} {last.name}"


class _Foreign(logging.Handler):
    """Records of libraries: what they wrote is not ours to trust, so that only known ones keep their words."""

    _TRUSTED = ("gateway", "uvicorn", "alembic")

    def emit(self, record: logging.LogRecord) -> None:
        fields: dict[str, Any] = {"logger": record.name}
        if record.name.split(".")[0] in self._TRUSTED:
            fields["text"] = str(record.msg)  # the template, without its arguments
        else:
            fields["at"] = f"{record.module}:{record.lineno}"
        if record.exc_info and record.exc_info[1] is not None:
            fields["exc_info"] = record.exc_info[1]
        structlog.get_logger(record.name).log(record.levelno, "library", **fields)


def configure_logs(level: str, style: str, **context: Any) -> None:
    """Sets logging up for this process: `level` debug to error, `style` json or console. `context` is on every line."""
    least = getattr(logging, level.upper())

    def add_context(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event.update(context)
        return event

    base: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        add_context,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        redact,
    ]
    factory: Any
    if style == "json":
        base.append(structlog.processors.JSONRenderer(serializer=_dumps))
        factory = structlog.BytesLoggerFactory(sys.stderr.buffer)
    else:
        base.append(structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()))
        factory = structlog.PrintLoggerFactory(sys.stderr)
    structlog.configure(
        processors=base,
        wrapper_class=structlog.make_filtering_bound_logger(least),
        logger_factory=factory,
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(handlers=[_Foreign()], level=max(least, logging.WARNING), force=True)
    for name in ("pydicom", "pynetdicom"):
        logging.getLogger(name).disabled = True  # they quote data sets
    warnings.simplefilter("ignore")  # so do pydicom's warnings
    sys.excepthook = _log_crash
    threading.excepthook = lambda args: _log_crash(args.exc_type, args.exc_value, args.exc_traceback)


def access_log(level: str, style: str, **context: Any) -> Callable[..., None]:
    """Writes a line for each answered request, as `configure_logs` would, without its price on the hottest path.

    Its fields are our own words and numbers: nothing to redact.
    """
    if level not in ("debug", "info"):
        return lambda **_: None
    if style != "json":
        return lambda **fields: structlog.get_logger("gateway.http").info("request", **fields)
    write = structlog.BytesLogger(sys.stderr.buffer).msg
    known_second, second_text = 0, ""

    def log(**fields: Any) -> None:
        nonlocal known_second, second_text
        second, fraction = divmod(time.time_ns(), 1_000_000_000)
        if second != known_second:
            known_second, second_text = second, datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        fields |= {"event": "request", **context, "level": "info"}
        fields["timestamp"] = f"{second_text}.{fraction // 1000:06d}Z"
        write(orjson.dumps(fields))

    return log


def _dumps(event: Any, **_: Any) -> bytes:
    return orjson.dumps(event, default=str)


def _log_crash(kind: type[BaseException], error: BaseException | None, _: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        structlog.get_logger("gateway").error("crashed", exc_info=error or kind())
