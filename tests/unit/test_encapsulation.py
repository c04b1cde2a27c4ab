"""Where frames lie in Pixel Data, and how they get there (PS3.5 A.4, 8.1.1; WILD-06, WADO-07, TS-09)."""

import struct
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain import syntaxes
from gateway.domain.encapsulation import (
    FRAME_NUMBER_MISMATCH,
    FRAMES_EXTRACTION_FAILURE,
    INVALID_OFFSET_TABLE,
    UNDEFINED,
    PixelFault,
    bare_codestream,
    encapsulate,
    encapsulated_length,
    extended_offset_table,
    frame_extents,
    native_extents,
    pack_bits_frames,
    unpack_bits_frames,
)
from gateway.domain.pixels import PixelFormat
from tests.corpus import CORPUS

ITEM, END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"
SOI, EOI = b"\xff\xd8\xff", b"\xff\xd9"
JPEG, RLE = syntaxes.JPEG_BASELINE, syntaxes.RLE


def value(*items: bytes, end: bytes = END) -> bytes:
    return b"".join(ITEM + struct.pack("<I", len(item)) + item for item in items) + end


def offsets(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


def frames_of(data: bytes, syntax: str, frames: int, **tables: Sequence[int]) -> list[bytes]:
    extents = frame_extents(data, 0, len(data), syntax, frames, **tables)
    return [b"".join(data[at : at + size] for at, size in frame) for frame in extents]


@given(
    st.lists(st.binary(min_size=1, max_size=9), min_size=1, max_size=6),
    st.booleans(),
    st.sampled_from([JPEG, RLE, syntaxes.HTJ2K_LOSSLESS_RPCL, syntaxes.DEFLATED_FRAMES]),
)
def test_what_is_encapsulated_is_found_again(frames: list[bytes], lazily: bool, syntax: str) -> None:
    data = b"".join(encapsulate(iter(frames) if lazily else frames))
    assert len(data) % 2 == 0
    assert [f[: len(g)] for f, g in zip(frames_of(data, syntax, len(frames)), frames, strict=True)] == frames
    if not lazily:
        assert len(data) == encapsulated_length([len(frame) for frame in frames])
        told = struct.unpack_from(f"<{len(frames)}I", data, 8)
        extents = frame_extents(data, 0, len(data), syntax, len(frames))
        after_table = 8 + 4 * len(frames)
        assert list(told) == [at - 8 - after_table for ((at, _),) in extents]


def test_offsets_beyond_32_bits_go_to_the_extended_table() -> None:
    lengths = [0xC0000001, 0xC0000000, 3]
    table = extended_offset_table(lengths)
    assert table is not None
    assert struct.unpack("<3Q", table[0]) == (0, 0xC0000002 + 8, 0xC0000002 + 8 + 0xC0000000 + 8)
    assert struct.unpack("<3Q", table[1]) == tuple(lengths)
    assert encapsulated_length(lengths) == 8 + sum(8 + n + n % 2 for n in lengths) + 8
    assert next(iter(encapsulate([], lengths))) == ITEM + bytes(4)
    assert extended_offset_table([1, 2]) is None


def test_a_frame_in_several_fragments_by_its_table() -> None:
    data = value(offsets(0, 22), b"abcdef", b"", b"ghij")
    split = value(offsets(0, 12), b"abcd", b"efgh", b"ij")
    assert frames_of(split, syntaxes.DEFLATED_FRAMES, 2) == [b"abcd", b"efghij"]
    assert frames_of(data, RLE, 2) == [b"abcdef", b"ghij"], "an empty fragment is no frame"


@pytest.mark.parametrize("table", [b"", offsets(0, 7), offsets(0, 12), offsets(0, 12, 24), b"\x00\x00"])
def test_marks_decide_where_the_table_is_empty_or_wrong(table: bytes) -> None:
    data = value(table, SOI + b"a", b"bc", b"d" + EOI + b"\x00", SOI + b"e", b"f" + EOI)
    assert frames_of(data, JPEG, 2) == [SOI + b"abcd" + EOI + b"\x00", SOI + b"ef" + EOI]


def test_one_frame_takes_all_fragments_but_not_other_frames() -> None:
    assert frames_of(value(b"", SOI + b"a", b"b" + EOI), JPEG, 1) == [SOI + b"ab" + EOI]
    assert frames_of(value(b"", SOI + b"a", b"b" + EOI), JPEG, 0) == [SOI + b"ab" + EOI]
    with pytest.raises(PixelFault) as fault:
        frames_of(value(b"", SOI + EOI, SOI + EOI), JPEG, 1)
    assert fault.value.code == FRAME_NUMBER_MISMATCH


def test_a_video_is_one_frame_whatever_number_of_frames_says() -> None:
    data = value(b"", b"abcd", b"ef")
    assert frames_of(data, "1.2.840.10008.1.2.4.102", 250) == [b"abcdef"]


def test_missing_table_and_missing_delimiter() -> None:
    assert frames_of(value(SOI + b"a", SOI + b"b", end=b""), JPEG, 2) == [SOI + b"a", SOI + b"b"]
    data = b"before" + value(b"", b"ab", b"cd", end=b"")
    assert frame_extents(data, 6, UNDEFINED, RLE, 2) == [[(22, 2)], [(32, 2)]]


def test_extended_table_cuts_the_padding_and_a_wrong_one_is_passed_over() -> None:
    data = value(b"", b"abc\x00", b"de")
    extended = {"extended_offsets": [0, 12], "extended_lengths": [3, 2]}
    assert frames_of(data, RLE, 2, **extended) == [b"abc", b"de"]
    assert frames_of(data, RLE, 2, extended_offsets=[0, 13], extended_lengths=[3, 2]) == [b"abc\x00", b"de"]
    assert frames_of(data, RLE, 2, extended_offsets=[0, 12], extended_lengths=[99, 2]) == [b"abc\x00", b"de"]


@pytest.mark.parametrize(
    ("data", "syntax", "frames", "code"),
    [
        (value(b"", b"ab", b"cd", b"ef"), RLE, 2, FRAME_NUMBER_MISMATCH),
        (value(b"", SOI, SOI, SOI + b"a"), JPEG, 2, FRAME_NUMBER_MISMATCH),
        (value(b"", b"ab"), RLE, 2, FRAME_NUMBER_MISMATCH),
        (value(offsets(0, 3), b"ab", b"cd", b"ef"), RLE, 2, INVALID_OFFSET_TABLE),
        (value(b"", b"ab", b"cd", b"ef"), syntaxes.DEFLATED_FRAMES, 2, FRAMES_EXTRACTION_FAILURE),
        (value(b""), JPEG, 1, FRAMES_EXTRACTION_FAILURE),
        (b"", JPEG, 1, FRAMES_EXTRACTION_FAILURE),
        (bytes(64), RLE, 1, FRAMES_EXTRACTION_FAILURE),
        (value(b"", b"abcd", end=b"")[:-1], RLE, 1, FRAMES_EXTRACTION_FAILURE),
        (value(b"", b"ab", end=b"") + b"\x00" * 8, RLE, 1, FRAMES_EXTRACTION_FAILURE),
    ],
)
def test_faults_carry_their_warning_code(data: bytes, syntax: str, frames: int, code: int) -> None:
    with pytest.raises(PixelFault) as fault:
        frames_of(data, syntax, frames)
    assert fault.value.code == code
    assert fault.value.reason.endswith(".")


PIECES = [ITEM, END, SOI, EOI, b"\x04\x00\x00\x00", b"\x00", b"\xff" * 4]


@given(st.lists(st.sampled_from(PIECES), max_size=30), st.integers(0, 3))
def test_no_bytes_make_it_fail_otherwise(pieces: list[bytes], frames: int) -> None:
    data = b"".join(pieces)
    try:
        found = frames_of(data, JPEG, frames)
    except PixelFault:
        return
    assert len(found) == max(frames, 1)


@pytest.mark.skipif(CORPUS is None, reason="needs the corpus")
def test_real_file_without_delimiter() -> None:
    assert CORPUS is not None
    data = (CORPUS / "synth/broken/encaps_no_sequence_delimiter.dcm").read_bytes()
    at = data.index(b"\xe0\x7f\x10\x00OB\x00\x00\xff\xff\xff\xff") + 12
    for number in (1, 4):
        try:
            extents = frame_extents(memoryview(data), at, UNDEFINED, syntaxes.HTJ2K_LOSSLESS, number)
        except PixelFault:
            continue
        assert all(data[start : start + 2] == b"\xff\x4f" for ((start, _), *_) in extents)
        return
    pytest.fail("the frames of the file were not found")


def format_of(
    rows: int, columns: int, bits: int, frames: int = 1, samples: int = 1, photometric: str = "MONOCHROME2"
) -> PixelFormat:
    return PixelFormat(rows, columns, samples, bits, bits, False, photometric, 0, frames)


def test_native_extents() -> None:
    assert native_extents(format_of(2, 3, 16, 2), 100, 24) == [(100, 12), (112, 12)]
    assert native_extents(format_of(3, 3, 8), 0, 10) == [(0, 9)], "a padding byte is passed over"
    assert native_extents(format_of(2, 2, 8, 1, 3, "YBR_FULL_422"), 0, 8) == [(0, 8)]
    assert native_extents(format_of(3, 3, 1, 2), 0, 4) == [(0, 2), (1, 2)], "frames of 9 bits"


@pytest.mark.parametrize(
    ("format", "length", "code"),
    [
        (format_of(2, 3, 16, 2), 12, FRAME_NUMBER_MISMATCH),
        (format_of(2, 3, 16, 2), 36, FRAME_NUMBER_MISMATCH),
        (format_of(2, 3, 16, 2), 20, FRAMES_EXTRACTION_FAILURE),
        (format_of(2, 3, 16, 2), 0, FRAMES_EXTRACTION_FAILURE),
        (format_of(0, 3, 16), 12, FRAMES_EXTRACTION_FAILURE),
        (format_of(2, 2, 8, 1, 3, "YBR_FULL_422"), 12, FRAMES_EXTRACTION_FAILURE),
        (format_of(1, 1, 8, 1 << 40), 100, FRAME_NUMBER_MISMATCH),
    ],
)
def test_native_faults(format: PixelFormat, length: int, code: int) -> None:
    with pytest.raises(PixelFault) as fault:
        native_extents(format, 0, length)
    assert fault.value.code == code


@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 20), st.randoms(use_true_random=False))
def test_one_bit_frames_come_apart_and_together(rows: int, columns: int, frames: int, random: Random) -> None:
    format = format_of(rows, columns, 1, frames)
    bits = [random.getrandbits(1) for _ in range(rows * columns * frames)]
    packed = bytes(sum(bit << i for i, bit in enumerate(bits[at : at + 8])) for at in range(0, len(bits), 8))
    unpacked = list(unpack_bits_frames(packed, format))
    size = rows * columns
    for number, frame in enumerate(unpacked):
        assert len(frame) == format.frame_bytes
        own = [frame[i // 8] >> i % 8 & 1 for i in range(len(frame) * 8)]
        assert own[:size] == bits[number * size : (number + 1) * size]
        assert not any(own[size:])
    assert pack_bits_frames(unpacked, format) == packed


def test_jp2_boxes_are_taken_off() -> None:
    signature = b"\x00\x00\x00\x0cjP  \r\n\x87\n"
    stream = b"\xff\x4f\xff\x51rest"
    brand = struct.pack(">I", 12) + b"ftypjp2 "
    for box in (
        struct.pack(">I", 8 + len(stream)) + b"jp2c" + stream + b"\x00",
        struct.pack(">I", 0) + b"jp2c" + stream,
        struct.pack(">I", 1) + b"jp2c" + struct.pack(">Q", 16 + len(stream)) + stream,
    ):
        data = signature + brand + box
        at, length = bare_codestream(data)
        assert data[at : at + length] == stream
    assert bare_codestream(stream) == (0, len(stream))
    for broken in (signature, signature + brand, signature + struct.pack(">I", 3) + b"jp2c"):
        with pytest.raises(PixelFault):
            bare_codestream(broken)
