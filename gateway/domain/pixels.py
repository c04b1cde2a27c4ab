"""How the samples of an instance lie in memory, and what is known of each of its frames."""

from dataclasses import dataclass

PIXEL_DATA = 0x7FE00010
FLOAT_PIXEL_DATA = 0x7FE00008
DOUBLE_FLOAT_PIXEL_DATA = 0x7FE00009

THUMBNAIL_SIDE = 128
"""A thumbnail prefix of a stored frame gives an image whose longer side has at least so many pixels."""


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """The Image Pixel attributes that a codec needs (PS3.3 C.7.6.3)."""

    rows: int
    columns: int
    samples: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    photometric: str
    planar: int = 0
    """0: colour by pixel; 1: colour by plane. Of no meaning with one sample."""
    frames: int = 1
    floating: bool = False
    """Float or Double Float Pixel Data."""

    @property
    def frame_bits(self) -> int:
        """Bits of one native frame, without padding; 4:2:2 frames have two samples a pixel."""
        samples = 2 if self.samples == 3 and self.photometric == "YBR_FULL_422" else self.samples
        return self.rows * self.columns * samples * self.bits_allocated

    @property
    def frame_bytes(self) -> int:
        """Bytes of one native frame that starts on a byte."""
        return (self.frame_bits + 7) // 8


@dataclass(frozen=True, slots=True)
class FrameFacts:
    """What the raw pass over one frame found (healthimaging.md 6.5)."""

    crc32: int
    """Of the decoded frame; of the encoded bytes where a frame is kept as is."""
    minimum: int | None
    maximum: int | None
    """None where a frame is kept as is, or its samples are floating point or a bit each."""
    decoded_bytes: int
    """FrameSizeInBytes: decoded size; encoded size where a frame is kept as is."""
