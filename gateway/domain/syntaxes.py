"""The transfer syntaxes: one table of what each is, how its frames are named and what becomes of it on import.

by_uid(uid)               the row, None for a syntax that DICOM or this gateway does not know
by_media_type(type)       the rows that a media type may stand for, its default first (PS3.18 table 8.7.3)
media_type(uid)           the type of a frame as a DICOMweb part
frame_content_type(uid)   the Content-Type of GetImageFrame (API: GetImageFrame)
decoded, encoded          what a conversion does to Photometric Interpretation and Planar Configuration (TS-11)
"""

from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from .pixels import PixelFormat

_ROOT = "1.2.840.10008.1.2"

IMPLICIT_LE = _ROOT
EXPLICIT_LE = _ROOT + ".1"
ENCAPSULATED_LE = _ROOT + ".1.98"
DEFLATED = _ROOT + ".1.99"
BIG_ENDIAN = _ROOT + ".2"
JPEG_BASELINE = _ROOT + ".4.50"
JPEG_EXTENDED = _ROOT + ".4.51"
JPEG_LOSSLESS = _ROOT + ".4.57"
JPEG_LOSSLESS_SV1 = _ROOT + ".4.70"
JPEG_LS_LOSSLESS = _ROOT + ".4.80"
JPEG_LS = _ROOT + ".4.81"
JPEG_2000_LOSSLESS = _ROOT + ".4.90"
JPEG_2000 = _ROOT + ".4.91"
JPEG_2000_MC_LOSSLESS = _ROOT + ".4.92"
JPEG_2000_MC = _ROOT + ".4.93"
JPEG_XL_LOSSLESS = _ROOT + ".4.110"
JPEG_XL_JPEG = _ROOT + ".4.111"
JPEG_XL = _ROOT + ".4.112"
HTJ2K_LOSSLESS = _ROOT + ".4.201"
HTJ2K_LOSSLESS_RPCL = _ROOT + ".4.202"
HTJ2K = _ROOT + ".4.203"
RLE = _ROOT + ".5"
DEFLATED_FRAMES = _ROOT + ".8.1"

OCTETS = "application/octet-stream"


class Family(Enum):
    """What a frame is made of: it decides how frames are told apart and which codec reads them."""

    NATIVE = "native"
    JPEG = "jpeg"
    JPEG_LS = "jpeg-ls"
    JPEG_2000 = "jpeg-2000"
    HTJ2K = "htj2k"
    JPEG_XL = "jpeg-xl"
    RLE = "rle"
    DEFLATE = "deflate"
    VIDEO = "video"
    REFERENCED = "referenced"
    """The data set holds no pixels, only where they are (JPIP)."""


class Fate(Enum):
    """What import makes of the pixels (healthimaging.md 6.4)."""

    KEPT = "kept"
    """Stored as they came."""
    TRANSCODED = "transcoded"
    """Stored in the lossless format of the data store; one-bit samples as Explicit VR LE."""
    UNSUPPORTED = "unsupported"
    """Warning B120: kept as one blob, or there are no pixels (JPIP)."""


@dataclass(frozen=True, slots=True)
class TransferSyntax:
    """One row of the table."""

    uid: str
    name: str
    family: Family
    media_type: str
    """Of one frame as a DICOMweb part (PS3.18 table 8.7.3)."""
    frame_content_type: str
    """Of GetImageFrame (healthimaging.md 3.2)."""
    fate: Fate
    lossy: bool = False
    """The syntax allows loss; only a lossless one may be reached by re-encoding (TS-05)."""
    encapsulated: bool = True

    @property
    def video(self) -> bool:
        """The Pixel Data is one stream, not frames."""
        return self.family is Family.VIDEO

    @property
    def kept(self) -> bool:
        """Stored as it came (healthimaging.md 6.4)."""
        return self.fate is Fate.KEPT


def _row(
    suffix: str,
    name: str,
    family: Family,
    media_type: str,
    fate: Fate = Fate.TRANSCODED,
    *,
    content: str = OCTETS,
    lossy: bool = False,
    encapsulated: bool = True,
) -> TransferSyntax:
    return TransferSyntax(_ROOT + suffix, name, family, media_type, content, fate, lossy, encapsulated)


def _video(suffix: str, name: str, media_type: str, content: str) -> tuple[TransferSyntax, ...]:
    rows = (suffix, name), (suffix + ".1", "Fragmentable " + name)
    return tuple(_row(s, n, Family.VIDEO, media_type, Fate.KEPT, content=content, lossy=True) for s, n in rows)


def _referenced(suffix: str, name: str) -> TransferSyntax:
    return _row(suffix, name, Family.REFERENCED, OCTETS, Fate.UNSUPPORTED, encapsulated=False)


_KEPT = Fate.KEPT

