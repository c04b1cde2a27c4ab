"""What a query demands, as predicates in SQL: only what SQL decides exactly as `gateway.domain.matching` does."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from adapters.sql.index.session import Session
from adapters.sql.tables import END, TAIL
from gateway.domain.matching import (
    MIDNIGHT,
    Condition,
    Interval,
    fuzzy_words,
    is_pattern,
    literal,
    name_patterns,
    number_of,
    time_range,
)
from gateway.domain.plan import LARGEST
from gateway.domain.query import (
    ACCESSION_NUMBER,
    INSTANCE_NUMBER,
    MODALITIES_IN_STUDY,
    MODALITY,
    PATIENT_BIRTH_DATE,
    PATIENT_ID,
    PATIENT_NAME,
    PATIENT_SEX,
    REFERRING_PHYSICIAN,
    SERIES_NUMBER,
    SERIES_UID,
    SOP_CLASS_UID,
    SOP_CLASSES_IN_STUDY,
    SOP_INSTANCE_UID,
    STUDY_DATE,
    STUDY_DESCRIPTION,
    STUDY_ID,
    STUDY_TIME,
    STUDY_UID,
    Key,
    hexadecimal,
    vr_of,
)

SERIES_DESCRIPTION: Final = 0x0008103E
BODY_PART: Final = 0x00180015

NAMES: Final = (PATIENT_NAME, REFERRING_PHYSICIAN)
"""Person names that have rows in study_name: whole forms under their tag, words under tag + `w`."""


@dataclass(frozen=True, slots=True)
class Where:
    """A predicate on one column, written `{c}`, or on none."""

    sql: str
    params: tuple[Any, ...]
    column: str = ""
    broad: bool = False
    """May match a large part of the table, and its column has an index that the planner might then mistake for
    the best way."""

    def text(self, *, walk: bool = False) -> str:
        """`walk`: SQLite must not use the column's index."""
        return self.sql.replace("{c}", f"+{self.column}" if walk else self.column)


@dataclass(frozen=True, slots=True)
class Subset:
    """The studies whose pk another table lists; and the same said of one study `s`, for when it is at hand."""

    sql: str
    params: tuple[Any, ...]
    holds: str
    holds_params: tuple[Any, ...]
    unique: bool = False
    """`sql` names no study twice."""


class Inside:
    """Where a text is looked for inside the values of an attribute: see `tables.text_tail`."""

    def __init__(self, session: Session, datastore_pk: int, tag: int) -> None:
        self._session = session
        self._of = (datastore_pk, hexadecimal(tag))

    def term(self, pattern: str) -> tuple[str, tuple[Any, ...]] | None:
        """A predicate on `{c}`, and its parameters; None for what nearly any value holds."""
        segment = max(_WILDCARDS.split(pattern), key=len)
        if len(segment) < 2 and segment.isascii():
            return None
        begins, bounds = _from(segment[-TAIL:])
        operator, parameter = self._session.like(pattern)
        rows = f"SELECT text FROM text_tail WHERE datastore_pk=? AND kind=? AND text {operator} AND "
        sql = f"{rows}{begins.replace('{c}', 'tail')} UNION ALL {rows}tail=''"
        params = (*self._of, parameter, *bounds, *self._of, parameter)
        if self._session.postgres:  # it plans by the texts, where it can see them
            found = self._session.all(f"{sql} LIMIT {_SEEN + 1}", *params)
            if len(found) <= _SEEN:
                return "{c} = ANY(?)", (sorted({text for (text,) in found}),)
        return f"{{c}} IN ({sql})", params


_SEEN: Final = 1000
_WILDCARDS: Final = re.compile(r"[*?]+")


