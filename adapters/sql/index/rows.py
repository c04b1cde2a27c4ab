"""The rows that searches read, written inside publishing transactions; they can be made anew from the truth."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import orjson
from sqlalchemy import Connection

from adapters.sql.index.clauses import BODY_PART, INSIDE, NAMES, SERIES_DESCRIPTION
from adapters.sql.index.session import Session
from adapters.sql.tables import DERIVED, TAIL, TAILED
from gateway.domain.matching import name_forms, name_text, name_words, normalize_name, text_value, time_value
from gateway.domain.plan import fold, has_value, study_part, whole_number
from gateway.domain.query import (
    ACCESSION_NUMBER,
    MODALITY,
    PATIENT_BIRTH_DATE,
    PATIENT_ID,
    PATIENT_SEX,
    SERIES_NUMBER,
    STUDY_DATE,
    STUDY_DESCRIPTION,
    STUDY_ID,
    STUDY_TIME,
    Attributes,
    hexadecimal,
)


@dataclass(frozen=True, slots=True)
class SetRow:
    """What searches need of an image set as it is published."""

    image_set_pk: int
    datastore_pk: int
    is_primary: bool
    study_uid: str
    series_uid: str
    attributes: Attributes
    """DICOM JSON of the patient, study and series levels with their edits, and `query.SERIES_BESIDE`."""
    n_instances: int
    created_at: int
    updated_at: int


_SET_COLUMNS: Final = (
    "datastore_pk, is_primary, study_uid, series_uid, patient_id, accession, study_id, study_date, study_time, "
    "modality, series_number, series_description, body_part, attrs, seq_from"
)
_STUDY_COLUMNS: Final = (
    "datastore_pk, study_uid, patient_id, accession, study_id, study_date, study_time, birth_date, sex, "
    "description, attrs, seq_from"
)


def _marks(columns: str) -> str:
    return ", ".join("?" * (columns.count(",") + 1))


def _assignments(columns: str) -> str:
    return ", ".join(f"{column.strip()}=?" for column in columns.split(","))


_INSERT_SET: Final = (
    f"INSERT INTO set_index ({_SET_COLUMNS}, number, n_instances, created_at, updated_at, image_set_pk) "
    f"VALUES ({_marks(_SET_COLUMNS)}, ?, ?, ?, ?, ?)"
)
_UPDATE_SET: Final = (
    f"UPDATE set_index SET {_assignments(_SET_COLUMNS)}, number=?, n_instances=?, created_at=?, updated_at=? "
    "WHERE image_set_pk=?"
)
_SET_TO_PAST: Final = (
    f"INSERT INTO set_index_past (image_set_pk, {_SET_COLUMNS}, seq_to) "
    f"SELECT image_set_pk, {_SET_COLUMNS}, ? FROM set_index WHERE image_set_pk=? AND seq_from<?"
)
_INSERT_STUDY: Final = (
    f"INSERT INTO study ({_STUDY_COLUMNS}, modalities, n_series, n_instances, changed) "
    f"VALUES ({_marks(_STUDY_COLUMNS)}, ?, ?, ?, ?) RETURNING pk"
)
_UPDATE_STUDY: Final = f"UPDATE study SET {_assignments(_STUDY_COLUMNS)} WHERE pk=?"
_STUDY_TO_PAST: Final = (
    f"INSERT INTO study_past ({_STUDY_COLUMNS}, seq_to) SELECT {_STUDY_COLUMNS}, ? FROM study WHERE pk=? AND seq_from<?"
)


def publish_set(connection: Connection, row: SetRow, seq: int) -> None:
    """Enters a published version of an image set, new or not: its row, and for a primary one its study's.

    In the publishing transaction, which holds the study's lock. `seq` is the change's number. Without changed values
    it costs two reads and three small updates.
    """
    session = Session(connection)
    text = _json(row.attributes)
    old = session.first(
        "SELECT attrs, n_instances, modality, study_uid, series_uid FROM set_index WHERE image_set_pk=?",
        row.image_set_pk,
    )
    changed = old is None or (old[0], old[3], old[4]) != (text, row.study_uid, row.series_uid)
    modality = text_value(row.attributes, MODALITY) if changed else old[2]
    if changed:
        if old is not None:
            session.run(_SET_TO_PAST, seq, row.image_set_pk, seq)
        attributes = row.attributes
        session.run(
            _INSERT_SET if old is None else _UPDATE_SET,
            row.datastore_pk,
            row.is_primary,
            row.study_uid,
            row.series_uid,
            text_value(attributes, PATIENT_ID),
            text_value(attributes, ACCESSION_NUMBER),
            text_value(attributes, STUDY_ID),
            time_value(attributes, STUDY_DATE, "DA"),
            time_value(attributes, STUDY_TIME, "TM"),
            modality,
            text_value(attributes, SERIES_NUMBER),
            text_value(attributes, SERIES_DESCRIPTION),
            text_value(attributes, BODY_PART),
            text,
            seq,
            whole_number(attributes, SERIES_NUMBER),
            row.n_instances,
            row.created_at,
            row.updated_at,
            row.image_set_pk,
        )
    else:
        session.run(
            "UPDATE set_index SET n_instances=?, updated_at=? WHERE image_set_pk=?",
            *(row.n_instances, row.updated_at, row.image_set_pk),
        )
    if row.is_primary:
        former = orjson.loads(old[0]) if changed and old is not None else None
        remodelled = old is None or old[2] != modality
        _publish_study(session, row, seq, former, remodelled, old is None, row.n_instances - (old[1] if old else 0))


def remove_set(connection: Connection, image_set_pk: int, seq: int) -> None:
    """Takes a deleted image set out of the searches, with its last series the study. In the deleting transaction."""
    session = Session(connection)
    old = session.first(
        "SELECT datastore_pk, is_primary, study_uid, n_instances FROM set_index WHERE image_set_pk=?", image_set_pk
    )
    if old is None:
        return
    datastore_pk, primary, study_uid, count = old
    session.run(_SET_TO_PAST, seq, image_set_pk, seq)
    session.run("DELETE FROM set_index WHERE image_set_pk=?", image_set_pk)
    if not primary:
        return
    study = _locked_study(session, datastore_pk, study_uid)
    if study is None:
        return
    pk, text, n_series, changed = study
    if n_series <= 1:
        session.run(_STUDY_TO_PAST, seq, pk, seq)
        session.run("DELETE FROM study_name WHERE study_pk=?", pk)
        session.run("DELETE FROM study_modality WHERE study_pk=?", pk)
        session.run("DELETE FROM study WHERE pk=?", pk)
        return
    # A deletion is no update: the study takes the place that its remaining series give it.
    (latest,) = session.first(
        "SELECT max(v.seq) FROM set_index x JOIN version v ON v.image_set_pk=x.image_set_pk "
        "WHERE x.datastore_pk=? AND x.study_uid=? AND x.is_primary",
        *(datastore_pk, study_uid),
    )
    session.run(
        "UPDATE study SET n_series=n_series-1, n_instances=n_instances-?, changed=? WHERE pk=?",
        *(count, latest or changed, pk),
    )
    _write_values(session, pk, datastore_pk, study_uid, fold(_parts(session, datastore_pk, study_uid)), text, seq)
    _write_modalities(session, pk, datastore_pk, study_uid, latest or changed)


def rebuild(connection: Connection, changes: Iterable[tuple[int, SetRow | int]]) -> None:
    """Makes the derived tables anew, the past with them, from (seq, what was published) in order of seq; an image
    set's pk in its place means that it was deleted."""
    for table in DERIVED:
        connection.execute(table.delete())
    for seq, change in changes:
        if isinstance(change, SetRow):
            publish_set(connection, change, seq)
        else:
            remove_set(connection, change, seq)


