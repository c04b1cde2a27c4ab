"""Attribute matching (PS3.4 C.2.2.2) of query keys against DICOM JSON: the one place for both protocols.

Names ignore case, accents and trailing carets (QIDO-18); all other text is compared as it stands, padding aside.
Dates, times and numbers are compared by meaning. An attribute of multiplicity one is one value, even where a
backslash came in it.
"""

import re
import struct
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from fnmatch import translate
from functools import lru_cache
from typing import Any, Final

from pydicom.datadict import dictionary_VM

from .errors import InvalidInput
from .query import (
    DEPTH,
    RETRIEVE_URL,
    STUDY_DATE,
    STUDY_TIME,
    UNMATCHED,
    Attributes,
    DicomQuery,
    Key,
    Level,
    TagPath,
    Views,
    attribute_name,
    hexadecimal,
    is_creator,
    is_private,
    level_in_search,
    supported,
)

Test = Callable[[Attributes], bool]
"""Whether a data set matches."""

WILD: Final = frozenset({"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT", "UN"})
NUMBERS: Final = frozenset({"IS", "DS", "FL", "FD", "SL", "SS", "UL", "US", "SV", "UV"})
TIMES: Final = frozenset({"DA", "TM", "DT"})
_LEADING_SPACE_COUNTS: Final = frozenset({"LT", "ST", "UT", "UC", "UR"})
_LONGEST: Final = 1024


@dataclass(frozen=True, slots=True)
class Range:
    """Normalised bounds, inclusive: of dates `YYYYMMDD`, of times `HHMMSS.FFFFFF`, of date-times both joined, in UTC
    where an offset was given. None: open. A single value has equal bounds."""

    low: str | None
    high: str | None
    single: bool = False

    def holds(self, value: str) -> bool:
        return (self.low is None or self.low <= value) and (self.high is None or value <= self.high)


@dataclass(frozen=True, slots=True)
class Interval:
    """StudyDate and StudyTime as one (QIDO-12): (date, time) bounds, inclusive; a study without a time is of 000000."""

    low: tuple[str, str] | None
    high: tuple[str, str] | None

    def holds(self, day: str, time: str) -> bool:
        at = (day, time or MIDNIGHT)
        return bool(day) and (self.low is None or self.low <= at) and (self.high is None or at <= self.high)


MIDNIGHT: Final = "000000.000000"


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing that a row must fulfil; `key` or `interval` say it again for who can ask a database instead."""

    level: Level
    test: Test
    tag: int
    """The attribute, or the first one of several, that it looks at."""
    key: Key | None = None
    interval: Interval | None = None


def conditions(query: DicomQuery) -> list[Condition]:
    """What a query demands, without the keys that any value fulfils.

    Raises InvalidInput for a key below the query's level, one that cannot be matched, a value that its VR does not
    allow, and a private key without its creator (QIDO-10, -11, -22, -23).
    """
    plain: list[Key] = []
    nested: dict[int, list[Key]] = {}
    private: dict[int, list[Key]] = {}
    for key in query.keys:
        tag = key.path[0]
        if tag in UNMATCHED:
            continue
        _check_level(query.level, key)
        if tag >> 16 & 1:
            private.setdefault(tag >> 16, []).append(key)
        elif is_universal(key):
            continue
        elif len(key.path) > 1:
            nested.setdefault(tag, []).append(key)
        else:
            plain.append(key)
    found = []
    interval = _interval(plain) if query.combined_datetime else None
    if interval:
        found.append(Condition(Level.STUDY, _interval_test(interval), STUDY_DATE, interval=interval))
        plain = [key for key in plain if key.path[0] not in (STUDY_DATE, STUDY_TIME)]
    for key in plain:
        tag = key.path[0]
        found.append(Condition(level_in_search(tag), element_test(key, query.fuzzy), tag, key=key))
    for tag, keys in nested.items():
        found.append(Condition(level_in_search(tag), _items_test(tag, keys, query.fuzzy), tag))
    for keys in private.values():
        test = _private_test(keys, query.fuzzy)
        if test:
            found.append(Condition(Level.INSTANCE, test, keys[0].path[0]))
    return found


def fulfils(views: Views, demanded: Iterable[Condition]) -> bool:
    """Whether a row meets all conditions."""
    return all(condition.test(views[condition.level]) for condition in demanded)


def is_universal(key: Key) -> bool:
    """Zero length, or nothing but `*`: matches any row, also one without the attribute (QIDO-10, -24)."""
    return not key.values or any(not value.strip(" \0").strip("*") for value in key.values)


def _check_level(level: Level, key: Key) -> None:
    tag = key.path[0]
    if key.values and tag == RETRIEVE_URL:
        raise InvalidInput("RetrieveURL cannot be matched")
    own = level_in_search(tag)
    if DEPTH[own] > DEPTH[level]:
        if is_universal(key):
            return
        raise InvalidInput(
            f"{attribute_name(key.path)} cannot be matched at level {level}: it is an attribute of level {own}"
        )
    if key.values and not supported(level, tag):
        raise InvalidInput(f"{attribute_name(key.path)} cannot be matched at level {level}")


# ---------------------------------------------------------------- one attribute


def element_test(key: Key, fuzzy: bool = False) -> Test:
    """The test of the last attribute of a key's path. Raises InvalidInput for a value that its VR does not allow."""
    tag = key.path[-1]
    name = hexadecimal(tag)
    tests = [_value_test(key, value, fuzzy) for value in key.values]
    whole = _is_single(tag) and key.vr != "PN"

    def test(attributes: Attributes) -> bool:
        element = attributes.get(name)
        if element is None:
            return False
        values = element.get("Value")
        if not values:
            return False
        if whole and len(values) > 1:
            values = ("\\".join(map(str, values)),)
        return any(check(value) for value in values if value is not None for check in tests)

    return test


