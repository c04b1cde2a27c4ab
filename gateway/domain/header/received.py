"""What is known of an instance that has been read."""

from dataclasses import dataclass, field
from typing import Any, Final

from ..metadata import Levels
from ..pixels import PixelFormat
from .layout import Buffer

INVALID_UID: Final = 0xB201
OVERLONG: Final = 0xB202
ODD: Final = 0xB007


@dataclass(frozen=True, slots=True)
class Part10:
    """The File Meta Information of a Part 10 file (PS3.10 §7.1)."""

    meta: dict[str, Any]
    """Keyword -> value in document form, without the group length."""
    syntax: str
    offset: int
    """Where the data set begins."""


@dataclass(frozen=True, slots=True)
class PixelElement:
    """Where the pixel data lies, as offset and length in `Received.data`."""

    tag: int
    vr: str
    offset: int
    length: int
    """Encapsulated: of all items and, where it is there, the delimiter. Never beyond the end of the data."""
    encapsulated: bool
    format: PixelFormat | None
    """None where the Image Pixel attributes do not say how frames lie."""
    frame_offsets: tuple[int, ...] | None = None
    frame_lengths: tuple[int, ...] | None = None
    """The Extended Offset Table (7FE0,0001) and its lengths (7FE0,0002), None where absent or empty."""


@dataclass(slots=True)
class Received:
    """All that the gateway keeps of one instance."""

    syntax: str
    meta: dict[str, Any]
    study_uid: str
    series_uid: str
    sop_uid: str
    sop_class: str
    data: Buffer
    """What `pixel` refers to: the data set as given, or inflated where it was deflated."""
    pixel: PixelElement | None
    head: bytes
    """The data set as received, without the Pixel Data element; inflated where it was deflated."""
    head_pixel_at: int
    """Where Pixel Data stood in `head`; its length where there is none."""
    json_pieces: list[bytes]
    """DICOM JSON object, cut wherever the instance's absolute URL belongs: the text is `url.join(json_pieces)`."""
    node: bytes
    """`"DICOM":{...},"DICOMVRs":{...}` of the instance level (healthimaging.md 6.3)."""
    levels: Levels
    index: dict[str, Any]
    """DICOM JSON elements by tag that instance searches return or match."""
    identity: bytes
    """SHA-256 of the attributes without pixels: equal for native and losslessly compressed, explicit and implicit."""
    number: int | None
    warnings: list[int] = field(default_factory=list)
    """WarningReason codes, ascending."""
