"""Searches over image sets in memory: one that is named, or all that may match as they once were."""

from collections.abc import Iterable
from datetime import datetime

import orjson

from adapters.sql.index.clauses import Where, pushed
from adapters.sql.index.loading import MEMBER, SOP_UID, Loader, instance
from adapters.sql.index.session import Session, milliseconds
from adapters.sql.tables import END
from gateway.domain.errors import NotFound
from gateway.domain.plan import Answering, Held, answer, element
from gateway.domain.query import SOP_CLASSES_IN_STUDY, Attributes, Level, SearchAnswer, beyond_index


class HeldSearch:
    """One search over image sets in memory."""

    def __init__(self, session: Session, datastore_pk: int, ready: Answering, loader: Loader) -> None:
        self._session = session
        self._datastore_pk = datastore_pk
        self._ready = ready
        self._query = ready.query
        self._loader = loader

    def answer(self) -> SearchAnswer:
        """Over image sets in memory: the one that the query names, or all that may match as they once were."""
        as_of = self._query.as_of
        sets = self._current(self._image_set()) if as_of is None else self._past(as_of)
        return answer(self._ready, sets, self._instances_of)

    def _image_set(self) -> int:
        found = self._session.first(
            "SELECT pk FROM image_set WHERE datastore_pk=? AND id=?", self._datastore_pk, self._query.image_set
        )
        if found is None:
            raise NotFound("There is no such image set")
        return int(found[0])

    def _current(self, image_set_pk: int) -> list[Held]:
        found = self._session.first(
            "SELECT study_uid, series_uid, attrs, n_instances FROM set_index WHERE image_set_pk=?", image_set_pk
        )
        if found is None:
            raise NotFound("There is no such image set")
        study_uid, series_uid, attrs, count = found
        return [self._one(image_set_pk, END - 1, study_uid, series_uid, attrs, count, 0)]

    def _past(self, as_of: datetime) -> list[Held]:
        session = self._session
        last = session.first(
            "SELECT seq FROM change WHERE datastore_pk=? AND at<=? ORDER BY at DESC, seq DESC LIMIT 1",
            self._datastore_pk,
            milliseconds(as_of),
        )
        if last is None:
            return []
        seq = int(last[0])
        if self._query.image_set is not None:
            chosen, params = "image_set_pk=?", [self._image_set()]
        else:
            chosen, params = f"is_primary AND study_uid {session.among}", [session.values(self._studies_at(seq))]
        columns = "image_set_pk, study_uid, series_uid, attrs"
        found = session.all(
            f"SELECT {columns} FROM set_index WHERE datastore_pk=? AND seq_from<=? AND {chosen} UNION ALL "
            f"SELECT {columns} FROM set_index_past WHERE datastore_pk=? AND seq_from<=? AND seq_to>? AND {chosen}",
            *(self._datastore_pk, seq, *params, self._datastore_pk, seq, seq, *params),
        )
        self._loader.check_rows(len(found))
        versions = {
            pk: (content, count, at)
            for pk, content, count, at in session.all(
                "SELECT v.image_set_pk, v.content, v.n_instances, v.seq FROM version v JOIN ("
                "SELECT image_set_pk, max(version) AS version FROM version WHERE seq<=? AND content IS NOT NULL "
                f"AND image_set_pk {session.among} GROUP BY image_set_pk) last "
                "ON last.image_set_pk=v.image_set_pk AND last.version=v.version",
                seq,
                session.values({pk for pk, *_ in found}),
            )
        }
        held = []
        for pk, study_uid, series_uid, attrs in found:
            if pk in versions:
                content, count, at = versions[pk]
                held.append(self._one(pk, content, study_uid, series_uid, attrs, count, at))
        return held

    def _studies_at(self, seq: int) -> list[str]:
        """The studies whose values at `seq` meet what SQL can ask of them."""
        session = self._session
        wheres = [
            where
            for condition in self._ready.conditions
            if isinstance(where := pushed(session, self._datastore_pk, condition, self._query.fuzzy), Where)
            and where.column
        ]
        # What else is known of a patient may stand in another study; the identifier stands in each.
        narrowing = "s.patient_id" if self._query.level is Level.PATIENT else "s."
        on_study = [where for where in wheres if where.column.startswith(narrowing)]
        on_series = [where for where in wheres if where.column == "x.series_uid"]
        terms = "".join(f" AND {where.text()}" for where in on_study)
        params = [value for where in on_study for value in where.params]
        for where in on_series:
            either = (
                f"SELECT x.study_uid FROM {table} x WHERE x.datastore_pk=? AND {where.text()}"
                for table in ("set_index", "set_index_past")
            )
            terms += f" AND s.study_uid IN ({' UNION '.join(either)})"
            params += [self._datastore_pk, *where.params] * 2
        found = session.all(
            f"SELECT s.study_uid FROM study s WHERE s.datastore_pk=? AND s.seq_from<=?{terms} UNION "
            f"SELECT s.study_uid FROM study_past s WHERE s.datastore_pk=? AND s.seq_from<=? AND s.seq_to>?{terms} "
            "LIMIT ?",
            *(self._datastore_pk, seq, *params, self._datastore_pk, seq, seq, *params, self._loader.row_budget + 1),
        )
        self._loader.check_rows(len(found))
        return [uid for (uid,) in found]

    def _one(
        self, pk: int, content: int, study_uid: str, series_uid: str, attrs: str, count: int, updated: int
    ) -> Held:
        classes: Iterable[str] = ()
        if self._ready.wants(SOP_CLASSES_IN_STUDY):
            classes = [
                sop_class
                for (sop_class,) in self._session.all(
                    "SELECT DISTINCT sop_class FROM member WHERE image_set_pk=? AND v_from<=? AND v_to>?",
                    *(pk, content, content),
                )
            ]
        return Held((pk, content), study_uid, series_uid, orjson.loads(attrs), count, updated, frozenset(classes))

    def _instances_of(self, held: Held) -> Iterable[Attributes]:
        pk, content = held.ref
        members = self._session.all(
            f"{MEMBER} WHERE m.image_set_pk=? AND m.v_from<=? AND m.v_to>?", pk, content, content
        )
        matched = any(beyond_index(condition.tag) for condition in self._ready.conditions)
        if not (matched or self._loader.shows_documents()):
            return map(instance, members)
        documents = self._loader.documents(members, matched=matched)
        return (
            {**document, SOP_UID: element("UI", member[2])} for member, document in zip(members, documents, strict=True)
        )
