"""The codecs against the corpus, random arrays, a second decoder, and damaged input; the table of transfer syntaxes."""

import hashlib
import itertools
import struct
import warnings
import zlib
from dataclasses import replace
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest

from adapters.codecs import codestream
from adapters.codecs.registry import Codecs, Decoder, Encoder
from gateway.domain import syntaxes
from gateway.domain.encapsulation import PixelFault, frame_extents, native_extents, unpack_bits_frames
from gateway.domain.errors import Corrupt, GatewayError, NotAcceptable
from gateway.domain.pixels import PixelFormat
from tests.corpus import CORPUS, manifest

RPCL = syntaxes.HTJ2K_LOSSLESS_RPCL
CODECS = Codecs()


# --- the corpus ---------------------------------------------------------------------------------------------------


def read(path: str) -> tuple[str, PixelFormat, pydicom.DataElement, pydicom.Dataset]:
    assert CORPUS is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # damaged headers are another module's concern
        ds = pydicom.dcmread(CORPUS / path, force=True)
        keyword = next(k for k in ("PixelData", "FloatPixelData", "DoubleFloatPixelData") if k in ds)
        format = PixelFormat(
            rows=ds.Rows,
            columns=ds.Columns,
            samples=ds.SamplesPerPixel,
            bits_allocated=ds.BitsAllocated,
            bits_stored=ds.get("BitsStored", 0) or 0,
            signed=bool(ds.get("PixelRepresentation", 0)),
            photometric=ds.PhotometricInterpretation,
            planar=ds.get("PlanarConfiguration", 0) or 0,
            frames=int(ds.get("NumberOfFrames", 1) or 1),
            floating=keyword != "PixelData",
        )
        return ds.file_meta.TransferSyntaxUID, format, ds[keyword], ds


