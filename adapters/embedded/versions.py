"""Versions of image sets: their state, their documents, and the commit that numbers and shows them.

Imports, edits, reverts, copies and restorations all end in `number`: whatever makes a version makes it here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
import sqlalchemy as sa

from adapters.embedded import docs
from adapters.embedded.chunks import deflate
from adapters.embedded.events import Events
from adapters.sql import index
from adapters.sql import tables as t
from adapters.sql.database import Statement
from gateway.domain import metadata
from gateway.domain.edits import Overlay
from gateway.domain.ids import DatastoreId, ImageSetId
from gateway.domain.model import ImageSetState, Workflow
from gateway.domain.query import SERIES_BESIDE, hexadecimal

# Statements of the publishing path are made once: building one costs as much as running it.
_levels, _overlay = t.doc.alias("levels"), t.doc.alias("overlay")
_STATE = Statement(
    sa.select(
        t.image_set.c.id,
        t.image_set.c.datastore_pk,
        t.image_set.c.is_primary,
        t.image_set.c.study_uid,
        t.image_set.c.series_uid,
        t.image_set.c.latest,
        t.image_set.c.n_instances,
        t.image_set.c.n_frames,
        t.image_set.c.created_at,
        t.version.c.levels_doc,
        t.version.c.overlay_doc,
        t.version.c.head_doc,
        _levels.c.body,
        _overlay.c.body,
        t.set_index.c.attrs,
    )
    .join(
        t.version,
        sa.and_(t.version.c.image_set_pk == t.image_set.c.pk, t.version.c.version == t.image_set.c.visible),
    )
    .outerjoin(_levels, _levels.c.pk == t.version.c.levels_doc)
    .outerjoin(_overlay, _overlay.c.pk == t.version.c.overlay_doc)
    .outerjoin(t.set_index, t.set_index.c.image_set_pk == t.image_set.c.pk)
    .where(t.image_set.c.pk == sa.bindparam("set_pk"))
)
_feed = t.datastore_seq.c
_NEXT_NUMBERS = Statement(
    sa.update(t.datastore_seq)
    .where(_feed.datastore_pk == sa.bindparam("store_pk"))
    .values(
        seq=_feed.seq + sa.bindparam("count"),
        # The feed's times never fall, whatever the clock does.
        last_at=sa.case((_feed.last_at > sa.bindparam("now"), _feed.last_at), else_=sa.bindparam("now")),
    )
    .returning(_feed.seq, _feed.last_at)
)
_INSERT_VERSION = Statement(sa.insert(t.version))
_SHOW_SET = Statement(sa.update(t.image_set).where(t.image_set.c.pk == sa.bindparam("set_pk")))
_INSERT_CHANGE = Statement(sa.insert(t.change))


@dataclass(slots=True)
class SetState:
    """An image set as the transaction sees it."""

    pk: int
    id: ImageSetId
    datastore_pk: int
    datastore_id: DatastoreId
    is_primary: bool
    study_uid: str
    series_uid: str
    latest: int
    n_instances: int
    n_frames: int
    created_at: int
    levels: metadata.Levels
    overlay: Overlay
    levels_doc: int | None = None
    overlay_doc: int | None = None
    head_doc: int | None = None
    searchable: dict[str, Any] | None = None
    """Of the levels and edits as they are; None when they have changed since."""
    beside: dict[str, Any] = field(default_factory=dict)
    """DICOM JSON of series keys that instances keep (`query.SERIES_BESIDE`), of the first one received."""

    def shown(self) -> metadata.Levels:
        """Its attributes by level, edits included."""
        return self.overlay.apply(self.levels)


@dataclass(slots=True)
class Publication:
    """One version about to be numbered."""

    state: SetState
    """As of this version: a transaction may make more of the same image set."""
    version: int
    workflow: Workflow
    kind: str
    at: int
    forced: bool = False
    job_pk: int | None = None
    called_ae: str | None = None
    calling_ae: str | None = None
    principal: str | None = None
    reason: str | None = None
    message: str | None = None
    copied_from: ImageSetId | None = None
    insert_version: bool = True
    """False when the row was made as the operation was accepted."""


def load_state(connection: sa.Connection, pk: int, datastore_id: DatastoreId) -> SetState:
    """An image set with the levels and edits of its last version with content."""
    row = _STATE.run(connection, {"set_pk": pk}).fetchone()
    assert row is not None
    set_id, datastore_pk, is_primary, study_uid, series_uid, latest, n_instances, n_frames, created_at, *rest = row
    levels_doc, overlay_doc, head_doc, levels, overlay, attrs = rest
    searchable = orjson.loads(attrs) if attrs else None
    return SetState(
        pk=pk,
        id=ImageSetId(set_id),
        datastore_pk=datastore_pk,
        datastore_id=datastore_id,
        is_primary=bool(is_primary),
        study_uid=study_uid,
        series_uid=series_uid,
        latest=latest,
        n_instances=n_instances,
        n_frames=n_frames,
        created_at=created_at,
        levels=orjson.loads(bytes(levels)) if levels else {},
        overlay=Overlay.from_json(bytes(overlay)) if overlay else Overlay(),
        levels_doc=levels_doc,
        overlay_doc=overlay_doc,
        head_doc=head_doc,
        searchable=searchable,
        beside=searchable_beside(searchable or {}),
    )


def sibling_primary(connection: sa.Connection, state: SetState) -> int | None:
    """Another primary image set of a primary one's study."""
    if not state.is_primary:
        return None
    s = t.image_set
    pk: int | None = connection.execute(
        sa.select(s.c.pk)
        .where(
            s.c.datastore_pk == state.datastore_pk,
            s.c.study_uid == state.study_uid,
            t.LIVING_PRIMARY,
            s.c.pk != state.pk,
        )
        .limit(1)
    ).scalar()
    return pk