_TEXT: Final[Mapping[int, str]] = {
    PATIENT_ID: "s.patient_id",
    ACCESSION_NUMBER: "s.accession",
    STUDY_ID: "s.study_id",
    PATIENT_SEX: "s.sex",
    STUDY_DESCRIPTION: "s.description",
    MODALITY: "x.modality",
    SERIES_DESCRIPTION: "x.series_description",
    BODY_PART: "x.body_part",
}
_UIDS: Final[Mapping[int, str]] = {
    STUDY_UID: "s.study_uid",
    SERIES_UID: "x.series_uid",
    SOP_CLASS_UID: "m.sop_class",
    SOP_INSTANCE_UID: "m.sop_uid",
}
_TIMES: Final[Mapping[int, str]] = {
    STUDY_DATE: "s.study_date",
    STUDY_TIME: "s.study_time",
    PATIENT_BIRTH_DATE: "s.birth_date",
}
_NUMBERS: Final[Mapping[int, str]] = {SERIES_NUMBER: "x.number", INSTANCE_NUMBER: "m.number"}
INDEXED: Final = frozenset(
    {"s.patient_id", "s.accession", "s.study_id", "s.description", "s.study_date", "s.birth_date", "x.modality"}
)
_OFTEN_EQUAL: Final = frozenset({"x.modality", "s.study_id", "s.description"})
"""Columns in which many rows may have one value."""
INSIDE: Final[Mapping[int, str]] = {
    PATIENT_ID: "patient_id",
    ACCESSION_NUMBER: "accession",
    STUDY_ID: "study_id",
    STUDY_DESCRIPTION: "description",
}
"""Texts of studies that have rows in text_tail, beside `NAMES`, and their columns."""


def pushed(session: Session, datastore_pk: int, condition: Condition, fuzzy: bool) -> Where | Subset | None:
    """The condition in SQL; None if only Python can decide it exactly."""
    if condition.interval:
        return between(condition.interval)
    key = condition.key
    if key is None or key.vr != vr_of(condition.tag):
        return None
    tag = condition.tag
    if tag in _UIDS:
        return _one_of(session, _UIDS[tag], [literal(key, value) for value in key.values])
    if tag in _TEXT:
        column = _TEXT[tag]
        texts = [literal(key, value) for value in key.values]
        if not any(map(is_pattern, texts)):
            one = _one_of(session, column, texts)
            return replace(one, broad=column in _OFTEN_EQUAL)
        inside = Inside(session, datastore_pk, tag) if tag in INSIDE else None
        sql, params = _text_in(session, texts, inside)
        return Where(sql, params, column, column in INDEXED)
    if tag in _TIMES:
        return _in_times(key, _TIMES[tag])
    if tag in _NUMBERS:
        numbers = [number_of(value) for value in key.values]
        if any(n is None or n != n.to_integral_value() or abs(n) > LARGEST for n in numbers):
            return None
        return _one_of(session, _NUMBERS[tag], [int(n) for n in numbers if n is not None])
    if tag in NAMES:
        return _name(session, datastore_pk, key, fuzzy)
    if tag == MODALITIES_IN_STUDY:
        texts = [literal(key, value) for value in key.values]
        sql, params = _text_in(session, texts)
        chosen = sql.replace("{c}", "modality")
        return Subset(
            f"SELECT study_pk FROM study_modality WHERE datastore_pk=? AND {chosen}",
            (datastore_pk, *params),
            f"EXISTS (SELECT 1 FROM study_modality WHERE study_pk=s.pk AND {chosen})",
            params,
            unique=len(texts) == 1 and not is_pattern(texts[0]),
        )
    if tag == SOP_CLASSES_IN_STUDY:
        one = _one_of(session, "m.sop_class", [literal(key, value) for value in key.values])
        return Where(
            "EXISTS (SELECT 1 FROM set_index x JOIN member m ON m.image_set_pk=x.image_set_pk WHERE x.datastore_pk="
            f"s.datastore_pk AND x.study_uid=s.study_uid AND x.is_primary AND m.v_to={END} AND {one.text()})",
            one.params,
        )
    return None


def _one_of(session: Session, column: str, values: Sequence[Any]) -> Where:
    if len(values) == 1:
        return Where("{c} = ?", (values[0],), column)
    return Where("{c} " + session.among, (session.values(values),), column)