def native_frames(path: str) -> list[bytes]:
    syntax, format, element, ds = read(path)
    value = element.value
    row = syntaxes.by_uid(syntax)
    if row is not None and row.encapsulated:
        tables = [ds.get(k) for k in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
        numbers = [list(struct.unpack(f"<{len(t) // 8}Q", t)) if t else None for t in tables]
        extents = frame_extents(value, 0, len(value), syntax, format.frames, *numbers)
        return [CODECS.decode(b"".join(value[a : a + n] for a, n in frame), syntax, format) for frame in extents]
    if syntax == syntaxes.BIG_ENDIAN:
        value = CODECS.little_endian(value, format, element.VR == "OW")
    if format.bits_allocated == 1:
        return list(unpack_bits_frames(value, format))
    places = native_extents(format, 0, len(value))
    return [CODECS.decode(value[at : at + size], syntaxes.EXPLICIT_LE, format) for at, size in places]


def is_exact(record: dict[str, Any]) -> bool:
    """Whether every decoder must give these very samples: DCT decoders may differ in the last bit."""
    pixel = record.get("pixel") or {}
    row = syntaxes.by_uid(record.get("transfer_syntax_uid") or "")
    if "decoded_sha256" not in pixel or row is None or record["expect_decode"] != "yes":
        return False
    if row.family is syntaxes.Family.JPEG and row.lossy:
        return all(check["equal"] for check in pixel.get("crosschecks", [{"equal": False}]))
    return True


EXACT = [record for record in manifest() if is_exact(record)]


@pytest.mark.skipif(CORPUS is None, reason="needs the corpus")
def test_every_exact_file_of_the_corpus_decodes_to_its_hash_and_survives_the_store_format() -> None:
    assert len(EXACT) > 550
    wrong = []
    for record in EXACT:
        syntax, format, _, _ = read(record["path"])
        frames = native_frames(record["path"])
        plain = syntaxes.decoded(format, syntax)
        samples = frames
        if format.bits_allocated == 1:
            samples = [
                np.unpackbits(np.frombuffer(f, np.uint8), count=format.frame_bits, bitorder="little").tobytes()
                for f in frames
            ]
        if hashlib.sha256(b"".join(samples)).hexdigest() != record["pixel"]["decoded_sha256"]:
            wrong.append(record["path"])
        if "frame_sha256" in record["pixel"]:
            told = [value for value in record["pixel"]["frame_sha256"] if value != "..."]  # the first and the last
            assert set(told) <= {hashlib.sha256(frame).hexdigest() for frame in samples}, record["path"]
        if syntaxes.htj2k_holds(plain):
            assert codestream.parse(CODECS.encode(frames[-1], plain, RPCL)).is_lossless_rpcl
    assert not wrong


@pytest.mark.skipif(CORPUS is None, reason="needs the corpus")
@pytest.mark.parametrize(("lossy", "lossless"), [("u8_jpeg_50", "u8mf_rle"), ("u12_jpeg_51", "u12_jpeg_57")])
def test_lossy_jpeg_is_close_to_its_source(lossy: str, lossless: str) -> None:
    _, format, _, _ = read(f"synth/transfer-syntax/{lossy}.dcm")
    kind = f"<u{format.bits_allocated // 8}"
    ours, truth = (
        np.frombuffer(native_frames(f"synth/transfer-syntax/{name}.dcm")[0], kind).astype(int)
        for name in (lossy, lossless)
    )
    assert abs(truth - ours).mean() < 0.02 * (1 << format.bits_stored)


@pytest.mark.skipif(CORPUS is None, reason="needs the corpus")
def test_the_same_picture_in_every_syntax_of_wg04() -> None:
    for picture in ("CT1", "MR1", "NM1"):
        frames = {k: native_frames(f"wg04/{picture}_{k}.dcm")[0] for k in ("J2KR", "JPH", "JLSL", "JPLL", "RLE")}
        assert len(set(frames.values())) == 1, picture


@pytest.mark.skipif(CORPUS is None, reason="needs the corpus")
def test_damaged_files_are_faults_of_the_known_kinds() -> None:
    damaged = [r for r in manifest() if r["path"].startswith("synth/broken/encaps") and "pixel" in r]
    outcomes: dict[str, int | str] = {}
    for record in damaged:
        try:
            outcomes[record["path"]] = len(native_frames(record["path"]))
        except (PixelFault, GatewayError) as fault:
            outcomes[record["path"]] = type(fault).__name__
        except (StopIteration, AttributeError):  # pydicom finds no pixel data
            continue
    assert outcomes["synth/broken/encaps_bad_bot.dcm"] == 4
    assert outcomes["synth/broken/encaps_dims_mismatch.dcm"] == "Corrupt"
    assert outcomes["synth/broken/encaps_fewer_frames.dcm"] == "PixelFault"
    assert outcomes["synth/broken/encaps_damaged_frame_2.dcm"] == "Corrupt"
    assert outcomes["synth/broken/encaps_garbage_codestream.dcm"] == "Corrupt"


# --- the store format ---------------------------------------------------------------------------------------------


def gray(rows: int, columns: int, allocated: int, stored: int, signed: bool = False) -> PixelFormat:
    return PixelFormat(rows, columns, 1, allocated, stored, signed, "MONOCHROME2")


def random_frame(format: PixelFormat, seed: int = 0) -> bytes:
    low = -(1 << format.bits_stored - 1) if format.signed else 0
    high = low + (1 << format.bits_stored) - 1
    shape = (format.rows, format.columns, format.samples)
    kind = f"<{'i' if format.signed else 'u'}{format.bits_allocated // 8}"
    return np.random.default_rng(seed).integers(low, high, shape, endpoint=True, dtype=np.int64).astype(kind).tobytes()


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("stored", range(1, 33))
def test_round_trip_of_every_depth(stored: int, samples: int, signed: bool) -> None:
    for allocated in (8, 16, 32):
        if stored > allocated:
            continue
        format = replace(gray(37, 131, allocated, stored, signed), samples=samples)
        format = replace(format, photometric="RGB" if samples == 3 else "MONOCHROME2")
        frame = random_frame(format)
        encoded = CODECS.encode(frame, format, RPCL)
        assert CODECS.decode(encoded, RPCL, format) == frame
        header = codestream.parse(encoded)
        assert (header.bits, header.signed, header.transformed) == (stored, signed, samples == 3)
        assert header.is_lossless_rpcl
        if stored <= 16:  # what the independent decoder reads whatever the version of the encoder
            other = imagecodecs.jpeg2k_decode(encoded, planar=False)
            assert other.astype(f"<{'i' if signed else 'u'}{allocated // 8}").tobytes() == frame


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("syntax", [syntaxes.JPEG_2000_LOSSLESS, syntaxes.JPEG_LS_LOSSLESS, syntaxes.RLE])
def test_round_trip_of_every_depth_in_the_syntaxes_out(syntax: str, samples: int, signed: bool) -> None:
    sizes = itertools.cycle([(37, 131), (1, 1), (1, 300), (300, 1), (2, 2), (64, 64)])
    for allocated, stored in itertools.product((8, 16, 32), range(1, 33)):
        format = replace(gray(*next(sizes), allocated, stored, signed), samples=samples)
        format = replace(format, photometric="RGB" if samples == 3 else "MONOCHROME2")
        if stored > allocated:
            continue
        frame = random_frame(format)
        if not syntaxes.holds(format, syntax):
            assert allocated == 32
            with pytest.raises(NotAcceptable):
                CODECS.encode(frame, format, syntax)
            continue
        encoded = CODECS.encode(frame, format, syntax)
        assert CODECS.decode(encoded, syntax, format) == frame
        if syntax == syntaxes.JPEG_2000_LOSSLESS:
            header = codestream.parse(encoded)
            assert (header.bits, header.signed) == (max(stored, 2 if samples == 3 else 1), signed)
            assert header.reversible
            assert header.transformed == (samples == 3)
        elif syntax == syntaxes.JPEG_LS_LOSSLESS:
            # What a reader that knows no sign makes of it: the very bytes.
            assert imagecodecs.jpegls_decode(encoded).astype(f"<u{allocated // 8}").tobytes() == frame


@pytest.mark.parametrize("syntax", syntaxes.LOSSLESS_OUT)
def test_bits_above_bits_stored_are_kept_in_the_syntaxes_out(syntax: str) -> None:
    for signed in (False, True):
        format = gray(20, 30, 16, 12, signed)
        for frame in (random_frame(gray(20, 30, 16, 16)), (np.arange(600, dtype="<u2") % 4096).tobytes()):
            assert CODECS.decode(CODECS.encode(frame, format, syntax), syntax, format) == frame


def test_planes_become_pixels_in_the_syntaxes_out() -> None:
    planes = np.random.default_rng(6).integers(0, 256, (3, 20, 33), np.uint8)
    for photometric in ("RGB", "YBR_FULL"):
        format = PixelFormat(20, 33, 3, 8, 8, False, photometric, planar=1)
        for syntax in syntaxes.LOSSLESS_OUT:
            encoded = CODECS.encode(planes.tobytes(), format, syntax)
            told = syntaxes.encoded(format, syntax)
            assert told.planar == 0
            assert CODECS.decode(encoded, syntax, told) == planes.transpose(1, 2, 0).tobytes(), (syntax, photometric)


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1), (64, 64), (65, 64), (2, 3)])
def test_base_resolution_is_at_most_64(size: tuple[int, int]) -> None:
    format = gray(*size, 16, 12)
    encoded = CODECS.encode(random_frame(format), format, RPCL)
    header = codestream.parse(encoded)
    assert min(size) <= 64 << header.levels
    assert max(size) <= 64 << header.levels or min(size) == 1
    assert header.is_lossless_rpcl


