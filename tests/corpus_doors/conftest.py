"""What the tests of the doors share."""

from collections.abc import Iterator

import httpx
import pytest

from tests.running import RunningGateway


@pytest.fixture
def http(gateway: RunningGateway) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gateway.http, timeout=60) as client:
        yield client
