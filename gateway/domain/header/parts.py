"""Data elements as they lie, with nothing read of their values, and how they are in Explicit VR Little Endian."""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from ..dictionary import BINARY, LONG, SHORT, TEXT, WORDS, Charset, charset
from ..values import MAX_DEPTH
from .layout import (
    CHARACTER_SET,
    LUT_DESCRIPTOR,
    PIXEL_REPRESENTATION,
    PIXEL_TAGS,
    UNDEFINED,
    Beyond,
    Buffer,
    Kind,
    big_explicit_head,
    big_item_head,
    big_long_at,
    dictionary_vr,
    explicit_head,
    implicit_head,
    long_at,
    malformed,
    truncated,
    vr_in_place,
)

_MAX_FRAGMENTS: Final = 1 << 21


def end_of_fragments(data: Buffer, i: int, kind: Kind) -> tuple[int, bool]:
    """Where encapsulated pixel data ends, and whether by its delimiter and within the data (WILD-06)."""
    unpack = big_item_head if kind == "big" else implicit_head
    end = len(data)
    for _ in range(_MAX_FRAGMENTS):
        if i + 8 > end:
            return end, False
        group, number, size = unpack(data, i)
        if group != 0xFFFE or number not in (0xE000, 0xE0DD):
            return i, False
        i += 8
        if number == 0xE0DD:
            return i, True
        i += size
        if i > end:
            return end, False
    raise malformed(f"its pixel data has more than {_MAX_FRAGMENTS} fragments")


@dataclass(frozen=True, slots=True)
class Part:
    """One data element in its bytes: header at `at`, value from `start`, the next element at `next`."""

    tag: int
    vr: bytes
    """Empty in implicit VR."""
    at: int
    start: int
    length: int
    next: int

    @property
    def end(self) -> int:
        """Of a value of defined length."""
        return self.next if self.length == UNDEFINED else self.start + self.length


def parts_of(data: Buffer, i: int, end: int, kind: Kind, depth: int = 0) -> Iterator[Part]:
    """The elements of one data set or item, without looking into them; the same tolerance as the walk."""
    while i + 8 <= end:
        if kind == "implicit":
            group, number, length = implicit_head(data, i)
            vr, start = b"", i + 8
        else:
            group, number, vr, length = (explicit_head if kind == "explicit" else big_explicit_head)(data, i)
            start = i + 8
            if vr in LONG and i + 12 <= end:
                (length,) = (long_at if kind == "explicit" else big_long_at)(data, i + 8)
                start = i + 12
            elif vr not in SHORT and group != 0xFFFE and kind == "explicit":
                vr, start, length = guessed_vr(bytes(data), i, end, len(data))
        tag = group << 16 | number
        if group == 0xFFFE:
            if depth:
                return
            i += 8
            continue
        following = start + length
        if length == UNDEFINED:
            if vr in (b"SQ", b"UN") or (not vr and tag not in PIXEL_TAGS):
                _, following = items_of(data, start, length, end, kind if vr == b"SQ" else "implicit", depth + 1)
            else:
                following, _ = end_of_fragments(data, start, kind)
        elif following > end:
            if tag not in PIXEL_TAGS or depth:
                raise truncated()
            following = end
        yield Part(tag, vr, i, start, length, following)
        i = following
    if bytes(data[i:end]).strip(b"\0"):
        raise truncated()


def spans(data: bytes, start: int = 0) -> Iterator[tuple[int, int, int]]:
    """Tag, start and end of each top-level element of a data set in Explicit VR Little Endian from `start` on, with
    the tolerance of `read`. Raises InvalidInput."""
    return ((part.tag, part.at, part.next) for part in parts_of(data, start, len(data), "explicit"))


def guessed_vr(window: bytes, i: int, end: int, total: int) -> tuple[bytes, int, int]:
    """VR, start and length of a value whose VR is none: by the layout after which the next element makes sense."""
    if i + 12 > len(window) and len(window) < total:
        raise Beyond
    group, number, _, short = explicit_head(window, i)
    vr = dictionary_vr(group << 16 | number)
    candidates = [(i + 8, short)]
    if i + 12 <= len(window):
        candidates.append((i + 12, long_at(window, i + 8)[0]))
    candidates.append((i + 8, long_at(window, i + 4)[0]))
    for with_vr in (True, False):
        for start, length in candidates:
            next_at = start + length
            if next_at <= end and _makes_sense(window, next_at, end, total, (group, number), with_vr):
                return vr, start, length
    raise malformed(f"({group:04X},{number:04X}) has no VR that DICOM knows")


def _makes_sense(window: bytes, i: int, end: int, total: int, before: tuple[int, int], with_vr: bool) -> bool:
    """Whether an element may start here, after the tag `before`: a higher tag, and a VR if that is asked."""
    if i == end:
        return True
    if i + 8 > len(window):
        if len(window) < total:
            raise Beyond
        return False
    group, number, vr, _ = explicit_head(window, i)
    return bool((group, number) > before and (not with_vr or vr in SHORT or vr in LONG or group == 0xFFFE))


