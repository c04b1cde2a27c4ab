"""What `/openapi.json` says is what is answered: schemathesis asks, with the ids of real data."""

from collections.abc import Iterator

import pytest

from campaigns import described, requests
from campaigns.hostile import Stock
from campaigns.report import Report
from tests.running import RunningGateway

SEED = 1
EACH = 4
"""Cases of each operation: three that keep to the document, and one that breaks it."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    started = RunningGateway(tmp_path_factory.mktemp("openapi") / "data", env=requests.ENVIRONMENT)
    yield started
    started.close()


@pytest.fixture(scope="module")
def stock(running: RunningGateway) -> Stock:
    return requests.stocked(running, SEED, 10)


def operations(gateway: RunningGateway) -> set[str]:
    paths = gateway.get("/openapi.json").json()["paths"]
    return {f"{method.upper()} {path}" for path, item in paths.items() for method in item.keys() & requests.METHODS}


def test_every_operation_answers_as_it_is_described(running: RunningGateway, stock: Stock) -> None:
    report = Report(requests.SLOW_S)
    told = operations(running)
    requests.describe(running, stock, report, EACH * len(told))
    assert not report.faults, report
    answers = [(kind.removeprefix("described "), status) for kind, status in report.answers]
    assert {kind for kind, _ in answers} == told
    # Ids are real, so that most get as far as an answer; the others take a body, or come when a DELETE has been there.
    succeeded = {kind for kind, status in answers if status.startswith(("2", "3"))}
    assert len(succeeded) > 0.6 * len(told), sorted(told - succeeded)


def test_what_is_not_described_is_seen(running: RunningGateway, stock: Stock) -> None:
    """Each way to depart from the document, made by hand: checks that could not fail would prove nothing."""
    seen: list[list[str]] = []
    good = {"content-type": "application/dicom+json", "x-amzn-requestid": "1", "etag": '"1"'}

    def use(case: described.Case) -> None:
        for status, headers, body in (
            (200, good, b"[]"),
            (418, good, b"[]"),
            (500, good, b"[]"),
            (200, {**good, "content-type": "text/plain"}, b"[]"),
            (200, {"content-type": "application/dicom+json"}, b"[]"),
            (200, good, b'[{"x": 1}]'),
        ):
            seen.append([words.partition(":")[0] for words in described.departures(case, status, headers, body)])

    described.every(
        f"{running.http}/openapi.json",
        stock,
        SEED,
        lambda operation, mode: int(mode.is_positive and operation.label == "GET /studies/{study}/metadata"),
        use,
    )
    assert seen[0] == []
    assert [faults[:1] for faults in seen[1:]] == [
        ["status_code_conformance"],
        ["not_a_server_error"],
        ["content_type_conformance"],
        ["response_headers_conformance"],
        ["response_schema_conformance"],
    ]
