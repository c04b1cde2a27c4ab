"""A look at the head of a data set while it streams in: which instance it is, by element lengths alone.

Nothing is decoded and nothing kept; an element that reaches past the bytes at hand is skipped by its length.
"""

import struct
from typing import Final

from ..ports import Buffer
from .contexts import DEFLATED, EXPLICIT_BE

SOP_CLASS: Final = 0x00080016
SOP_INSTANCE: Final = 0x00080018
STUDY: Final = 0x0020000D
SERIES: Final = 0x0020000E
_WANTED: Final = frozenset((SOP_CLASS, SOP_INSTANCE, STUDY, SERIES))

_ITEM = 0xE000
"""Element number of an item; the others of group FFFE are delimiters."""
_UNDEFINED = 0xFFFFFFFF
_LONG: Final = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_SHORT: Final = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
# Headers with a 16-bit length, with a 32-bit length and no VR, and the length behind a long VR.
_LITTLE, _BIG = (tuple(struct.Struct(order + fields).unpack_from for fields in ("HH2sH", "HHI", "I")) for order in "<>")
_MOST_ELEMENTS = 4096
_LONGEST_UID = 1024
"""A UID's value beyond this is not waited for: the data set is left to the import."""


class HeaderScan:
    """Feed the data set's bytes in order; afterwards `found` holds the UIDs (tag -> value, trimmed).

    `done` turns true when nothing more can be learned. `certain` is true when a UID that is not in `found` is
    surely not in the data set; `truncated`, when the data set ended within an element.
    """

    __slots__ = ("_big", "_depth", "_elements", "_explicit", "_last", "_rest", "_skip", "_un", "certain", "done",
                 "found", "truncated")  # fmt: skip

    def __init__(self, syntax: str) -> None:
        self.found: dict[int, str] = {}
        self.done = syntax == DEFLATED
        self.certain = False
        self.truncated = False
        self._big = syntax == EXPLICIT_BE
        self._explicit: bool | None = True if self._big else None
        self._depth = 0
        self._un = -1
        """The depth of an UN element of undefined length: inside, the VR is implicit (PS3.5 §6.2.2)."""
        self._last = 0
        self._elements = _MOST_ELEMENTS
        """How many may still be looked at."""
        self._skip = 0
        self._rest = b""

    def feed(self, data: Buffer) -> bool:
        """Takes the next bytes; True when nothing more can be learned. Not for a scan that is `done`."""
        if self._skip:
            if self._skip >= len(data):
                self._skip -= len(data)
                return False
            data = memoryview(data)[self._skip :]
            self._skip = 0
        elif self._rest:
            data = self._rest + bytes(data)
            self._rest = b""
        at = self._walk(data)
        if at is None:
            self.done = True
            return True
        if at > len(data):
            self._skip = at - len(data)
        else:
            self._rest = bytes(memoryview(data)[at:])
        return False

    def end(self) -> None:
        """There are no more bytes."""
        if not self.done:
            self.done = True
            self.truncated = bool(self._skip or self._rest)
            self.certain = not self.truncated

    def _walk(self, data: Buffer) -> int | None:
        """Where the next element starts, which may be beyond the end; None when nothing more can be learned."""
        header, implicit_header, long_length = _BIG if self._big else _LITTLE
        at, end = 0, len(data)
        if self._explicit is None:
            if end < 8:
                return at
            # What was negotiated and what was sent can differ (WILD-07): the first element tells.
            vr = bytes(data[4:6])
            self._explicit = vr in _SHORT or vr in _LONG
        explicit, depth, un, last = self._explicit, self._depth, self._un, self._last
        for _ in range(self._elements):
            if end - at < 8:
                break
            group, element, vr, length = header(data, at)
            start = at + 8
            if group == 0xFFFE or un >= 0 or not explicit:
                length = implicit_header(data, at)[2]
                vr = b""
            elif vr in _LONG:
                if end - at < 12:
                    break
                length = long_length(data, at + 8)[0]
                start = at + 12
            elif vr not in _SHORT:
                return None
            if not depth:
                if group > 0x20:
                    self.certain = True
                    return None
                if group < last:  # not in order: that a UID has not come yet says nothing
                    return None
                last = group
                if (group == 0x08 or group == 0x20) and (tag := group << 16 | element) in _WANTED:
                    if length > _LONGEST_UID:
                        return None
                    if start + length > end:
                        break
                    self.found[tag] = bytes(data[start : start + length]).decode("latin-1").strip("\0 ")
                    if len(self.found) == len(_WANTED):
                        self.certain = True
                        return None
            if length == _UNDEFINED:
                if vr == b"UN":
                    un = depth
                depth += 1
                at = start
            elif group == 0xFFFE and element != _ITEM:
                depth -= 1
                if depth < 0:
                    return None
                if un == depth:
                    un = -1
                at = start
            else:
                at = start + length
            self._elements -= 1
        else:
            return None
        self._depth, self._un, self._last = depth, un, last
        return at
