"""The error tree: every fault that a surface may have to tell.

    GatewayError
    ├── InvalidInput          the request is malformed or contradicts itself
    │   └── UnacceptableUpdate    an edit that the rules refuse (force, level, value)
    ├── Denied                the caller may not do this
    ├── NotFound              no such store, image set, version, job, instance or frame
    │   ├── Gone              it was there and has been deleted
    │   └── VersionConflict   the version named is not the latest one
    ├── Conflict              the state forbids it now
    │   └── Locked            another operation holds the image set
    ├── NotAcceptable         it exists, but not in a form that the caller accepts
    ├── TooLarge              the request or its answer is beyond a limit
    ├── Throttled             too many requests; try again later
    ├── QuotaExceeded         a quota of the service
    ├── Unavailable           a part of the system is not there now; try again later
    │   ├── OutOfStorage      the disk is below its watermark
    │   └── Overloaded        more waits to be done than may wait
    └── Corrupt               stored bytes do not have their digest

`detail` says what is wrong and how to mend it, and never holds a patient's data. `code` is stable.
Three tables map the tree: `http.problems`, `healthimaging.errors`, `dimse.status`.
"""

from typing import ClassVar


class GatewayError(Exception):
    """Base of all faults that a caller can be told about."""

    code: ClassVar[str] = "internal"

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class InvalidInput(GatewayError):
    """The request is malformed or contradicts itself."""

    code = "invalid-input"


class UnacceptableUpdate(InvalidInput):
    """An edit that the rules refuse (API: UpdateImageSetMetadata)."""

    code = "unacceptable-update"


class Denied(GatewayError):
    """The caller may not do this."""

    code = "denied"


class NotFound(GatewayError):
    """No such store, image set, version, job, instance or frame."""

    code = "not-found"


class Gone(NotFound):
    """It was there and has been deleted."""

    code = "gone"


class VersionConflict(NotFound):
    """The version named is not the latest one: somebody else wrote first."""

    code = "version-conflict"

    def __init__(self, detail: str = "Requested version(s) of ImageSet(s) is not the latest.") -> None:
        super().__init__(detail)


class Conflict(GatewayError):
    """The state of the resource forbids it now."""

    code = "conflict"


class Locked(Conflict):
    """Another operation holds the image set."""

    code = "locked"

    def __init__(self, detail: str = "The image set is locked by another operation.") -> None:
        super().__init__(detail)


class NotAcceptable(GatewayError):
    """It exists, but not in a form that the caller accepts; the detail lists the forms that there are."""

    code = "not-acceptable"


class TooLarge(GatewayError):
    """The request or its answer is beyond a limit."""

    code = "too-large"


class Throttled(GatewayError):
    """Too many requests; try again later."""

    code = "throttled"


class QuotaExceeded(GatewayError):
    """A quota of the service is used up."""

    code = "quota-exceeded"


class Unavailable(GatewayError):
    """A part of the system is not there now; try again later."""

    code = "unavailable"


class OutOfStorage(Unavailable):
    """The disk is below its watermark: nothing more is taken in."""

    code = "out-of-storage"


class Overloaded(Unavailable):
    """More waits to be done than may wait: nothing more is taken in until some of it is."""

    code = "overloaded"


class Corrupt(GatewayError):
    """Stored bytes do not have the digest that they had when they were written."""

    code = "corrupt"