def _publish_study(
    session: Session,
    row: SetRow,
    seq: int,
    former: Attributes | None,
    remodelled: bool,
    new_series: bool,
    more: int,
) -> None:
    """`former`: the image set's attributes before, if they changed; `more`: how many instances it gained."""
    part = fold([study_part(row.attributes)])
    study = _locked_study(session, row.datastore_pk, row.study_uid)
    if study is None:
        values = _study_values(row.datastore_pk, row.study_uid, part, seq)
        modality = text_value(row.attributes, MODALITY)
        (pk,) = session.first(_INSERT_STUDY, *values, modality, 1, row.n_instances, seq)
        _write_names(session, pk, row.datastore_pk, {}, part)
        _write_tails(session, pk, row.datastore_pk, {}, part)
        if modality:
            session.run(_INSERT_MODALITY, row.datastore_pk, modality, seq, pk)
        return
    pk, text, *_ = study
    session.run(
        "UPDATE study SET n_series=n_series+?, n_instances=n_instances+?, changed=? WHERE pk=?",
        *(int(new_series), more, seq, pk),
    )
    if text != _json(part):
        lost = former is not None and any(has_value(was) and tag not in part for tag, was in study_part(former).items())
        # What this image set no longer says may still be said by an older one.
        before = _parts(session, row.datastore_pk, row.study_uid, row.image_set_pk) if lost else [orjson.loads(text)]
        _write_values(session, pk, row.datastore_pk, row.study_uid, fold([*before, part]), text, seq)
    if remodelled:
        _write_modalities(session, pk, row.datastore_pk, row.study_uid, seq)
    else:
        session.run("UPDATE study_modality SET changed=? WHERE study_pk=?", seq, pk)


def _locked_study(session: Session, datastore_pk: int, study_uid: str) -> Any:
    return session.first(
        "SELECT pk, attrs, n_series, changed FROM study WHERE datastore_pk=? AND study_uid=?"
        + (" FOR UPDATE" if session.postgres else ""),
        *(datastore_pk, study_uid),
    )


