"""Compressed pieces that join into one gzip stream."""

import gzip
import random
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.embedded.chunks import Chunk, Extent, deflate, gzip_stream, inflate, literal, pack_extents, unpack_extents
from gateway.domain.errors import Corrupt

_WORDS = [b"", b"a", b'{"a":1}' * 50, bytes(range(256)) * 300, random.Random(1).randbytes(70_000)]


@given(st.lists(st.tuples(st.binary(max_size=300), st.booleans()), max_size=20))
def test_joined_chunks_are_one_gzip_member_with_the_text_of_all(parts: list[tuple[bytes, bool]]) -> None:
    stream = gzip_stream(deflate(text) if packed else literal(text) for text, packed in parts)
    text = b"".join(text for text, _ in parts)
    assert gzip.decompress(stream) == text
    single = zlib.decompressobj(31)
    assert single.decompress(stream) == text  # a reader that stops after the first member misses nothing
    assert single.eof
    assert single.unused_data == b""


@pytest.mark.parametrize("text", _WORDS)
@pytest.mark.parametrize("make", [deflate, literal])
def test_a_chunk_comes_back(text: bytes, make: Callable[[bytes], Chunk]) -> None:
    chunk = make(text)
    assert chunk.text() == text
    assert (chunk.plain, chunk.crc) == (len(text), zlib.crc32(text))


@pytest.mark.parametrize("make", [deflate, literal])
def test_equal_texts_make_equal_streams(make: Callable[[bytes], Chunk]) -> None:
    first, second = (gzip_stream([make(_WORDS[2]), make(b",")]) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("make", [deflate, literal])
def test_any_damaged_byte_is_seen(make: Callable[[bytes], Chunk]) -> None:
    """Damage raises Corrupt, or did not change the text (a flag of the format that means nothing)."""
    text = b'{"00100010":{"vr":"PN"}}' * 4
    chunk = make(text)
    seen = 0
    for at in range(len(chunk.data)):
        damaged = bytearray(chunk.data)
        damaged[at] ^= 0x55
        try:
            assert inflate(bytes(damaged), chunk.plain, chunk.crc) == text
        except Corrupt:
            seen += 1
    assert seen > len(chunk.data) // 2


def test_a_wrong_length_or_sum_is_corrupt() -> None:
    chunk = deflate(b"text")
    for plain, crc in ((5, chunk.crc), (4, chunk.crc ^ 1)):
        with pytest.raises(Corrupt):
            inflate(chunk.data, plain, crc)


@given(st.lists(st.builds(Extent, st.integers(0, 2**64 - 1), *[st.integers(0, 2**32 - 1)] * 3), max_size=5))
def test_extents_come_back(extents: list[Extent]) -> None:
    packed = pack_extents(extents)
    assert len(packed) == 20 * len(extents)
    assert unpack_extents(packed) == extents
