"""Reading a received instance in one walk, and writing it back as Explicit VR Little Endian (PS3.5 §7, PS3.10 §7.1).

The walk yields finished text: each data element becomes its DICOM JSON member and its member of the HealthImaging
document at once, and nothing parses them again on the way out. Big endian data sets are turned into Explicit VR Little
Endian first and take the same walk.

- `layout`: heads and marks of the encodings; `parts`: elements as they lie in bytes; `text`: one element's text;
- `walk`: the pass over a data set; `reading`: an instance out of it, `received`; `writing`: the way back.
"""

from .parts import spans
from .reading import read, read_part10
from .received import INVALID_UID, ODD, OVERLONG, Part10, PixelElement, Received
from .writing import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION, bulk, edited_json, to_explicit, write_meta

__all__ = [
    "IMPLEMENTATION_CLASS_UID",
    "IMPLEMENTATION_VERSION",
    "INVALID_UID",
    "ODD",
    "OVERLONG",
    "Part10",
    "PixelElement",
    "Received",
    "bulk",
    "edited_json",
    "read",
    "read_part10",
    "spans",
    "to_explicit",
    "write_meta",
]