def _parts(session: Session, datastore_pk: int, study_uid: str, without: int = 0) -> list[dict[str, Any]]:
    """What the primary image sets of a study say of it, in order of their last update."""
    # Sorted here: asked for an order, SQLite would rather walk an index of the whole data store.
    found = session.all(
        "SELECT updated_at, image_set_pk, attrs FROM set_index "
        "WHERE datastore_pk=? AND study_uid=? AND is_primary AND image_set_pk<>?",
        *(datastore_pk, study_uid, without),
    )
    return [study_part(orjson.loads(text)) for _, _, text in sorted(tuple(row) for row in found)]


def _study_values(datastore_pk: int, study_uid: str, attributes: Attributes, seq: int) -> tuple[Any, ...]:
    """In the order of `_STUDY_COLUMNS`."""
    return (
        datastore_pk,
        study_uid,
        text_value(attributes, PATIENT_ID),
        text_value(attributes, ACCESSION_NUMBER),
        text_value(attributes, STUDY_ID),
        time_value(attributes, STUDY_DATE, "DA"),
        time_value(attributes, STUDY_TIME, "TM"),
        time_value(attributes, PATIENT_BIRTH_DATE, "DA"),
        text_value(attributes, PATIENT_SEX),
        text_value(attributes, STUDY_DESCRIPTION),
        _json(attributes),
        seq,
    )


def _write_values(
    session: Session, pk: int, datastore_pk: int, study_uid: str, attributes: Attributes, old: str, seq: int
) -> None:
    """The study's values, if they are not what `old` says; the former ones go to the past."""
    if _json(attributes) == old:
        return
    session.run(_STUDY_TO_PAST, seq, pk, seq)
    session.run(_UPDATE_STUDY, *_study_values(datastore_pk, study_uid, attributes, seq), pk)
    former = orjson.loads(old)
    _write_names(session, pk, datastore_pk, former, attributes)
    _write_tails(session, pk, datastore_pk, former, attributes)


_INSERT_TAILS: Final = (
    "INSERT INTO text_tail (datastore_pk, kind, tail, text, study_pk) SELECT ?, ?, value, ?, ? FROM {values} "
    "WHERE NOT EXISTS (SELECT 1 FROM text_tail WHERE datastore_pk=? AND kind=? AND tail=? AND text=?)"
)


def _write_tails(session: Session, pk: int, datastore_pk: int, old: Attributes, new: Attributes) -> None:
    """What searches inside texts need; a text that another study has brought is there already."""
    known = texts_of(old)
    for kind, text in texts_of(new):
        if (kind, text) not in known:
            tails = tails_of(text)
            session.run(
                _INSERT_TAILS.format(values=session.table_of_texts),
                *(datastore_pk, kind, text, pk, session.values(sorted(set(tails)))),
                *(datastore_pk, kind, tails[0], text),
            )


def tails_of(text: str) -> list[str]:
    """The tails of a text that is not empty, the longest first; see `tables.text_tail`."""
    return [text[at : at + TAIL] for at in range(len(text))] if len(text) <= TAILED else [""]


def texts_of(attributes: Attributes) -> dict[tuple[str, str], None]:
    """What has tails, of a study: (kind, text)."""
    found = {(hexadecimal(tag), text): None for tag in INSIDE if (text := text_value(attributes, tag))}
    for tag in NAMES:
        for value in attributes.get(hexadecimal(tag), {}).get("Value") or ():
            found.update(((hexadecimal(tag), form), None) for form in name_forms(value or ""))
    return found


def _write_names(session: Session, pk: int, datastore_pk: int, old: Attributes, new: Attributes) -> None:
    for tag in NAMES:
        kind = hexadecimal(tag)
        if old.get(kind) == new.get(kind):
            continue
        if old.get(kind):
            session.run("DELETE FROM study_name WHERE study_pk=? AND kind IN (?, ?)", pk, kind, kind + "w")
        rows = set()
        for value in new.get(kind, {}).get("Value") or ():
            if value is not None:
                rows |= {(kind, form) for form in name_forms(value)}
                rows |= {(kind + "w", word) for word in name_words(normalize_name(name_text(value)))}
        session.run_each(
            "INSERT INTO study_name (datastore_pk, kind, norm, study_pk) VALUES (?, ?, ?, ?)",
            [(datastore_pk, kind, norm, pk) for kind, norm in sorted(rows)],
        )


_INSERT_MODALITY: Final = "INSERT INTO study_modality (datastore_pk, modality, changed, study_pk) VALUES (?, ?, ?, ?)"


def _write_modalities(session: Session, pk: int, datastore_pk: int, study_uid: str, seq: int) -> None:
    found = session.all(
        "SELECT modality FROM set_index WHERE datastore_pk=? AND study_uid=? AND is_primary", datastore_pk, study_uid
    )
    modalities = sorted({modality for (modality,) in found if modality})
    session.run("UPDATE study SET modalities=? WHERE pk=?", "\\".join(modalities), pk)
    session.run("DELETE FROM study_modality WHERE study_pk=?", pk)
    session.run_each(_INSERT_MODALITY, [(datastore_pk, modality, seq, pk) for modality in modalities])


def _json(attributes: Attributes) -> str:
    return orjson.dumps(attributes, option=orjson.OPT_SORT_KEYS).decode()
