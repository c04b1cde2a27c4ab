"""What a data element's tag means, and what the bytes of its text mean (PS3.6; PS3.5 §6.1, §6.2)."""

import math
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from pydicom.datadict import get_entry, get_private_entry, tag_for_keyword

LONG: Final = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
"""VRs whose explicit form has two reserved bytes and a 32-bit length (PS3.5 §7.1.2)."""
SHORT: Final = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
"""VRs whose explicit form has a 16-bit length."""
BINARY: Final = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"UN"})
"""VRs that JSON holds as one base64 string."""
NUMBERS: Final[dict[bytes, tuple[str, int]]] = {
    b"US": ("H", 2),
    b"SS": ("h", 2),
    b"UL": ("I", 4),
    b"SL": ("i", 4),
    b"UV": ("Q", 8),
    b"SV": ("q", 8),
    b"FL": ("f", 4),
    b"FD": ("d", 8),
}
"""VR -> struct letter and width in bytes."""
TEXT: Final = frozenset({b"LO", b"LT", b"PN", b"SH", b"ST", b"UC", b"UT"})
"""VRs that Specific Character Set governs."""
PARAGRAPH: Final = frozenset({b"LT", b"ST", b"UR", b"UT"})
"""Text that is one value whatever it holds: backslashes do not divide it (PS3.5 §6.2)."""
WORDS: Final[dict[bytes, int]] = {
    b"AT": 2,
    b"OW": 2,
    b"OF": 4,
    b"OL": 4,
    b"OD": 8,
    b"OV": 8,
    **{vr: width for vr, (_, width) in NUMBERS.items()},
}
"""VR -> bytes of the unit that byte order turns round."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """What the dictionary says of a tag."""

    vr: str
    """Also `US or SS` and its like; empty where the dictionary does not know."""
    single: bool
    """VM 1: documents hold the value itself, not an array."""
    key: str
    """The keyword; 8 upper-case hexadecimal digits where no keyword names just this tag."""


@lru_cache(maxsize=16384)
def meaning(tag: int) -> Meaning:
    """The dictionary's entry; for private and unknown tags one without VR, whose key is hexadecimal."""
    digits = f"{tag:08X}"
    if tag >> 16 & 1:
        creator = 0x10 <= tag & 0xFFFF <= 0xFF
        return Meaning("LO" if creator else "", False, digits)
    try:
        vr, vm, _, _, keyword = get_entry(tag)
    except KeyError:
        return Meaning("", False, digits)
    if vr == "NONE":
        return Meaning("", False, digits)
    named = bool(keyword) and tag_for_keyword(keyword) == tag  # the keyword of a repeating group names none of them
    return Meaning(vr, vm == "1", keyword if named else digits)


@lru_cache(maxsize=16384)
def private_vr(tag: int, creator: str) -> str:
    """VR of a private tag in the block of a known creator; empty when unknown."""
    try:
        return get_private_entry(tag, creator)[0]
    except KeyError:
        return ""