def items_of(data: Buffer, i: int, length: int, end: int, kind: Kind, depth: int) -> tuple[list[tuple[int, int]], int]:
    """Where each item's data set starts and ends, and where the sequence does."""
    if depth > MAX_DEPTH:
        raise malformed(f"its sequences nest deeper than {MAX_DEPTH}")
    unpack = big_item_head if kind == "big" else implicit_head
    stop = end if length == UNDEFINED else min(i + length, end)
    items: list[tuple[int, int]] = []
    while i + 8 <= stop:
        group, number, size = unpack(data, i)
        if group != 0xFFFE:
            break
        i += 8
        if number == 0xE0DD:
            break
        if number != 0xE000:
            continue
        if size != UNDEFINED:
            items.append((i, min(i + size, stop)))
            i = items[-1][1]
            continue
        last = i
        for part in parts_of(data, i, stop, kind, depth):
            last = part.next
        items.append((i, last))
        i = last
        if i + 8 <= stop and unpack(data, i)[:2] == (0xFFFE, 0xE00D):
            i += 8
    return items, i if length == UNDEFINED else stop


def charset_among(data: Buffer, parts: Sequence[Part]) -> Charset:
    return charset(next((bytes(data[p.start : p.end]) for p in parts if p.tag == CHARACTER_SET), b""))


def signed_among(data: Buffer, parts: Sequence[Part], around: bool = False) -> bool:
    for part in parts:
        if part.tag == PIXEL_REPRESENTATION:
            return bool(bytes(data[part.start : part.end]).strip(b"\0"))
    return around


def explicit_elements(
    data: Buffer,
    parts: Sequence[Part],
    kind: Kind,
    declared: Charset,
    wanted: Charset | None,
    signed: bool,
    depth: int = 0,
) -> Iterator[tuple[int, bytes]]:
    """Each element in Explicit VR LE, with its tag, and its text in the `wanted` character set unless that is None.

    Group lengths, File Meta elements (WILD-12) and, where text is recoded, (0008,0005) are left out.
    Raises UnicodeEncodeError for text that the set lacks.
    """
    creators: dict[int, str] = {}

    def one_entry() -> bool:
        order: Literal["big", "little"] = "big" if kind == "big" else "little"
        found = (part for part in parts if part.tag == LUT_DESCRIPTOR and part.length >= 2)
        return any(int.from_bytes(data[part.start : part.start + 2], order) == 1 for part in found)

    for part in parts:
        tag, vr = part.tag, part.vr
        group, number = tag >> 16, tag & 0xFFFF
        if not number or group in (0, 2) or (wanted and tag == CHARACTER_SET):
            continue
        if group & 1 and 0x10 <= number <= 0xFF:
            creators[tag] = declared.decode(bytes(data[part.start : part.end])).rstrip(" \0")
        if vr not in SHORT and vr not in LONG:
            creator = creators.get(group << 16 | number >> 8, "") if group & 1 else ""
            vr, _ = vr_in_place(tag, creator, one_entry, lambda: signed)
        if vr == b"SQ" or (part.length == UNDEFINED and (vr == b"UN" or kind == "implicit")):
            inner: Kind = kind if part.vr == b"SQ" else "implicit"
            items, _ = items_of(data, part.start, part.length, part.next, inner, depth + 1)
            body = []
            for start, end in items:
                inside = list(parts_of(data, start, end, inner, depth + 1))
                own = charset_among(data, inside) if any(p.tag == CHARACTER_SET for p in inside) else declared
                nested = explicit_elements(
                    data, inside, inner, own, wanted, signed_among(data, inside, signed), depth + 1
                )
                content = b"".join(element for _, element in nested)
                body.append(struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content)
            yield tag, element_bytes(tag, b"SQ", b"".join(body))
            continue
        value = bytes(data[part.start : part.end])
        if part.length == UNDEFINED:
            header = struct.pack("<HH2sHI", group, number, vr, 0, UNDEFINED)
            yield tag, header + value
            continue
        if kind == "big" and vr in WORDS:
            value = _turned(value, WORDS[vr])
        if wanted and vr in TEXT:
            value = wanted.encode(declared.decode(value, vr).rstrip(" \0"))
        yield tag, element_bytes(tag, vr, value)


def _turned(value: bytes, width: int) -> bytes:
    whole = len(value) - len(value) % width
    turned = bytearray(value)
    for k in range(width):
        turned[k:whole:width] = value[width - 1 - k : whole : width]
    return bytes(turned)


def element_bytes(tag: int, vr: bytes, value: bytes) -> bytes:
    group, number = tag >> 16, tag & 0xFFFF
    if len(value) & 1:
        value += b"\0" if vr == b"UI" or vr in WORDS or vr in BINARY else b" "
    if vr not in LONG:
        if len(value) <= 0xFFFE:
            return struct.pack("<HH2sH", group, number, vr, len(value)) + value
        vr = b"UN"  # its own VR has no room for the length (TS-12)
    return struct.pack("<HH2sHI", group, number, vr, 0, len(value)) + value


def with_uid(head: bytes, pixel_at: int, kind: Kind, tag: int, uid: str) -> tuple[bytes, int]:
    value = uid.encode() + b"\0" * (len(uid) & 1)
    group, number = tag >> 16, tag & 0xFFFF
    if kind == "implicit":
        element = struct.pack("<HHI", group, number, len(value)) + value
    else:
        element = struct.pack("<HH2sH" if kind == "explicit" else ">HH2sH", group, number, b"UI", len(value)) + value
    start = stop = pixel_at
    for part in parts_of(head, 0, pixel_at, kind):
        if part.tag >= tag:
            start = part.at
            stop = part.next if part.tag == tag else start
            break
    return head[:start] + element + head[stop:], pixel_at + len(element) - (stop - start)