@pytest.mark.parametrize("signed", [False, True])
def test_bits_above_bits_stored_are_kept(signed: bool) -> None:
    """An overlay in the high bits, a high bit at the top, no sign extension: the cell is what must survive."""
    format = gray(20, 30, 16, 12, signed)
    for seed in range(3):
        frame = random_frame(gray(20, 30, 16, 16), seed)
        assert CODECS.decode(CODECS.encode(frame, format, RPCL), RPCL, format) == frame
    unextended = (np.arange(600, dtype="<u2") % 4096).tobytes()
    assert CODECS.decode(CODECS.encode(unextended, format, RPCL), RPCL, format) == unextended


def test_colour_by_plane_comes_out_by_pixel_and_other_spaces_are_not_transformed() -> None:
    planes = np.arange(3 * 5 * 7, dtype=np.uint8).reshape(3, 5, 7)
    format = PixelFormat(5, 7, 3, 8, 8, False, "YBR_FULL", planar=1)
    encoded = CODECS.encode(planes.tobytes(), format, RPCL)
    by_pixel = planes.transpose(1, 2, 0).tobytes()
    assert CODECS.decode(encoded, RPCL, format) == by_pixel
    assert not codestream.parse(encoded).transformed
    assert CODECS.decode(planes.tobytes(), syntaxes.EXPLICIT_LE, format) == by_pixel
    assert CODECS.facts(planes.tobytes(), format).crc32 == zlib.crc32(by_pixel)


