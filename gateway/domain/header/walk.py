"""The walk over a data set, from its bytes to finished text.

Most elements of a series are the same bytes in every instance, so short ones are remembered by their bytes: an element
seen before costs one dictionary look-up.
"""

import struct
from collections.abc import Callable
from typing import Final

from ..dictionary import BINARY, LONG, SHORT, Charset, charset
from ..errors import InvalidInput
from ..values import MAX_DEPTH
from .layout import (
    ITEM_END,
    LUT_DESCRIPTOR,
    PALETTES,
    PIXEL_REPRESENTATION,
    PIXEL_TAGS,
    UNDEFINED,
    Beyond,
    Kind,
    explicit_head,
    implicit_head,
    long_at,
    malformed,
    short_at,
    truncated,
    vr_in_place,
)
from .parts import guessed_vr, parts_of
from .text import BULK, Element, bulk_element, palette, shape_of, simple_element

_MEMO_VALUE: Final = 512
_MEMO_SEQUENCE: Final = 4096
_MEMO_BYTES: Final = 8 << 20
_MEMOS: Final = 8


class _Memo:
    """Finished elements by their bytes, for one encoding and character set; forgets all when it grows too large."""

    __slots__ = ("elements", "size")

    def __init__(self) -> None:
        self.elements: dict[bytes, Element | tuple[()]] = {}
        self.size = 0

    def keep(self, raw: bytes, element: Element | tuple[()]) -> None:
        self.size += 512 + len(raw) + (len(element[0]) + len(element[1]) + len(element[3]) if element else 0)
        if self.size > _MEMO_BYTES:
            self.elements.clear()
            self.size = 0
        self.elements[raw] = element


_memos: Final[dict[tuple[Kind, Charset], _Memo]] = {}


def _memo_of(kind: Kind, declared: Charset) -> _Memo:
    # Shared by all threads: whatever of this races is repeated work, never a wrong element.
    if len(_memos) >= _MEMOS and (kind, declared) not in _memos:
        _memos.clear()
    return _memos.setdefault((kind, declared), _Memo())


