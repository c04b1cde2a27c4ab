"""From a received frame to a stored one: decoded, measured, encoded, checked."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from gateway.domain import syntaxes
from gateway.domain.pixels import FrameFacts, PixelFormat

from . import htj2k
from .registry import Codecs


@dataclass(frozen=True, slots=True)
class IngestedFrame:
    """A frame as it is to be stored, in the syntax that `syntaxes.stored_as` names."""

    data: bytes
    facts: FrameFacts
    prefix: int
    """Bytes at the start of `data` that give a thumbnail; 0 if there is no such prefix."""


def ingest(
    codecs: Codecs,
    frames: Iterable[bytes],
    syntax: str,
    format: PixelFormat,
    digest: "hashlib._Hash",
    stored: str = syntaxes.HTJ2K_LOSSLESS_RPCL,
) -> Iterator[IngestedFrame]:
    """Decodes each frame, feeds `digest` with that of its native samples, and encodes it to the lossless `stored`.

    A frame that came as HTJ2K with RPCL options, and is to be stored so, is kept if it is legal and needs no other
    label; samples that the syntax cannot carry stay native. Raises NotAcceptable, Corrupt.
    """
    is_htj2k = stored == syntaxes.HTJ2K_LOSSLESS_RPCL
    plain = syntaxes.decoded(format, syntax)
    for frame in frames:
        native = codecs.decode(frame, syntax, format)
        digest.update(hashlib.sha256(native).digest())
        facts = codecs.facts(native, plain)
        if not syntaxes.holds(plain, stored):
            yield IngestedFrame(native, facts, 0)
            continue
        data = htj2k.canonical(frame, plain) if is_htj2k and syntax == stored else None
        if data is None:
            data = codecs.encode(native, plain, stored)
        yield IngestedFrame(data, facts, codecs.thumbnail_prefix(data) if is_htj2k else 0)
