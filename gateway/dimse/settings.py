"""What the DIMSE surface can be told."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Literal

from ..domain.ids import DatastoreId


@dataclass(frozen=True, slots=True)
class Peer:
    """A known application entity; with `cidr` only from there."""

    title: str
    host: str
    port: int
    cidr: str | None = None

    def is_caller(self, title: str, address: str) -> bool:
        """True when an association from `address` under `title` is this peer's (AET-01: case-sensitive, trimmed)."""
        if title != self.title.strip():
            return False
        if self.cidr is None:
            return True
        ip = ip_address(address)
        mapped = getattr(ip, "ipv4_mapped", None)
        return (mapped or ip) in ip_network(self.cidr, strict=False)


@dataclass(frozen=True, slots=True)
class DimseSettings:
    """Where to listen, whom to hear, and the limits."""

    host: str = "127.0.0.1"
    port: int = 11112
    """0 picks a free one."""
    ae_title: str = "GATEWAY"
    titles: Mapping[str, DatastoreId] = field(default_factory=dict)
    """Called title -> data store; any other title means the default one (AET-04)."""
    peers: tuple[Peer, ...] = ()
    unknown_callers: Literal["all", "store", "none"] = "all"
    """What callers outside `peers` may do (AET-02): everything, C-ECHO and C-STORE, or nothing."""
    max_associations: int = 100
    network_timeout_s: float = 60.0
    """The longest silence between two PDUs, and the longest time that one PDU may take to arrive (NET-03)."""
    association_timeout_s: float = 30.0
    """ARTIM: the whole A-ASSOCIATE-RQ must be there by then."""
    max_pdu: int = 131072
    """Announced maximum PDU length in bytes (NET-02)."""
    batch_instances: int = 1000
    batch_bytes: int = 2 << 30
    batch_idle_s: float = 2.0
    """A batch becomes an import job, and a version, at this size, after this silence, or when its association ends. Its
    publication keeps other writers waiting, for some 0.4 s with 1,000 instances."""
    find_limit: int = 50_000
    """Matches of one C-FIND before it ends with A700 (CFIND-14)."""