class Walk:
    """One pass over `window`, the first bytes of a data set of `total` bytes."""

    __slots__ = ("_signed", "at", "kind", "odd", "pixel", "total", "window")

    def __init__(self, window: bytes, total: int, kind: Kind) -> None:
        self.window = window
        self.total = total
        self.kind: Kind = kind
        self.at = 0
        """Where the last data set or item that was read ends."""
        self.odd = False
        """Something was tolerated that the standard forbids."""
        self.pixel: tuple[int, bytes, int, int] | None = None
        """Tag, VR, offset and length of the value: `at` is then where the element starts."""
        self._signed: bool | None = None

    def top(self, declared: Charset) -> list[Element]:
        """The data set up to its Pixel Data or its end."""
        read = self.implicit if self.kind == "implicit" else self.explicit
        return read(0, self.total, declared, 0, "")

    def explicit(self, i: int, end: int, declared: Charset, depth: int, path: str) -> list[Element]:
        window, size = self.window, len(self.window)
        memo = _memo_of("explicit", declared)
        get = memo.elements.get
        elements: list[Element] = []
        append = elements.append
        while i < end:
            try:
                group, number, vr, length = explicit_head(window, i)
            except struct.error:
                i = self._short_of_header(i, end, depth)
                break
            if vr in SHORT:
                j = i + 8 + length
                if j > end:
                    raise truncated()
                raw = window[i:j]
                element = get(raw)
                if element is None:
                    if j > size:
                        raise Beyond
                    element = simple_element(group << 16 | number, vr, raw[8:], declared)
                    if length <= _MEMO_VALUE:
                        memo.keep(raw, element)
                if element:
                    append(element)
                i = j
                continue
            tag = group << 16 | number
            if vr in LONG:
                if i + 12 > size:
                    self._short_of_header(i, end, depth, 12)
                (length,) = long_at(window, i + 8)
                start = i + 12
            elif group == 0xFFFE:
                i, ended = self._delimiter(tag, i, depth)
                if ended:
                    break
                continue
            else:
                vr, start, length = self._unknown_vr(i, end)
            if tag in PIXEL_TAGS and not depth:
                self.pixel = (tag, vr, start, length)
                break
            # Only a sequence of the top level is remembered: deeper, a look-up would hide how deep the nesting goes.
            # A palette is told in one way at the top and in another below.
            lasting = vr != b"UN" and (not depth or vr != b"SQ") and tag not in PALETTES
            if lasting and length <= _MEMO_SEQUENCE and start + length <= min(end, size):
                raw = window[i : start + length]
                element = get(raw)
                if element is None:
                    element, _ = self._other(tag, vr, start, length, end, declared, depth, path, elements, True)
                    if not self.odd:
                        memo.keep(raw, element)
                i = start + length
            else:
                element, i = self._other(tag, vr, start, length, end, declared, depth, path, elements, True)
            if element:
                append(element)
        self.at = i
        return elements

    def implicit(self, i: int, end: int, declared: Charset, depth: int, path: str) -> list[Element]:
        window, size = self.window, len(self.window)
        memo = _memo_of("implicit", declared)
        get = memo.elements.get
        elements: list[Element] = []
        append = elements.append
        creators: dict[int, bytes] = {}
        while i < end:
            try:
                group, number, length = implicit_head(window, i)
            except struct.error:
                i = self._short_of_header(i, end, depth)
                break
            if group == 0xFFFE:
                i, ended = self._delimiter(group << 16 | number, i, depth)
                if ended:
                    break
                continue
            j = i + 8 + length
            creator = b""
            if length <= _MEMO_VALUE:
                if j > end:
                    raise truncated()
                if j > size:
                    raise Beyond
                raw = window[i:j]
                if group & 1 and number > 0xFF:  # what a private tag means depends on who reserved its block
                    block = group << 8 | number >> 8
                    if block not in creators:
                        creators[block] = _creator(elements, group, number)
                    creator = creators[block]
                    raw += creator
                element = get(raw)
                if element is not None:
                    if element:
                        append(element)
                    i = j
                    continue
            elif group & 1:
                creator = _creator(elements, group, number)
            tag = group << 16 | number
            vr, certain = self._vr(tag, creator, elements)
            if tag in PIXEL_TAGS and not depth:
                self.pixel = (tag, b"", i + 8, length)
                break
            lasting = certain and vr != b"SQ" and length <= _MEMO_VALUE and tag not in PALETTES
            if lasting and vr not in BINARY:
                element, i = simple_element(tag, vr, window[i + 8 : j], declared), j
            else:
                element, i = self._other(tag, vr, i + 8, length, end, declared, depth, path, elements, False)
            if lasting:
                memo.keep(raw, element)
            if element:
                append(element)
        self.at = i
        return elements

    def _other(
        self,
        tag: int,
        vr: bytes,
        start: int,
        length: int,
        end: int,
        declared: Charset,
        depth: int,
        path: str,
        elements: list[Element],
        explicit: bool,
    ) -> tuple[Element | tuple[()], int]:
        """An element that is no short text or number, and where the next one starts."""
        window = self.window
        if length == UNDEFINED:
            if vr in (b"SQ", b"UN") or (not explicit and tag not in PIXEL_TAGS):
                # PS3.5 §6.2.2: what is inside an UN of undefined length is implicit.
                inner = self.explicit if explicit and vr == b"SQ" else self.implicit
                element = self._sequence(tag, start, length, end, inner, declared, depth, path)
                return element, self.at
            stop = self._fragments_end(start, end)
            return simple_element(tag, vr or b"OB", window[start : stop - 8], declared), stop
        stop = start + length
        if stop > end:
            raise truncated()
        if vr == b"SQ":
            inner = self.explicit if explicit else self.implicit
            return self._sequence(tag, start, length, end, inner, declared, depth, path), stop
        if stop > len(window):
            raise Beyond
        if vr == b"UN" and explicit and length < 0xFFFF:
            creator = _creator(elements, tag >> 16, tag & 0xFFFF) if tag >> 16 & 1 else b""
            vr, _ = self._vr(tag, creator, elements)
            if vr == b"SQ":
                return self._sequence(tag, start, length, end, self.implicit, declared, depth, path), stop
        if vr in BINARY and length > BULK:
            return bulk_element(tag, vr, window[start:stop], f"{path}{tag:08X}"), stop
        if tag in PALETTES and vr in BINARY and length and not path:
            return palette(tag, vr, window[start:stop]), stop
        value = window[start:stop]
        identity = b""
        if vr == b"UN" and value[:4] == b"\xfe\xff\x00\xe0":
            identity = self._hidden_sequence(tag, start, length, declared, depth)
        return simple_element(tag, vr, value, declared, identity), stop

    def _sequence(
        self,
        tag: int,
        i: int,
        length: int,
        end: int,
        read: Callable[[int, int, Charset, int, str], list[Element]],
        declared: Charset,
        depth: int,
        path: str,
    ) -> Element:
        if depth >= MAX_DEPTH:
            raise malformed(f"its sequences nest deeper than {MAX_DEPTH}")
        window = self.window
        stop = end if length == UNDEFINED else i + length
        if stop > end:
            raise truncated()
        jsons: list[bytes] = []
        docs: list[bytes] = []
        identities: list[bytes] = []
        explicit = read == self.explicit
        while i < stop:
            try:
                group, number, size = implicit_head(window, i)
            except struct.error:
                i = self._short_of_header(i, stop, depth + 1)
                break
            if group != 0xFFFE:
                if length != UNDEFINED:
                    raise malformed(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) holds something else than sequence items")
                self.odd = True  # the delimiter is missing: the next element belongs to what is around
                break
            i += 8
            if number == 0xE0DD:
                break
            if number != 0xE000:
                self.odd = True
                continue
            inside = declared
            if window[i : i + 4] == b"\x08\x00\x05\x00":
                at = i + 8
                inside = charset(window[at : at + (short_at(window, i + 6) if explicit else long_at(window, i + 4))[0]])
            item_end = stop
            if size != UNDEFINED:
                item_end = i + size
                if item_end > stop:
                    self.odd = True
                    item_end = stop
            elements = read(i, item_end, inside, depth + 1, f"{path}{tag:08X}.{len(jsons)}.")
            i = self.at if size == UNDEFINED else item_end
            if not is_ascending(elements):
                elements = in_order(elements)
            jsons.append(b"{%b}" % b",".join([element[0] for element in elements]))
            docs.append(b"{%b}" % b",".join([element[1] for element in elements]))
            identities.append(b"{%b}" % b"".join([element[3] for element in elements]))
        self.at = i
        shape = shape_of(tag)
        if not jsons:
            return b'"%08X":{"vr":"SQ"}' % tag, shape.doc + b"null", shape.sink, b'"%08X"0:' % tag, shape.indexed
        return (
            b'"%08X":{"vr":"SQ","Value":[%b]}' % (tag, b",".join(jsons)),
            b"%b[%b]" % (shape.doc, b",".join(docs)),
            shape.sink,
            b'"%08X":[%b]' % (tag, b",".join(identities)),
            shape.indexed,
        )

    def _hidden_sequence(self, tag: int, start: int, length: int, declared: Charset, depth: int) -> bytes:
        # A private sequence that came in implicit VR: bytes to readers, but the same instance as its explicit twin.
        at, odd = self.at, self.odd
        self.odd = False
        try:
            element = self._sequence(tag, start, length, start + length, self.implicit, declared, depth, "")
            return b"" if self.odd else element[3]
        except InvalidInput:
            return b""
        finally:
            self.at, self.odd = at, odd

    def _vr(self, tag: int, creator: bytes, elements: list[Element]) -> tuple[bytes, bool]:
        def one_entry() -> bool:
            return document_text(elements, LUT_DESCRIPTOR).startswith(b"[1,")

        def signed() -> bool:
            own = document_text(elements, PIXEL_REPRESENTATION)
            return own != b"0" if own else self._is_signed()

        return vr_in_place(tag, creator.decode(), one_entry, signed)

    def _is_signed(self) -> bool:
        """Pixel Representation of the whole data set, which may stand after what it governs."""
        if self._signed is None:
            self._signed = False
            for part in parts_of(self.window, 0, len(self.window), self.kind):
                if part.tag >= PIXEL_REPRESENTATION:
                    value = self.window[part.start : part.end]
                    self._signed = part.tag == PIXEL_REPRESENTATION and bool(value.strip(b"\0"))
                    break
        return self._signed

    def _short_of_header(self, i: int, end: int, depth: int, need: int = 8) -> int:
        """Fewer than `need` bytes are left: a window too small, a torn data set, or padding to tolerate."""
        if i + need > len(self.window) and len(self.window) < self.total:
            raise Beyond
        if depth or end < self.total or self.window[i:].strip(b"\0"):
            raise truncated()
        self.odd = True
        return i

    def _delimiter(self, tag: int, i: int, depth: int) -> tuple[int, bool]:
        """Where to go on after a delimiter between elements, and whether it ends the item."""
        if tag == ITEM_END and depth:
            return i + 8, True
        self.odd = True
        # In an item, what starts or ends another one means that its own delimiter is missing.
        return (i, True) if depth else (i + 8, False)

    def _unknown_vr(self, i: int, end: int) -> tuple[bytes, int, int]:
        self.odd = True
        return guessed_vr(self.window, i, end, self.total)

    def _fragments_end(self, i: int, end: int) -> int:
        window = self.window
        while True:
            if i + 8 > len(window):
                if len(window) < self.total:
                    raise Beyond
                raise truncated()
            group, number, size = implicit_head(window, i)
            i += 8
            if group == 0xFFFE and number == 0xE0DD:
                return i
            i += size
            if group != 0xFFFE or number != 0xE000 or i > end:
                raise truncated()


def _creator(elements: list[Element], group: int, number: int) -> bytes:
    """The private creator that reserved the block of a private tag, among the elements before it."""
    member = b'"%04X00%02X"' % (group, number >> 8)
    for json, document, *_ in reversed(elements):
        if json[1:5] != member[1:5]:
            break
        if json[:10] == member:
            return document[12:-1]
    return b""


def document_text(elements: list[Element], tag: int) -> bytes:
    """The value text of an element already read; empty without it."""
    member = b'"%08X"' % tag
    for json, document, *_ in reversed(elements):
        if json[:10] == member:
            return document[document.index(b":") + 1 :]
    return b""


def is_ascending(elements: list[Element]) -> bool:
    tags = [element[0][:10] for element in elements]
    return all(map(bytes.__lt__, tags, tags[1:]))


def in_order(elements: list[Element]) -> list[Element]:
    """Ascending, and of a tag that occurs twice the last one."""
    latest = {element[0][:10]: element for element in elements}
    return [latest[tag] for tag in sorted(latest)]