def _value_test(key: Key, value: str, fuzzy: bool) -> Callable[[Any], bool]:
    vr = key.vr
    text = literal(key, value)
    if vr == "PN":
        return _name_test(text, fuzzy)
    if vr in TIMES:
        bounds = time_range(key, value)
        return lambda stored: (at := normal_time(vr, str(stored))) is not None and bounds.holds(at)
    if vr in NUMBERS:
        number = number_of(text)
        if number is None:
            raise _refused(key, "is no number")
        if vr == "FL":
            single = _single_precision(number)
            return lambda stored: (n := number_of(stored)) is not None and _single_precision(n) == single
        return lambda stored: number_of(stored) == number
    if vr == "AT":
        return lambda stored: str(stored).upper() == text.upper()
    if vr in WILD and is_pattern(text):
        pattern = compiled(text)
        return lambda stored: pattern(padding_cut(vr, str(stored))) is not None
    return lambda stored: padding_cut(vr, str(stored)) == text


def literal(key: Key, value: str) -> str:
    """The value without padding. Raises InvalidInput: too long, no Unicode text, a wildcard or VR that cannot be."""
    if len(value) > _LONGEST:
        raise _refused(key, f"is longer than {_LONGEST} characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _refused(key, "is not valid in its character set") from None
    if key.vr == "SQ" or key.vr.startswith("O"):
        raise InvalidInput(f"{attribute_name(key.path)} cannot be matched: its VR is {key.vr}")
    if key.vr not in WILD and is_pattern(value):
        raise _refused(key, f"has a wildcard, which VR {key.vr} does not allow")
    return padding_cut(key.vr, value)


def padding_cut(vr: str, text: str) -> str:
    """The text without what its VR holds insignificant (PS3.5 T6.2-1), and without NUL."""
    text = text.replace("\0", "")
    return text.rstrip() if vr in _LEADING_SPACE_COUNTS else text.strip()


def is_pattern(text: str) -> bool:
    return "*" in text or "?" in text


def glob(text: str) -> str:
    """The pattern in the syntax of `fnmatch` and of SQLite's GLOB, runs of `*` made one."""
    return re.sub(r"\*+", "*", text).replace("[", "[[]")


@lru_cache(maxsize=1024)
def compiled(text: str) -> Callable[[str], Any]:
    """A wildcard pattern (PS3.4 C.2.2.2.4) as a function; time linear in the value, whatever the pattern."""
    return re.compile(translate(glob(text))).match


@lru_cache(maxsize=4096)
def _is_single(tag: int) -> bool:
    try:
        return dictionary_VM(tag) == "1"
    except KeyError:
        return False


def _refused(key: Key, why: str) -> InvalidInput:
    return InvalidInput(f"The value of {attribute_name(key.path)} {why}")


def number_of(value: Any) -> Decimal | None:
    """A stored or asked number; None if it is none."""
    try:
        number = Decimal(str(value).strip(" \0"))
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def _single_precision(number: Decimal) -> bytes:
    try:
        return struct.pack("<f", float(number))
    except OverflowError:
        return b""


# ---------------------------------------------------------------- names

_BETWEEN_WORDS = re.compile(r"[\s^=,\-]+")
_TRAILING_CARETS = re.compile(r"(?:\^+\**)+$")


@lru_cache(maxsize=4096)
def normalize_name(text: str) -> str:
    """A person name for comparison: no case, no accents, no padding of components, no trailing `^` or `=`."""
    groups = []
    for group in text.replace("\0", "").split("="):
        folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", group).casefold())
        bare = unicodedata.normalize("NFC", "".join(c for c in folded if unicodedata.category(c) != "Mn"))
        groups.append("^".join(" ".join(part.split()) for part in bare.split("^")).rstrip("^"))
    return "=".join(groups).rstrip("=")


def name_text(value: Any) -> str:
    """A PN value of DICOM JSON as one string, groups joined by `=`."""
    if not isinstance(value, Mapping):
        return str(value)
    groups = (str(value.get(group) or "") for group in ("Alphabetic", "Ideographic", "Phonetic"))
    return "=".join(groups).rstrip("=")


def name_forms(value: Any) -> tuple[str, ...]:
    """What a name key is tested against: each component group, and the whole (QIDO-18)."""
    whole = normalize_name(name_text(value))
    return tuple(dict.fromkeys(form for form in (*whole.split("="), whole) if form))


def name_words(text: str) -> tuple[str, ...]:
    """The words of a normalised name, for fuzzy matching."""
    return tuple(dict.fromkeys(word for word in _BETWEEN_WORDS.split(text) if word))


def name_patterns(text: str) -> tuple[str, ...]:
    """The normalised patterns of a name key: `Doe^*` means `Doe` too, since its trailing carets do not count."""
    pattern = normalize_name(text)
    return tuple(dict.fromkeys(p for p in (pattern, _TRAILING_CARETS.sub("", pattern)) if p))


def fuzzy_words(text: str) -> tuple[str, ...]:
    """The words that must each begin a word of the name (QIDO-19)."""
    return name_words(normalize_name(text).replace("*", " ").replace("?", " "))


def _name_test(text: str, fuzzy: bool) -> Callable[[Any], bool]:
    patterns = name_patterns(text)
    exact = {pattern for pattern in patterns if not is_pattern(pattern)}
    wild = [compiled(pattern) for pattern in patterns if is_pattern(pattern)]
    sought = fuzzy_words(text) if fuzzy else ()

    def test(stored: Any) -> bool:
        forms = name_forms(stored)
        if any(form in exact or any(pattern(form) for pattern in wild) for form in forms):
            return True
        if not sought:
            return False
        words = name_words(normalize_name(name_text(stored)))
        return all(any(word.startswith(prefix) for word in words) for prefix in sought)

    return test


# ---------------------------------------------------------------- dates and times

_DA = re.compile(r"(\d{4})(\.?)(\d\d)\2(\d\d)", re.ASCII)
_TM = re.compile(r"(\d\d)(?:(:?)(\d\d)(?:\2(\d\d)(?:\.(\d{1,6}))?)?)?", re.ASCII)
_DT = re.compile(
    r"(\d{4})(?:(\d\d)(?:(\d\d)(?:(\d\d)(?:(\d\d)(?:(\d\d)(?:\.(\d{1,6}))?)?)?)?)?)?([+-]\d{4})?", re.ASCII
)


@lru_cache(maxsize=4096)
def normal_time(vr: str, text: str) -> str | None:
    """A stored DA, TM or DT in the form of `Range`, what is missing at its least; None if it is none."""
    bounds = _PARSERS[vr](text.strip(" \0"))
    return bounds[0] if bounds else None


def time_range(key: Key, value: str, *, ordered: bool = True) -> Range:
    """The bounds of a DA, TM or DT key (PS3.4 C.2.2.2.5). Raises InvalidInput for what is neither value nor range.

    `ordered`: a range has to end after it begins; the times of an interval over several days need not.
    """
    parse = _PARSERS[key.vr]
    text = literal(key, value)
    single = parse(text)
    if single:
        return Range(single[0], single[0], single=True)
    # A DT may hold the hyphen of its offset: the cut is where both halves are valid (QIDO-13).
    for cut in (at for at, character in enumerate(text) if character == "-"):
        first, last = text[:cut].strip(), text[cut + 1 :].strip()
        low, high = parse(first), parse(last)
        if (low or not first) and (high or not last) and (low or high):
            if ordered and low and high and low[0] > high[1]:
                raise _refused(key, "is a range that ends before it begins")
            return Range(low[0] if low else None, high[1] if high else None)
    raise _refused(key, f"is neither a {_FORMS[key.vr]} nor a range first-last")


_FORMS = {"DA": "date YYYYMMDD", "TM": "time HHMMSS.FFFFFF", "DT": "date and time YYYYMMDDHHMMSS.FFFFFF&ZZXX"}


def _date(text: str) -> tuple[str, str] | None:
    found = _DA.fullmatch(text)
    if not found:
        return None
    year, _, month, day = found.groups()
    try:
        date(int(year), int(month), int(day))
    except ValueError:
        return None
    return year + month + day, year + month + day


def _time(text: str) -> tuple[str, str] | None:
    found = _TM.fullmatch(text)
    if not found:
        return None
    hour, _, minute, second, fraction = found.groups()
    if hour > "23" or (minute or "") > "59" or (second or "") > "60":
        return None
    fraction = fraction or ""
    low = f"{hour}{minute or '00'}{second or '00'}.{fraction:0<6}"
    return low, f"{hour}{minute or '59'}{second or '59'}.{fraction:9<6}"


def _datetime(text: str) -> tuple[str, str] | None:
    found = _DT.fullmatch(text)
    if not found:
        return None
    *parts, fraction, offset = found.groups()
    given = [int(part) for part in parts if part]
    try:
        low = datetime(*(given + [1, 1, 0, 0, 0][len(given) - 1 :]))  # type: ignore[arg-type]
        if len(given) == 1:
            after = low.replace(year=low.year + 1)
        elif len(given) == 2:
            after = (low + timedelta(days=32)).replace(day=1)
        elif fraction:
            low += timedelta(microseconds=int(f"{fraction:0<6}"))
            after = low + timedelta(microseconds=10 ** (6 - len(fraction)))
        else:
            after = low + timedelta(**{("days", "hours", "minutes", "seconds")[len(given) - 3]: 1})
        high = after - timedelta(microseconds=1)
        if offset:
            hours, minutes = int(offset[:3]), int(offset[0] + offset[3:])
            if not -12 <= hours <= 14 or abs(minutes) > 59:
                return None
            zone = timedelta(hours=hours, minutes=minutes)
            low, high = low - zone, high - zone
    except (ValueError, OverflowError):
        return None
    return _stamp(low), _stamp(high)


def _stamp(at: datetime) -> str:
    return f"{at.year:04}{at:%m%d%H%M%S.%f}"


_PARSERS: Final[Mapping[str, Callable[[str], tuple[str, str] | None]]] = {"DA": _date, "TM": _time, "DT": _datetime}


def _interval(keys: Sequence[Key]) -> Interval | None:
    """The combined interval, where both StudyDate and StudyTime are ranges open at the same sides."""
    ranges = {
        key.path[0]: time_range(key, key.values[0], ordered=key.path == (STUDY_DATE,))
        for key in keys
        if key.path in ((STUDY_DATE,), (STUDY_TIME,)) and len(key.values) == 1
    }
    day, time = ranges.get(STUDY_DATE), ranges.get(STUDY_TIME)
    if not day or not time or day.single or time.single:
        return None
    if (day.low is None) != (time.low is None) or (day.high is None) != (time.high is None):
        return None
    low = (day.low, time.low) if day.low is not None and time.low is not None else None
    high = (day.high, time.high) if day.high is not None and time.high is not None else None
    if low and high and low > high:
        raise InvalidInput("The combined range of StudyDate and StudyTime ends before it begins")
    return Interval(low, high)


def _interval_test(interval: Interval) -> Test:
    def test(attributes: Attributes) -> bool:
        return interval.holds(time_value(attributes, STUDY_DATE, "DA"), time_value(attributes, STUDY_TIME, "TM"))

    return test


def time_value(attributes: Attributes, tag: int, vr: str) -> str:
    """The normalised date or time of an attribute of multiplicity one; empty if it has none."""
    return normal_time(vr, text_value(attributes, tag)) or ""


def text_value(attributes: Attributes, tag: int) -> str:
    """The text of an attribute of multiplicity one, without padding; empty if it has none."""
    values = attributes.get(hexadecimal(tag), {}).get("Value")
    if not values:
        return ""
    return padding_cut("LO", "\\".join(str(value) for value in values if value is not None))


# ---------------------------------------------------------------- sequences and private attributes


def _items_test(tag: int, keys: Sequence[Key], fuzzy: bool) -> Test:
    """All keys within one item (PS3.4 C.2.2.2.6)."""
    name = hexadecimal(tag)
    demands = [(key.path[1:], key) for key in keys]
    test = _nested(demands, fuzzy)
    return lambda attributes: any(
        test(item) for item in attributes.get(name, {}).get("Value", ()) if isinstance(item, Mapping)
    )


def _nested(demands: Sequence[tuple[TagPath, Key]], fuzzy: bool) -> Test:
    tests = [element_test(key, fuzzy) for path, key in demands if len(path) == 1]
    deeper: dict[int, list[Key]] = {}
    for path, key in demands:
        if len(path) > 1:
            deeper.setdefault(path[0], []).append(Key(path, key.vr, key.values))
    tests += [_items_test(tag, keys, fuzzy) for tag, keys in deeper.items()]
    return lambda item: all(test(item) for test in tests)


def _private_test(keys: Sequence[Key], fuzzy: bool) -> Test | None:
    """Private keys of one group: each block is sought by its creator, wherever the data set has it (QIDO-22)."""
    creators = {key.path[0] & 0xFF: key for key in keys if is_creator(key.path[0]) and not is_universal(key)}
    demands: dict[int, list[Key]] = {block: [] for block in creators}
    for key in keys:
        if not is_private(key.path[0]) or (is_universal(key) and key.path[0] >> 8 & 0xFF not in creators):
            continue
        block = key.path[0] >> 8 & 0xFF
        if block not in creators:
            raise InvalidInput(
                f"The private key {attribute_name(key.path)} needs its creator: "
                f"give {hexadecimal(key.path[0] & 0xFFFF0000 | block)} too"
            )
        if not is_universal(key):
            demands[block].append(key)
    if not demands:
        return None
    group = keys[0].path[0] >> 16

    def test(attributes: Attributes) -> bool:
        return all(
            any(
                all(_moved(key, group, at, fuzzy)(attributes) for key in demands[block])
                for at in _blocks(attributes, group, creator)
            )
            for block, creator in creators.items()
        )

    for key in (key for listed in demands.values() for key in listed):
        _moved(key, group, 0x10, fuzzy)
    return test


def _moved(key: Key, group: int, block: int, fuzzy: bool) -> Test:
    tag = group << 16 | block << 8 | key.path[0] & 0xFF
    if len(key.path) == 1:
        return element_test(Key((tag,), key.vr, key.values), fuzzy)
    return _items_test(tag, [Key((tag, *key.path[1:]), key.vr, key.values)], fuzzy)


def _blocks(attributes: Attributes, group: int, creator: Key) -> list[int]:
    """The blocks of a group that belong to a creator."""
    test = [_value_test(creator, value, False) for value in creator.values]
    found = []
    for block in range(0x10, 0x100):
        values = attributes.get(hexadecimal(group << 16 | block), {}).get("Value", ())
        if any(check(value) for value in values for check in test):
            found.append(block)
    return found


def private_elements(attributes: Attributes, query: DicomQuery) -> dict[str, Any]:
    """The private attributes of one instance that a query asked for with their creators, at their real tags."""
    asked = [key.path[0] for key in query.keys if key.path[0] >> 16 & 1]
    asked += [path[0] for path in query.include if path[0] >> 16 & 1]
    found: dict[str, Any] = {}
    for key in query.keys:
        if not is_creator(key.path[0]) or is_universal(key):
            continue
        group, block = key.path[0] >> 16, key.path[0] & 0xFF
        for at in _blocks(attributes, group, key):
            name = hexadecimal(group << 16 | at)
            found[name] = attributes[name]
            for tag in asked:
                if tag >> 16 == group and is_private(tag) and tag >> 8 & 0xFF == block:
                    name = hexadecimal(group << 16 | at << 8 | tag & 0xFF)
                    if name in attributes:
                        found[name] = attributes[name]
    return found
