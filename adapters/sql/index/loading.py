"""Rows by their keys, as the views that conditions are put to and answers are made of."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, Final

import orjson

from adapters.sql.index.session import Session
from adapters.sql.tables import END
from gateway.domain.errors import InvalidInput, TooLarge
from gateway.domain.matching import Condition, fulfils
from gateway.domain.plan import Answering, element, series_view, study_view, views_of
from gateway.domain.query import (
    SOP_CLASSES_IN_STUDY,
    SOP_INSTANCE_UID,
    STUDY_UID,
    Attributes,
    Level,
    Views,
    beyond_index,
    hexadecimal,
    is_creator,
)

InstanceJson = Callable[[Sequence[tuple[int, int | None]]], Iterable[Attributes]]
"""(record_pk, overlay_pk) pairs -> the DICOM JSON of each, with the overlay's edits, in the same order."""

_CHUNK: Final = 500
_UPPER: Final = (Level.PATIENT, Level.STUDY)
_STUDY_UID: Final = hexadecimal(STUDY_UID)
SOP_UID: Final = hexadecimal(SOP_INSTANCE_UID)
MEMBER: Final = (
    "SELECT m.pk, m.image_set_pk, m.sop_uid, m.record_pk, m.overlay_pk, coalesce(o.attrs, r.attrs) "
    "FROM member m JOIN record r ON r.pk=m.record_pk LEFT JOIN overlay o ON o.pk=m.overlay_pk"
)