@pytest.mark.parametrize(
    "format",
    [
        PixelFormat(2, 2, 3, 8, 8, False, "YBR_FULL_422"),
        PixelFormat(8, 2, 1, 1, 1, False, "MONOCHROME2"),
        PixelFormat(2, 2, 1, 32, 32, False, "MONOCHROME2", floating=True),
        PixelFormat(2, 2, 1, 64, 64, False, "MONOCHROME2"),
        PixelFormat(2, 2, 1, 8, 9, False, "MONOCHROME2"),
    ],
)
def test_what_htj2k_cannot_carry_stays_native(format: PixelFormat) -> None:
    frame = bytes(range(format.frame_bytes))
    with pytest.raises(NotAcceptable):
        CODECS.encode(frame, format, RPCL)
    assert syntaxes.stored_as(syntaxes.EXPLICIT_LE, format) == syntaxes.EXPLICIT_LE
    assert CODECS.encode(frame, format, syntaxes.EXPLICIT_LE) == frame


def test_an_encoder_that_changes_samples_is_found_out() -> None:
    broken = Codecs([f"{__name__}:lossy_plug_in"])
    format = gray(4, 4, 8, 8)
    with pytest.raises(Corrupt, match="same samples"):
        broken.encode(bytes(16), format, RPCL)


def lossy_plug_in(decoders: dict[str, Decoder], encoders: dict[str, Encoder]) -> None:
    genuine = encoders[RPCL]
    encoders[RPCL] = lambda samples, format: genuine(samples ^ 1, format)


def test_plug_ins_add_and_replace() -> None:
    codecs = Codecs([f"{__name__}:private_plug_in"])
    assert codecs.decode(b"anything", "1.2.3", gray(2, 2, 8, 8)) == b"\x07" * 4
    with pytest.raises(NotAcceptable):
        CODECS.decode(b"anything", "1.2.3", gray(2, 2, 8, 8))


def private_plug_in(decoders: dict[str, Decoder], encoders: dict[str, Encoder]) -> None:
    decoders["1.2.3"] = lambda data, format: np.full((format.rows, format.columns), 7, np.uint8)


# --- thumbnails ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "small", "skipped"),
    [((512, 512), (128, 128), 2), ((300, 700), (75, 175), 2), ((2140, 1760), (134, 110), 4)],
)
def test_the_prefix_is_a_small_picture(size: tuple[int, int], small: tuple[int, int], skipped: int) -> None:
    format = gray(*size, 16, 12)
    encoded = CODECS.encode(random_frame(format), format, RPCL)
    prefix = CODECS.thumbnail_prefix(encoded)
    assert 0 < prefix < len(encoded) / 8
    native, low = CODECS.reduced(encoded[:prefix], format, 128)
    assert (low.rows, low.columns) == small
    assert native == imagecodecs.htj2k_decode(encoded, skipres=skipped).tobytes()


def test_small_frames_have_no_prefix_and_a_cut_prefix_is_refused() -> None:
    format = gray(100, 128, 8, 8)
    assert CODECS.thumbnail_prefix(CODECS.encode(random_frame(format), format, RPCL)) == 0
    format = gray(512, 512, 8, 8)
    encoded = CODECS.encode(random_frame(format), format, RPCL)
    with pytest.raises(Corrupt):
        CODECS.reduced(encoded[: CODECS.thumbnail_prefix(encoded) - 9], format, 128)


# --- damaged codestreams ------------------------------------------------------------------------------------------