_JSON_WHOLE: Final = re.compile(rb"-?(?:0|[1-9][0-9]{0,8})")
_JSON_NUMBER: Final = re.compile(rb"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_WHOLE: Final = re.compile(rb"[+-]?[0-9]{1,16}")
_NUMBER: Final = re.compile(rb"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_MAX_DIGITS: Final = 64


def json_number(text: bytes, whole: bool) -> bytes | None:
    """The JSON number of an IS (`whole`) or DS value without padding, None where it is not legally one (JSON-06).

    Digits are kept as they were sent, so that none of their precision is lost.
    """
    if whole:
        if _JSON_WHOLE.fullmatch(text):
            return text
        number = int(text) if _WHOLE.fullmatch(text) else 1 << 31
        return b"%d" % number if -(1 << 31) <= number < 1 << 31 else None
    legal = _JSON_NUMBER.fullmatch(text)
    if legal and len(text) <= 16 and b"e" not in text and b"E" not in text:
        return text
    if len(text) > _MAX_DIGITS or not _NUMBER.fullmatch(text) or not math.isfinite(float(text)):
        return None
    return text if legal else repr(float(text)).encode()


# ---------------------------------------------------------------------------------------------- character sets

_SINGLE: Final = {
    "6": "ascii",
    "100": "latin_1",
    "101": "iso8859_2",
    "109": "iso8859_3",
    "110": "iso8859_4",
    "126": "iso8859_7",
    "127": "iso8859_6",
    "138": "iso8859_8",
    "144": "iso8859_5",
    "148": "iso8859_9",
    "166": "iso8859_11",
    "203": "iso8859_15",
    "13": "shift_jis",  # a superset of JIS X 0201
    "87": "iso2022_jp",
    "159": "iso2022_jp_2",
    "149": "euc_kr",
    "58": "gb2312",
    "192": "utf_8",
}
_ESCAPES: Final = {
    b"(B": "",
    b"(J": "shift_jis",
    b")I": "shift_jis",
    b"-A": "latin_1",
    b"-B": "iso8859_2",
    b"-C": "iso8859_3",
    b"-D": "iso8859_4",
    b"-F": "iso8859_7",
    b"-G": "iso8859_6",
    b"-H": "iso8859_8",
    b"-L": "iso8859_5",
    b"-M": "iso8859_9",
    b"-T": "iso8859_11",
    b"-b": "iso8859_15",
    b"$)C": "euc_kr",
    b"$)A": "gb2312",
    b"$B": "iso2022_jp",
    b"$(D": "iso2022_jp_2",
}
_JAPANESE: Final = frozenset({"iso2022_jp", "iso2022_jp_2"})
_ESCAPING: Final = _JAPANESE | {"shift_jis", "euc_kr", "gb2312"}
"""Codecs of sets that are written with escape sequences, or of which a codec knows too much."""
_DELIMITERS: Final = {
    b"PN": re.compile(rb"[\r\n\t\f\\^=]"),
    **dict.fromkeys((b"LT", b"ST", b"UT"), re.compile(rb"[\r\n\t\f]")),
}
_LINE: Final = re.compile(rb"[\r\n\t\f\\]")


@dataclass(frozen=True, slots=True)
class Charset:
    """The Specific Character Set (0008,0005) of one data set or item (PS3.3 C.12.1.1.2)."""

    codec: str
    """Of what is not announced by an escape sequence; empty when it is unknown."""

    def decode(self, raw: bytes, vr: bytes = b"LO") -> str:
        """Text of any bytes: UTF-8 where the declared set cannot be right, or with replacement characters (WILD-04)."""
        if b"\x1b" in raw:
            return self._escaped(raw, _DELIMITERS.get(vr, _LINE))
        return raw.decode("ascii") if raw.isascii() else self._plain(raw)

    def encode(self, text: str) -> bytes:
        """Bytes of the text, without escape sequences. Raises UnicodeEncodeError where that is not possible."""
        return text.encode("ascii" if self.codec in _ESCAPING else self.codec or "ascii")

    def _plain(self, raw: bytes) -> str:
        # Senders that write UTF-8 under a Latin set are common, and Latin text that happens to be UTF-8 is not: its
        # capitals would all be followed by symbols. In the other single-byte sets letters stand there.
        for codec in ("utf_8", self.codec) if self.codec in _CLOSE_TO_ASCII else (self.codec, "utf_8"):
            try:
                return raw.decode(codec)
            except (UnicodeDecodeError, LookupError):
                continue
        return raw.decode("utf_8" if self.codec in _CLOSE_TO_ASCII else self.codec, "replace")

    def _escaped(self, raw: bytes, delimiters: re.Pattern[bytes]) -> str:
        first, *rest = raw.split(b"\x1b")
        parts = [self._plain(first)]
        wide = ""
        for part in rest:
            sign = next((sign for sign in (part[:2], part[:3]) if sign in _ESCAPES), None)
            if sign is None:
                parts.append("\x1b" + self._plain(part))
                continue
            codec, body = _ESCAPES[sign], part[len(sign) :]
            if codec in _JAPANESE:
                parts.append((b"\x1b" + part + b"\x1b(B").decode(codec, "replace"))
                continue
            if codec:
                wide = codec
            # Each delimiter resets to the initial set; where that is ASCII, high bytes can only be of the last one.
            end = delimiters.search(body)
            head, tail = (body[: end.start()], body[end.start() :]) if end else (body, b"")
            parts.append(head.decode(wide or "ascii", "replace") if wide else self._plain(head))
            resets = self.codec not in ("", "ascii") or not wide
            parts.append(self._plain(tail) if resets else tail.decode(wide, "replace"))
        return "".join(parts)


_CLOSE_TO_ASCII: Final = frozenset({"", "ascii", "latin_1", "iso8859_9"})
UTF_8: Final = Charset("utf_8")
UTF_8_TERM: Final = "ISO_IR 192"


@lru_cache(maxsize=1024)
def charset(terms: bytes) -> Charset:
    """The character set that a value of (0008,0005) declares; misspelt terms are understood, unknown ones tolerated."""
    first = terms.split(b"\\")[0].strip(b" \0").decode("ascii", "replace").upper()
    if not first:
        return Charset("ascii")
    if first in ("GB18030", "GBK", "ISO 2022 GBK"):
        return Charset("gb18030" if first == "GB18030" else "gbk")
    number = re.fullmatch(r"ISO[-_ ]?(?:2022)?[-_ ]?(?:IR)?[-_ ]?(\d+)", first)
    return Charset(_SINGLE.get(number[1], "") if number else "")
