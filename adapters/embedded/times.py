"""Times as the tables keep them and as the domain has them."""

from datetime import UTC, datetime


def from_ms(value: int) -> datetime:
    return datetime.fromtimestamp(value / 1000, UTC)


def to_ms(value: datetime) -> int:
    return round(value.timestamp() * 1000)
