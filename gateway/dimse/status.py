"""DIMSE statuses, and the error tree as such (PS3.7 annex C, PS3.4 tables B.2-1 and C.4-1)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ..domain.errors import (
    Conflict,
    Corrupt,
    Denied,
    GatewayError,
    InvalidInput,
    NotAcceptable,
    NotFound,
    QuotaExceeded,
    Throttled,
    TooLarge,
    Unavailable,
)

SUCCESS: Final = 0x0000
PENDING: Final = 0xFF00
PENDING_INCOMPLETE: Final = 0xFF01
"""Pending, but some optional keys are not supported."""
CANCELLED: Final = 0xFE00
OUT_OF_RESOURCES: Final = 0xA700
MISMATCH: Final = 0xA900
"""The data set or identifier does not match the command's SOP class."""
CANNOT_UNDERSTAND: Final = 0xC000
UNABLE_TO_PROCESS: Final = 0xC001
CLASS_MISMATCH_WARNING: Final = 0xB007
PROCESSING_FAILURE: Final = 0x0110
CLASS_NOT_SUPPORTED: Final = 0x0122
NOT_AUTHORISED: Final = 0x0124
UNRECOGNISED_OPERATION: Final = 0x0211
MISTYPED_ARGUMENT: Final = 0x0212


@dataclass(frozen=True, slots=True)
class Status:
    """A status, and what a response may say about it: a comment without a patient's data, and the tags at fault."""

    code: int
    comment: str = ""
    offending: tuple[int, ...] = ()


_STORE: Final[Mapping[type[GatewayError], int]] = {
    InvalidInput: CANNOT_UNDERSTAND,
    Denied: NOT_AUTHORISED,
    NotFound: PROCESSING_FAILURE,
    Conflict: PROCESSING_FAILURE,
    NotAcceptable: CANNOT_UNDERSTAND,
    TooLarge: OUT_OF_RESOURCES,
    Throttled: OUT_OF_RESOURCES,
    QuotaExceeded: OUT_OF_RESOURCES,
    Unavailable: OUT_OF_RESOURCES,
    Corrupt: PROCESSING_FAILURE,
}
_FIND: Final[Mapping[type[GatewayError], int]] = {
    **_STORE,
    InvalidInput: MISMATCH,
    NotFound: UNABLE_TO_PROCESS,
    Conflict: UNABLE_TO_PROCESS,
    NotAcceptable: UNABLE_TO_PROCESS,
    Corrupt: UNABLE_TO_PROCESS,
}


def _of(table: Mapping[type[GatewayError], int], error: Exception, other: int) -> Status:
    if isinstance(error, GatewayError):
        for kind in type(error).__mro__:
            if kind in table:
                return Status(table[kind], error.detail)
    # Whatever else it was is for the log: its text may hold anything.
    return Status(other, "internal error; the gateway's log tells more")


def store_status(error: Exception) -> Status:
    """What a C-STORE that failed with `error` answers (CSTORE-09)."""
    return _of(_STORE, error, PROCESSING_FAILURE)


def find_status(error: Exception) -> Status:
    """What a C-FIND that failed with `error` answers."""
    return _of(_FIND, error, UNABLE_TO_PROCESS)