def test_the_pre_check_keeps_bad_headers_from_the_decoder() -> None:
    format = gray(64, 80, 16, 12)
    good = CODECS.encode(random_frame(format), format, RPCL)
    cod = good.index(b"\xff\x52")
    patches = {
        "image offset": (16, b"\x00\x00\x00\x01"),
        "tile offset": (32, b"\x00\x00\x00\x01"),
        "tile size": (24, bytes(4)),
        "rows": (12, b"\x00\x00\x00\x41"),
        "huge": (8, b"\x7f\xff\xff\xff\x7f\xff\xff\xff"),
        "components": (40, b"\x00\x02"),
        "subsampled": (43, b"\x02"),
        "depth": (42, b"\x1f"),
        "unknown marker": (cod, b"\xff\x7e"),
        "levels": (cod + 9, b"\x7f"),
        "not high throughput": (cod + 12, b"\x00"),
        "tile part": (good.index(b"\xff\x90") + 6, b"\x00\x00\x00\x20"),
    }
    for name, (at, patch) in patches.items():
        with pytest.raises(Corrupt):
            pytest.fail(f"{name}: {len(CODECS.decode(good[:at] + patch + good[at + len(patch) :], RPCL, format))}")
    for cut in itertools.chain(range(0, 160), range(160, len(good), 97)):
        with pytest.raises(Corrupt):
            CODECS.decode(good[:cut], RPCL, format)
    assert CODECS.decode(good + b"\x00", RPCL, format) == CODECS.decode(good, RPCL, format), "padding is no damage"


def test_other_syntaxes_refuse_nonsense() -> None:
    format = gray(8, 8, 16, 12)
    for row in syntaxes.TABLE:
        for data in (b"", bytes(70), b"\xff\xd8\xff\xc0", b"\xff\xd8\xff\xf7\x00\x0b\x0c\x00\x08\x00\x09\x01\x01\x11"):
            with pytest.raises((Corrupt, NotAcceptable)):
                CODECS.decode(data, row.uid, format)


def test_rle_segments_are_bounded() -> None:
    format = gray(2, 2, 8, 8)
    head = struct.pack("<16I", 1, 64, *[0] * 14)
    assert CODECS.decode(head + b"\x03abcd\x00", syntaxes.RLE, format) == b"abcd"
    for body in (b"\x03abc", b"\x01ab", b"\x81a\x81a", b""):
        with pytest.raises(Corrupt):
            CODECS.decode(head + body, syntaxes.RLE, format)
    with pytest.raises(Corrupt):
        CODECS.decode(struct.pack("<16I", 1, 9999, *[0] * 14) + b"\x03abcd", syntaxes.RLE, format)


def test_deflated_frames_do_not_blow_up() -> None:
    format = gray(2, 2, 8, 8)

    def deflated(data: bytes) -> bytes:
        return zlib.compress(data, wbits=-15)

    assert CODECS.decode(deflated(b"abcd"), syntaxes.DEFLATED_FRAMES, format) == b"abcd"
    assert CODECS.decode(deflated(b"abcd" + bytes(1 << 24)), syntaxes.DEFLATED_FRAMES, format) == b"abcd"
    with pytest.raises(Corrupt):
        CODECS.decode(deflated(b"abc"), syntaxes.DEFLATED_FRAMES, format)


# --- native -------------------------------------------------------------------------------------------------------


def test_big_endian_values() -> None:
    assert CODECS.little_endian(b"abcdef", gray(1, 3, 16, 16), True) == b"badcfe"
    assert CODECS.little_endian(b"abcdefgh", gray(1, 2, 32, 32), True) == b"dcbahgfe"
    assert CODECS.little_endian(b"abcd", gray(1, 3, 8, 8), True) == b"badc", "8-bit cells in words"
    assert CODECS.little_endian(b"abcd", gray(1, 3, 8, 8), False) == b"abcd"
    assert CODECS.decode(b"abcdef", syntaxes.BIG_ENDIAN, gray(1, 3, 16, 16)) == b"badcfe"


def test_facts_of_a_frame() -> None:
    frame = np.array([[-5, 7], [3, -2048]], "<i2").tobytes()
    facts = CODECS.facts(frame, gray(2, 2, 16, 12, True))
    assert (facts.crc32, facts.minimum, facts.maximum, facts.decoded_bytes) == (zlib.crc32(frame), -2048, 7, 8)
    unextended = np.array([0x0FFB, 7, 3, 0x0800], "<u2").tobytes()
    facts = CODECS.facts(unextended, gray(2, 2, 16, 12, True))
    assert (facts.minimum, facts.maximum) == (-2048, 7), "the sign is that of Bits Stored"
    overlay = np.array([0xF001, 0x8FFF], "<u2").tobytes()
    facts = CODECS.facts(overlay, gray(1, 2, 16, 12))
    assert (facts.minimum, facts.maximum) == (1, 4095)
    assert CODECS.facts(b"\x01\x02", gray(4, 4, 1, 1)).minimum is None
    assert CODECS.facts(bytes(16), PixelFormat(2, 2, 1, 32, 0, False, "MONOCHROME2", floating=True)).maximum is None