TABLE: tuple[TransferSyntax, ...] = (
    _row("", "Implicit VR Little Endian", Family.NATIVE, OCTETS, encapsulated=False),
    _row(".1", "Explicit VR Little Endian", Family.NATIVE, OCTETS, encapsulated=False),
    _row(".1.98", "Encapsulated Uncompressed Explicit VR Little Endian", Family.NATIVE, OCTETS),
    _row(".1.99", "Deflated Explicit VR Little Endian", Family.NATIVE, OCTETS, encapsulated=False),
    _row(".2", "Explicit VR Big Endian", Family.NATIVE, OCTETS, encapsulated=False),
    _row(".4.70", "JPEG Lossless, First-Order Prediction", Family.JPEG, "image/jpeg"),
    _row(".4.50", "JPEG Baseline (Process 1)", Family.JPEG, "image/jpeg", _KEPT, content="image/jpeg", lossy=True),
    _row(".4.51", "JPEG Extended (Process 2 and 4)", Family.JPEG, "image/jpeg", lossy=True),
    _row(".4.57", "JPEG Lossless (Process 14)", Family.JPEG, "image/jpeg"),
    _row(".4.80", "JPEG-LS Lossless", Family.JPEG_LS, "image/jls"),
    _row(".4.81", "JPEG-LS Lossy (Near-Lossless)", Family.JPEG_LS, "image/jls", lossy=True),
    _row(".4.90", "JPEG 2000 (Lossless Only)", Family.JPEG_2000, "image/jp2", content="image/j2c"),
    _row(".4.91", "JPEG 2000", Family.JPEG_2000, "image/jp2", _KEPT, content="image/j2c", lossy=True),
    _row(".4.92", "JPEG 2000 Part 2 Multi-component (Lossless Only)", Family.JPEG_2000, "image/jpx"),
    _row(".4.93", "JPEG 2000 Part 2 Multi-component", Family.JPEG_2000, "image/jpx", lossy=True),
    _row(".4.110", "JPEG XL Lossless", Family.JPEG_XL, "image/jxl"),
    _row(".4.111", "JPEG XL JPEG Recompression", Family.JPEG_XL, "image/jxl", lossy=True),
    _row(".4.112", "JPEG XL", Family.JPEG_XL, "image/jxl", _KEPT, content="image/jxl", lossy=True),
    _row(".4.201", "HTJ2K (Lossless Only)", Family.HTJ2K, "image/jphc"),
    _row(".4.202", "HTJ2K with RPCL Options (Lossless Only)", Family.HTJ2K, "image/jphc", content="image/jph"),
    _row(".4.203", "HTJ2K", Family.HTJ2K, "image/jphc", _KEPT, content="image/jphc", lossy=True),
    _row(".5", "RLE Lossless", Family.RLE, "image/dicom-rle"),
    _row(".8.1", "Deflated Image Frame Compression", Family.DEFLATE, OCTETS),
    *_video(".4.101", "MPEG2 Main Profile / High Level", "video/mpeg2", "video/mpeg"),
    *_video(".4.100", "MPEG2 Main Profile / Main Level", "video/mpeg2", "video/mpeg"),
    *_video(".4.102", "MPEG-4 AVC/H.264 High Profile / Level 4.1", "video/mp4", "video/mp4"),
    *_video(".4.103", "MPEG-4 AVC/H.264 BD-compatible High Profile / Level 4.1", "video/mp4", "video/mp4"),
    *_video(".4.104", "MPEG-4 AVC/H.264 High Profile / Level 4.2 for 2D Video", "video/mp4", "video/mp4"),
    *_video(".4.105", "MPEG-4 AVC/H.264 High Profile / Level 4.2 for 3D Video", "video/mp4", "video/mp4"),
    *_video(".4.106", "MPEG-4 AVC/H.264 Stereo High Profile / Level 4.2", "video/mp4", "video/mp4"),
    *_video(".4.107", "HEVC/H.265 Main Profile / Level 5.1", "video/H265", "video/H256"),
    *_video(".4.108", "HEVC/H.265 Main 10 Profile / Level 5.1", "video/H265", "video/H256"),
    _referenced(".4.94", "JPIP Referenced"),
    _referenced(".4.95", "JPIP Referenced Deflate"),
    _referenced(".4.204", "JPIP HTJ2K Referenced"),
    _referenced(".4.205", "JPIP HTJ2K Referenced Deflate"),
)
"""Every transfer syntax known here. Within a media type its default comes first (PS3.18 table 8.7.3; TS-08)."""

ALIASES: dict[str, str] = {
    "image/dicom+jpeg": "image/jpeg",
    "image/jpg": "image/jpeg",
    "image/jll": "image/jpeg",
    "image/x-dicom-rle": "image/dicom-rle",
    "image/x-jls": "image/jls",
    "image/jhc": "image/jphc",
    "image/jph": "image/jphc",
    "video/mpeg": "video/mpeg2",
    "video/h256": "video/h265",
}
"""Names that clients use for the media types of the table, in lower case (dicomweb.md 3)."""

_BY_UID = {row.uid: row for row in TABLE}
_BY_MEDIA: dict[str, tuple[TransferSyntax, ...]] = {
    media.lower(): tuple(row for row in TABLE if row.media_type == media)
    for media in {row.media_type for row in TABLE} - {OCTETS}
} | {OCTETS: (_BY_UID[EXPLICIT_LE],)}