class Loader:
    """Reads what one search shows, within its budgets."""

    def __init__(
        self,
        session: Session,
        datastore_pk: int,
        ready: Answering,
        instance_json: InstanceJson | None,
        document_budget: int,
        row_budget: int,
    ) -> None:
        self._session = session
        self._datastore_pk = datastore_pk
        self._ready = ready
        self._query = ready.query
        self._instance_json = instance_json
        self._documents_left = document_budget
        self.row_budget = row_budget
        if instance_json is None:
            for condition in ready.conditions:
                if beyond_index(condition.tag):
                    raise InvalidInput(f"{hexadecimal(condition.tag)} cannot be matched here")

    def check_rows(self, looked_at: int) -> None:
        """Raises TooLarge beyond the budget."""
        if looked_at > self.row_budget:
            raise TooLarge("The search would look at too many rows; add a patient, a study or a range of dates")

    def load(self, pks: Sequence[int], demanded: Sequence[Condition] = ()) -> Iterator[Views]:
        """What is known of each row, in the order of the keys, without those that fail a condition."""
        for start in range(0, len(pks), _CHUNK):
            chunk = pks[start : start + _CHUNK]
            if self._query.level is Level.INSTANCE:
                yield from self._members(chunk, demanded)
                continue
            found = self._series(chunk) if self._query.level is Level.SERIES else self.studies(chunk)
            for views in found.values():
                if fulfils(views, demanded):
                    yield views

    def studies(self, values: Collection[Any], column: str = "pk") -> dict[Any, Views]:
        """Studies by their keys, in the order of these; or by UID."""
        session = self._session
        # Without the `+`, SQLite would rather go through all of the data store than look up keys.
        store = "datastore_pk" if session.postgres or column != "pk" else "+datastore_pk"
        found = session.all(
            f"SELECT {column}, study_uid, attrs, modalities, n_series, n_instances FROM study "
            f"WHERE {store}=? AND {column} {session.among}",
            self._datastore_pk,
            session.values(values),
        )
        classes = self._sop_classes([uid for _, uid, *_ in found])
        views = {
            value: views_of(
                study_view(
                    orjson.loads(attrs),
                    uid,
                    modalities.split("\\") if modalities else (),
                    series,
                    instances,
                    classes.get(uid, ()),
                )
            )
            for value, uid, attrs, modalities, series, instances in found
        }
        return {value: views[value] for value in values if value in views}

    def _sop_classes(self, study_uids: Sequence[str]) -> dict[str, list[str]]:
        """SOPClassesInStudy, where somebody asks."""
        if not self._ready.wants(SOP_CLASSES_IN_STUDY):
            return {}
        session = self._session
        classes: dict[str, list[str]] = {}
        for uid, sop_class in session.all(
            "SELECT DISTINCT x.study_uid, m.sop_class FROM set_index x JOIN member m ON m.image_set_pk=x.image_set_pk "
            f"WHERE x.datastore_pk=? AND x.is_primary AND m.v_to={END} AND x.study_uid {session.among} ORDER BY 1, 2",
            self._datastore_pk,
            session.values(study_uids),
        ):
            classes.setdefault(uid, []).append(sop_class)
        return classes

    def _series(self, pks: Sequence[int]) -> dict[int, Views]:
        """Series with their studies, by image set."""
        session = self._session
        found = session.all(
            "SELECT image_set_pk, study_uid, series_uid, attrs, n_instances FROM set_index "
            f"WHERE image_set_pk {session.among}",
            session.values(pks),
        )
        studies = self.studies({uid for _, uid, *_ in found}, "study_uid") if self._needs_study() else {}
        views: dict[int, Views] = {}
        for pk, study_uid, series_uid, attrs, count in found:
            study = studies.get(study_uid) or views_of({_STUDY_UID: element("UI", study_uid)})
            views[pk] = {**study, Level.SERIES: series_view(orjson.loads(attrs), study_uid, series_uid, count)}
        return {pk: views[pk] for pk in pks if pk in views}

    def _needs_study(self) -> bool:
        return (
            self._query.include_all
            or any(column.level in _UPPER and column.tag != _STUDY_UID for column in self._ready.columns)
            or any(condition.level in _UPPER for condition in self._ready.conditions if condition.tag != STUDY_UID)
        )

    def _members(self, pks: Sequence[int], demanded: Sequence[Condition]) -> Iterator[Views]:
        session = self._session
        found = session.all(f"{MEMBER} WHERE m.pk {session.among}", session.values(pks))
        by_pk = {member[0]: member for member in found}
        series = self._series(list({member[1] for member in found}))
        at_hand = [condition for condition in demanded if not beyond_index(condition.tag)]
        kept: list[tuple[Any, Views]] = []
        for pk in pks:
            member = by_pk.get(pk)
            if member is not None and member[1] in series:
                views: Views = {**series[member[1]], Level.INSTANCE: instance(member)}
                if fulfils(views, at_hand):
                    kept.append((member, views))
        from_documents = [condition for condition in demanded if beyond_index(condition.tag)]
        if not (from_documents or self.shows_documents()):
            yield from (views for _, views in kept)
            return
        documents = self.documents([member for member, _ in kept], matched=bool(from_documents))
        for (member, views), document in zip(kept, documents, strict=True):
            whole: Views = {**views, Level.INSTANCE: {**document, SOP_UID: element("UI", member[2])}}
            if fulfils(whole, from_documents):
                yield whole

    def documents(self, members: Sequence[Any], *, matched: bool) -> Iterable[Attributes]:
        """The whole instances; within the budget where they are read to be matched."""
        if self._instance_json is None:
            return [instance(member) for member in members]
        if matched:
            self._documents_left -= len(members)
            if self._documents_left < 0:
                raise TooLarge(
                    "The search would read too many instances, for it asks for an attribute that is not indexed; "
                    "add a study, a series or a range of dates"
                )
        return self._instance_json([(member[3], member[4]) for member in members])

    def shows_documents(self) -> bool:
        return any(beyond_index(int(column.tag, 16)) for column in self._ready.columns) or any(
            is_creator(key.path[0]) for key in self._query.keys
        )


def instance(member: Any) -> dict[str, Any]:
    attributes: dict[str, Any] = orjson.loads(member[5])
    attributes[SOP_UID] = element("UI", member[2])
    return attributes