def test_a_frame_of_the_wrong_size_is_refused() -> None:
    for syntax in (syntaxes.EXPLICIT_LE, syntaxes.BIG_ENDIAN):
        with pytest.raises(Corrupt):
            CODECS.decode(bytes(7), syntax, gray(2, 2, 16, 16))
    with pytest.raises(Corrupt):
        CODECS.encode(bytes(7), gray(2, 2, 16, 16), RPCL)


# --- the table ----------------------------------------------------------------------------------------------------


def test_media_types() -> None:
    def uids(media_type: str) -> list[str]:
        return [row.uid.removeprefix("1.2.840.10008.1.2") for row in syntaxes.by_media_type(media_type)]

    assert uids("image/jpeg") == [".4.70", ".4.50", ".4.51", ".4.57"]
    assert uids("image/dicom+jpeg") == uids("image/jpeg")
    assert uids("image/jphc") == uids("IMAGE/JPH") == [".4.201", ".4.202", ".4.203"]
    assert uids("image/jls") == [".4.80", ".4.81"]
    assert uids("image/jp2") == [".4.90", ".4.91"]
    assert uids("image/jpx") == [".4.92", ".4.93"]
    assert uids("image/dicom-rle") == [".5"]
    assert uids("video/mpeg2")[0] == ".4.101"
    assert uids("application/octet-stream") == [".1"]
    assert uids("text/html") == []
    assert syntaxes.media_type(RPCL) == "image/jphc"
    assert syntaxes.media_type("1.2.3") == "application/octet-stream"


@pytest.mark.parametrize(
    ("suffix", "content_type"),
    [
        (".4.202", "image/jph"),
        (".4.203", "image/jphc"),
        (".4.91", "image/j2c"),
        (".4.50", "image/jpeg"),
        (".4.112", "image/jxl"),
        (".1", "application/octet-stream"),
        (".4.101.1", "video/mpeg"),
        (".4.106.1", "video/mp4"),
        (".4.107", "video/H256"),
    ],
)
def test_frame_content_type(suffix: str, content_type: str) -> None:
    assert syntaxes.frame_content_type("1.2.840.10008.1.2" + suffix) == content_type
    assert syntaxes.frame_content_type(None) == "image/jph"


def test_what_is_kept_and_what_is_transcoded() -> None:
    plain = gray(8, 8, 16, 12)
    kept = {row.uid.removeprefix("1.2.840.10008.1.2") for row in syntaxes.TABLE if row.kept and not row.video}
    assert kept == {".4.50", ".4.91", ".4.112", ".4.203"}
    assert syntaxes.stored_as(syntaxes.JPEG_EXTENDED, plain) == RPCL
    assert syntaxes.stored_as(syntaxes.JPEG_BASELINE, plain) == syntaxes.JPEG_BASELINE
    assert syntaxes.stored_as("1.2.840.10008.1.2.4.94", plain) is None
    assert syntaxes.stored_as("1.2.3", plain) is None
    assert syntaxes.stored_as(syntaxes.RLE, gray(8, 8, 1, 1)) == syntaxes.EXPLICIT_LE
    assert set(CODECS.missing()) == {r.uid for r in syntaxes.TABLE if r.video or r.family is syntaxes.Family.REFERENCED}


def test_labels_follow_the_conversion() -> None:
    rgb = PixelFormat(2, 2, 3, 8, 8, False, "RGB", planar=1)
    assert syntaxes.encoded(rgb, RPCL).photometric == "YBR_RCT"
    assert syntaxes.encoded(rgb, syntaxes.JPEG_LS_LOSSLESS) == replace(rgb, planar=0)
    assert syntaxes.decoded(replace(rgb, photometric="YBR_ICT"), syntaxes.JPEG_2000) == replace(rgb, planar=0)
    halved = replace(rgb, photometric="YBR_FULL_422", planar=0)
    assert syntaxes.decoded(halved, syntaxes.JPEG_BASELINE).photometric == "YBR_FULL"
    assert syntaxes.decoded(halved, syntaxes.EXPLICIT_LE) == halved