_BESIDE: Final = tuple(map(hexadecimal, sorted(SERIES_BESIDE)))


def searchable_beside(elements: Mapping[str, Any]) -> dict[str, Any]:
    """Of the attributes of an instance, in DICOM JSON, those that search keeps at the series (`SERIES_BESIDE`)."""
    return {tag: elements[tag] for tag in _BESIDE if tag in elements}


def beside_of(connection: sa.Connection, image_set_pk: int) -> dict[str, Any]:
    """What search keeps at the series of an image set, of the first instance that it had."""
    attrs = connection.execute(
        sa.select(t.record.c.attrs)
        .join(t.member, t.member.c.record_pk == t.record.c.pk)
        .where(t.member.c.image_set_pk == image_set_pk)
        .order_by(t.member.c.v_from, t.member.c.pk)
        .limit(1)
    ).scalar()
    return searchable_beside(orjson.loads(attrs or "{}"))


def store_docs(connection: sa.Connection, state: SetState) -> None:
    """Stores the levels, the edits and the document's head as they are now; equal ones are shared."""
    state.searchable = None
    state.levels_doc = docs.put_json(connection, orjson.dumps(state.levels, option=orjson.OPT_SORT_KEYS))
    state.overlay_doc = docs.put_json(connection, state.overlay.to_json()) if state.overlay else None
    head = metadata.head(state.datastore_id, state.id, state.levels, state.overlay.by_level)
    state.head_doc = docs.put_chunk(connection, deflate(head))


def number(connection: sa.Connection, publications: Sequence[Publication], events: Events) -> None:
    """Gives each version its sequence number and writes the rows that carry one; the last act of its transaction."""
    by_store: dict[int, list[Publication]] = {}
    for publication in publications:
        by_store.setdefault(publication.state.datastore_pk, []).append(publication)
    for datastore_pk, some in sorted(by_store.items()):
        numbers = {"store_pk": datastore_pk, "count": len(some), "now": some[-1].at}
        row = _NEXT_NUMBERS.run(connection, numbers).fetchone()
        assert row is not None
        seq, last_at = row
        for offset, publication in enumerate(some):
            _write(connection, publication, seq - len(some) + 1 + offset, last_at)
            events.image_set(
                connection,
                publication.state.datastore_id,
                publication.state.id,
                publication.version,
                publication.workflow,
                is_primary=publication.state.is_primary,
                state=ImageSetState.ACTIVE,
                copied_from=publication.copied_from,
            )


def _write(connection: sa.Connection, p: Publication, seq: int, at: int) -> None:
    state = p.state
    values: dict[str, Any] = {
        "content": p.version,
        "state": ImageSetState.ACTIVE,
        "workflow": p.workflow,
        "message": p.message,
        "forced": p.forced,
        "study_uid": state.study_uid,
        "series_uid": state.series_uid,
        "levels_doc": state.levels_doc,
        "overlay_doc": state.overlay_doc,
        "head_doc": state.head_doc,
        "n_instances": state.n_instances,
        "n_frames": state.n_frames,
        "seq": seq,
        "at": at,
    }
    if p.insert_version:
        origin = {"called_ae": p.called_ae, "calling_ae": p.calling_ae, "principal": p.principal, "reason": p.reason}
        _INSERT_VERSION.run(
            connection,
            {"image_set_pk": state.pk, "version": p.version, "job_pk": p.job_pk, **values, **origin},
        )
    else:
        connection.execute(
            sa.update(t.version)
            .where(t.version.c.image_set_pk == state.pk, t.version.c.version == p.version)
            .values(**values)
        )
    _SHOW_SET.run(
        connection,
        {
            "set_pk": state.pk,
            "latest": p.version,
            "visible": p.version,
            "state": ImageSetState.ACTIVE,
            "workflow": p.workflow,
            "message": p.message,
            "study_uid": state.study_uid,
            "series_uid": state.series_uid,
            "n_instances": state.n_instances,
            "n_frames": state.n_frames,
            "updated_at": at,
        },
    )
    _INSERT_CHANGE.run(
        connection,
        {
            "datastore_pk": state.datastore_pk,
            "seq": seq,
            "at": at,
            "kind": p.kind,
            "image_set_pk": state.pk,
            "version": p.version,
            "job_pk": p.job_pk,
            "principal": p.principal,
        },
    )
    index.publish_set(
        connection,
        index.SetRow(
            image_set_pk=state.pk,
            datastore_pk=state.datastore_pk,
            is_primary=state.is_primary,
            study_uid=state.study_uid,
            series_uid=state.series_uid,
            attributes=shown_attributes(state),
            n_instances=state.n_instances,
            created_at=state.created_at,
            updated_at=at,
        ),
        seq,
    )


def shown_attributes(state: SetState) -> dict[str, Any]:
    """The DICOM JSON of its patient, study and series levels, edits included."""
    if state.searchable is None:
        levels = state.shown()
        merged = {**levels["Patient"], **levels["Study"], **levels["Series"]}
        state.searchable = dict(sorted({**metadata.to_dicom_json(merged), **state.beside}.items()))
    return state.searchable
