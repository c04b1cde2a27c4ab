"""Presentation contexts: what is accepted, in which syntax, in which role (PS3.8 §9.3.3, PS3.7 annex D)."""

from functools import lru_cache
from typing import Final

from pydicom.config import IGNORE
from pydicom.uid import UID

from .pdu import AssociateRequest, ContextResult, ProposedContext

VERIFICATION: Final = "1.2.840.10008.1.1"
PATIENT_ROOT_FIND: Final = "1.2.840.10008.5.1.4.1.2.1.1"
STUDY_ROOT_FIND: Final = "1.2.840.10008.5.1.4.1.2.2.1"
FIND_ROOTS: Final = frozenset((PATIENT_ROOT_FIND, STUDY_ROOT_FIND))

IMPLICIT_LE: Final = "1.2.840.10008.1.2"
EXPLICIT_LE: Final = "1.2.840.10008.1.2.1"
DEFLATED: Final = "1.2.840.10008.1.2.1.99"
EXPLICIT_BE: Final = "1.2.840.10008.1.2.2"

# PC-06: an original that a sender offers both as it is and in a lossy form must come as it is; a lossless form is
# better than none only because it is smaller.
_STORAGE_SYNTAXES: Final = (
    *("1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.80"),
    *("1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.8.1"),
    EXPLICIT_LE,
    IMPLICIT_LE,
    *("1.2.840.10008.1.2.1.98", DEFLATED, EXPLICIT_BE),
    *("1.2.840.10008.1.2.4.110", "1.2.840.10008.1.2.4.92"),
    *("1.2.840.10008.1.2.4.203", "1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.93"),
    *("1.2.840.10008.1.2.4.111", "1.2.840.10008.1.2.4.112", "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"),
    *(f"1.2.840.10008.1.2.4.{n}{suffix}" for n in range(100, 109) for suffix in ("", ".1")),
)
_MESSAGE_SYNTAXES: Final = (EXPLICIT_LE, IMPLICIT_LE)
"""PC-07: of identifiers; none of C-ECHO's messages has a data set to encode."""

_NOT_STORAGE: Final = frozenset(
    ("", "1.2.840.10008.1.3.10", "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.2")  # media directory, commitment
)


@lru_cache(maxsize=1024)
def is_storage(abstract_syntax: str) -> bool:
    """True for every standard storage class, retired ones too, and for unknown and private UIDs (PC-02, PC-03)."""
    uid = UID(abstract_syntax, IGNORE)
    if abstract_syntax in _NOT_STORAGE:
        return False
    # A few retired classes have no name in the dictionary any more: those are storage classes.
    return not uid.type or (uid.type == "SOP Class" and (not uid.name or "Storage" in uid.name))


def _result(context: ProposedContext, store_only: bool) -> ContextResult:
    abstract, offered = context.abstract_syntax, context.transfer_syntaxes

    def refused(result: int) -> ContextResult:
        return ContextResult(context.id, result, abstract, offered[0] if offered else IMPLICIT_LE)

    if context.id % 2 == 0:
        return refused(2)
    if is_storage(abstract):
        known: tuple[str, ...] = _STORAGE_SYNTAXES
    elif abstract == VERIFICATION:
        known = _MESSAGE_SYNTAXES
    elif abstract in FIND_ROOTS:
        if store_only:
            return refused(1)
        known = _MESSAGE_SYNTAXES
    else:
        return refused(3)
    chosen = next((syntax for syntax in known if syntax in offered), None)
    return refused(4) if chosen is None else ContextResult(context.id, 0, abstract, chosen)


def negotiate(request: AssociateRequest, *, store_only: bool) -> list[ContextResult]:
    """One answer for each context proposed, in their order (PC-01); `store_only` leaves out everything but C-ECHO
    and C-STORE (AET-02)."""
    return [_result(context, store_only) for context in request.contexts]


def negotiate_roles(request: AssociateRequest, accepted: set[str]) -> dict[str, tuple[bool, bool]]:
    """The roles of the requestor (SCU, SCP) for those accepted classes that it proposed some for (PC-08).

    Any role is granted for storage, where C-GET turns the direction; else the requestor stays SCU.
    """
    return {uid: (scu, scp and is_storage(uid)) for uid, (scu, scp) in request.roles.items() if uid in accepted}


def negotiate_extended(request: AssociateRequest, accepted: set[str]) -> dict[str, bytes]:
    """SOP class extended negotiation of the queries: relational, combined date-time and fuzzy names are granted,
    time zone adjustment and enhanced multi-frame conversion are not; as many bytes as offered (CFIND-12)."""
    granted = b"\1\1\1\0\0"
    return {
        uid: bytes(asked == 1 and can == 1 for asked, can in zip(offer, granted.ljust(len(offer), b"\0"), strict=False))
        for uid, offer in request.extended.items()
        if uid in accepted and uid in FIND_ROOTS
    }