KEPT_AS_IS = frozenset(row.uid for row in TABLE if row.kept)
"""Stored = original. One-bit samples in Explicit VR LE are too: see `stored_as` (healthimaging.md 6.4)."""
TRANSCODED_ON_IMPORT = frozenset(row.uid for row in TABLE if row.fate is Fate.TRANSCODED)
"""Read on import and stored in the data store's lossless format (healthimaging.md 6.4)."""


def by_uid(uid: str) -> TransferSyntax | None:
    """The row of a transfer syntax; None for one that is unknown here, private ones among them."""
    return _BY_UID.get(uid)


def by_media_type(media_type: str) -> tuple[TransferSyntax, ...]:
    """The syntaxes that a media type (or an alias, in any case) may stand for, its default first; () if none."""
    name = media_type.strip().lower()
    return _BY_MEDIA.get(ALIASES.get(name, name), ())


def media_type(syntax: str) -> str:
    """The media type of one frame in a syntax (PS3.18 table 8.7.3); octets for native and unknown ones."""
    row = _BY_UID.get(syntax)
    return row.media_type if row else OCTETS


def frame_content_type(syntax: str | None) -> str:
    """The Content-Type of GetImageFrame; None means the store's lossless format (healthimaging.md 3.2)."""
    row = _BY_UID.get(syntax or HTJ2K_LOSSLESS_RPCL)
    return row.frame_content_type if row else OCTETS


LOSSLESS: Final = {"HTJ2K": HTJ2K_LOSSLESS_RPCL, "JPEG_2000_LOSSLESS": JPEG_2000_LOSSLESS}
"""losslessStorageFormat of a data store -> the syntax of what it transcodes. Frames stored in these are our own."""


def stored_as(syntax: str, format: PixelFormat, lossless: str = HTJ2K_LOSSLESS_RPCL) -> str | None:
    """The syntax in which import stores these pixels, None for one that is unsupported (healthimaging.md 6.4).

    `lossless` is that of the data store. What it cannot carry without a change (one-bit, floating, 64-bit and 4:2:2
    samples; in JPEG 2000 also 32-bit ones) stays native.
    """
    row = _BY_UID.get(syntax)
    if row is None or row.fate is Fate.UNSUPPORTED:
        return None
    if row.kept:
        return syntax
    return lossless if holds(decoded(format, syntax), lossless) else EXPLICIT_LE


def htj2k_holds(format: PixelFormat) -> bool:
    """Whether HTJ2K carries native frames of this format bit for bit: whole samples of 8, 16 or 32 bits."""
    return (
        format.bits_allocated in (8, 16, 32)
        and 1 <= format.bits_stored <= format.bits_allocated
        and not format.floating
        and format.samples in (1, 3)
        and not (format.samples == 3 and format.photometric == "YBR_FULL_422")
    )


LOSSLESS_OUT = (HTJ2K_LOSSLESS, JPEG_2000_LOSSLESS, JPEG_LS_LOSSLESS, RLE)
"""The compressed syntaxes that a frame stored without loss can be had in, beside the one that it is stored in."""

_MOST_BITS_ALLOCATED = {JPEG_2000_LOSSLESS: 16, JPEG_LS_LOSSLESS: 16, RLE: 32}
_MAX_RLE_SEGMENTS = 15


def holds(format: PixelFormat, syntax: str) -> bool:
    """Whether a lossless syntax carries native frames of this format bit for bit (PS3.5 §8.2, A.4).

    One that is not in the table (of a plug-in) is taken to hold what HTJ2K holds.
    """
    if not htj2k_holds(format) or format.bits_allocated > _MOST_BITS_ALLOCATED.get(syntax, 32):
        return False
    return syntax != RLE or format.samples * format.bits_allocated // 8 <= _MAX_RLE_SEGMENTS


def decoded(format: PixelFormat, syntax: str) -> PixelFormat:
    """The format of the native frames that decoding gives: colour by pixel, transforms of JPEG 2000 undone.

    Chroma is brought to full size (YBR_FULL_422 in a compressed syntax becomes YBR_FULL); nothing else is converted,
    but that JPEG XL has no YBR of its own and gives RGB. Native data keeps its photometric interpretation.
    """
    row = _BY_UID.get(syntax)
    if format.samples < 3:
        return format
    photometric = format.photometric
    if row is not None and row.family is not Family.NATIVE:
        if photometric in ("YBR_RCT", "YBR_ICT") or (row.family is Family.JPEG_XL and photometric.startswith("YBR")):
            photometric = "RGB"
        elif photometric == "YBR_FULL_422":
            photometric = "YBR_FULL"
    return replace(format, photometric=photometric, planar=0)


def encoded(format: PixelFormat, syntax: str) -> PixelFormat:
    """The format that a data set names once native frames of `format` are encoded (TS-11).

    RGB becomes YBR_RCT in JPEG 2000 and HTJ2K, whose encoders use the reversible colour transform.
    """
    row = _BY_UID.get(syntax)
    if row is None or format.samples < 3:
        return format
    if row.family in (Family.JPEG_2000, Family.HTJ2K) and format.photometric == "RGB":
        return replace(format, photometric="YBR_RCT", planar=0)
    return format if row.family is Family.NATIVE else replace(format, planar=0)