def _text_in(session: Session, texts: Iterable[str], inside: Inside | None = None) -> tuple[str, tuple[Any, ...]]:
    """Any of some values or wildcard patterns; a literal beginning becomes a range that an index can serve, what
    stands behind a wildcard is sought `inside`."""
    parts: list[str] = []
    params: list[Any] = []
    for text in texts:
        if not is_pattern(text):
            parts.append("{c} = ?")
            params.append(text)
            continue
        beginning = _WILDCARDS.split(text, 1)[0]
        if not beginning and inside is not None and (found := inside.term(text)):
            parts.append(found[0])
            params += found[1]
            continue
        terms = []
        if beginning:
            begins, bounds = _from(beginning)
            terms.append(begins)
            params += bounds
        if not beginning or text.strip("*") != beginning or len(bounds) == 1:
            operator, parameter = session.like(text)
            terms.append("{c} " + operator)
            params.append(parameter)
        parts.append("(" + " AND ".join(terms) + ")")
    return parts[0] if len(parts) == 1 else "(" + " OR ".join(parts) + ")", tuple(params)


def _from(beginning: str) -> tuple[str, tuple[str, ...]]:
    """What begins with a text, as a range; one that is open above holds more."""
    if after := _next(beginning):
        return "{c} >= ? AND {c} < ?", (beginning, after)
    return "{c} >= ?", (beginning,)


def _next(text: str) -> str:
    """The least text that sorts after all that begin with `text`; empty if there is none."""
    last = ord(text[-1]) + 1
    if last > 0x10FFFF:
        return ""
    return text[:-1] + chr(0xE000 if 0xD800 <= last <= 0xDFFF else last)


def _in_times(key: Key, column: str) -> Where:
    parts, params, single = [], [], True
    for value in key.values:
        bounds = time_range(key, value)
        single = single and bounds.single
        if bounds.single:
            parts.append("{c} = ?")
            params.append(bounds.low)
            continue
        # A row without a value has an empty text, which is in no range.
        parts.append("({c} >= ? AND {c} <= ?)")
        params += [bounds.low or "0", bounds.high or "9~"]
    sql = parts[0] if len(parts) == 1 else "(" + " OR ".join(parts) + ")"
    return Where(sql, tuple(params), column, column in INDEXED and not single)


def between(interval: Interval) -> Where:
    """(date, time) between bounds; the range on the date alone is what an index serves."""
    low, high = interval.low, interval.high
    terms = ["{c} >= ?", "{c} <= ?"]
    params: list[Any] = [low[0] if low else "0", high[0] if high else "9~"]
    if low and low[1] > MIDNIGHT:
        terms.append("({c} > ? OR s.study_time >= ?)")
        params += low
    if high:
        terms.append("({c} < ? OR s.study_time <= ?)")
        params += high
    return Where(" AND ".join(terms), tuple(params), "s.study_date", broad=True)


def _name(session: Session, datastore_pk: int, key: Key, fuzzy: bool) -> Subset:
    """A form of the name that matches; or, fuzzy, a word of it for each word asked for, which begins with that."""
    kind = hexadecimal(key.path[0])
    rows = "SELECT study_pk FROM study_name WHERE datastore_pk=? AND kind=? AND "
    row = "EXISTS (SELECT 1 FROM study_name WHERE study_pk=s.pk AND kind=? AND "
    texts = [literal(key, value) for value in key.values]
    patterns = [pattern for text in texts for pattern in name_patterns(text)] or [""]
    inside = Inside(session, datastore_pk, key.path[0])
    union: list[str] = []
    asked: list[Any] = []
    for pattern in patterns:  # each by itself: of several with OR between them, SQLite would take no range
        form, params = _text_in(session, [pattern], inside)
        union.append(rows + form.replace("{c}", "norm"))
        asked += [datastore_pk, kind, *params]
    form, params = _text_in(session, patterns)
    either, held = [row + form.replace("{c}", "norm") + ")"], [kind, *params]
    for text in texts if fuzzy else ():
        words = [_text_in(session, [word + "*"]) for word in fuzzy_words(text)]
        if words:
            begins = [begin.replace("{c}", "norm") for begin, _ in words]
            of_each = " INTERSECT ".join(rows + begin for begin in begins)
            union.append(f"SELECT study_pk FROM ({of_each}) words")
            either.append("(" + " AND ".join(f"{row}{begin})" for begin in begins) + ")")
            for _, bounds in words:
                asked += [datastore_pk, kind + "w", *bounds]
                held += [kind + "w", *bounds]
    return Subset(" UNION ALL ".join(union), tuple(asked), "(" + " OR ".join(either) + ")", tuple(held))
