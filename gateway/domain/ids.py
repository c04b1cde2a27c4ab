"""Identifiers of the HealthImaging model, as distinct types."""

import secrets
from typing import NewType

DatastoreId = NewType("DatastoreId", str)
"""32 lower-case hexadecimal characters."""
ImageSetId = NewType("ImageSetId", str)
"""32 lower-case hexadecimal characters."""
FrameId = NewType("FrameId", str)
"""32 lower-case hexadecimal characters: 12 bytes of the record, 4 bytes of the frame's index."""
JobId = NewType("JobId", str)
"""32 lower-case hexadecimal characters."""


def new_id() -> str:
    """A fresh public id: 32 lower-case hexadecimal characters (API: patterns `[0-9a-z]{32}`)."""
    return secrets.token_hex(16)
