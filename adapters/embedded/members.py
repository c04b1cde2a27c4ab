"""The instances that an image set holds now, as edits and copies look at them."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
import sqlalchemy as sa

from adapters.embedded.chunks import deflate, inflate, unpack_extents
from adapters.sql import tables as t
from adapters.sql.database import insert_or_keep
from gateway.domain import edits, metadata
from gateway.domain.edits import Changes
from gateway.ports import BlobStore


@dataclass(frozen=True, slots=True)
class Member:
    pk: int
    sop_uid: str
    sop_class: str
    number: int | None
    record_pk: int
    overlay_pk: int | None
    frames: int


class Instances(Mapping[str, "_Content"]):
    """The live instances of a set; attributes are read only where an edit asks for them."""

    def __init__(self, connection: sa.Connection, blobs: BlobStore, image_set_pk: int) -> None:
        self.connection = connection
        self._blobs = blobs
        m, r, x = t.member, t.record, t.pixel
        self.members = {
            row.sop_uid: Member(*row)
            for row in connection.execute(
                sa.select(
                    m.c.pk,
                    m.c.sop_uid,
                    m.c.sop_class,
                    m.c.number,
                    m.c.record_pk,
                    m.c.overlay_pk,
                    sa.func.coalesce(x.c.n_frames, 0),
                )
                .join(r, r.c.pk == m.c.record_pk)
                .outerjoin(x, x.c.pk == r.c.pixel_pk)
                .where(m.c.image_set_pk == image_set_pk, m.c.v_to == t.END)
            )
        }

    def __getitem__(self, sop_uid: str) -> "_Content":
        return _Content(self, self.members[sop_uid])

    def __iter__(self) -> Iterator[str]:
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)

    def changes(self, member: Member) -> Changes:
        if member.overlay_pk is None:
            return Changes()
        text = self.connection.execute(
            sa.select(t.overlay.c.changes).where(t.overlay.c.pk == member.overlay_pk)
        ).scalar_one()
        return Changes.from_json(text.encode())

    def received_node(self, member: Member) -> bytes:
        """The node chunk's text as imported: `"<sop>":{...}`."""
        blob, node = self.connection.execute(
            sa.select(t.blob.c.name, t.record.c.node)
            .join(t.record, t.record.c.blob_pk == t.blob.c.pk)
            .where(t.record.c.pk == member.record_pk)
        ).one()
        extent = unpack_extents(node)[0]
        return inflate(self._blobs.read(blob, extent.offset, extent.length), extent.plain, extent.crc)

    def current(self, member: Member) -> dict[str, Any]:
        """`DICOM` and `DICOMVRs` with the edits so far."""
        document: dict[str, Any] = orjson.loads(b"{" + self.received_node(member) + b"}")
        (instance,) = document.values()
        changes = self.changes(member)
        return {
            "DICOM": edits.apply(instance["DICOM"], changes),
            "DICOMVRs": {**instance["DICOMVRs"], **changes.vrs},
        }

    def number(self, member: Member, changes: Changes) -> int | None:
        if "InstanceNumber" in changes.removed:
            return None
        try:
            return int(changes.set["InstanceNumber"])
        except (KeyError, TypeError, ValueError):
            return member.number

    def overlay(self, member: Member, sop_uid: str, changes: Changes) -> int:
        """The key of the overlay row with these cumulative changes, and the node chunk that they make."""
        document: dict[str, Any] = orjson.loads(b"{" + self.received_node(member) + b"}")
        (instance,) = document.values()
        plain = b'"DICOM":%b,"DICOMVRs":%b' % (orjson.dumps(instance["DICOM"]), orjson.dumps(instance["DICOMVRs"]))
        rest = {key: value for key, value in instance.items() if key not in ("DICOM", "DICOMVRs")}
        text = b"%b:{%b,%b}" % (
            orjson.dumps(sop_uid),
            metadata.edited_node(plain, changes.of_level("Instance")),
            orjson.dumps(rest)[1:-1],
        )
        attrs: dict[str, Any] = orjson.loads(
            self.connection.execute(sa.select(t.record.c.attrs).where(t.record.c.pk == member.record_pk)).scalar_one()
        )
        edited = metadata.to_dicom_json(changes.set, changes.vrs)
        for tag in list(attrs):
            if tag in edited:
                attrs[tag] = edited[tag]
        for tag in metadata.to_dicom_json(dict.fromkeys(changes.removed)):
            attrs.pop(tag, None)
        chunk = deflate(text)
        row = {
            "digest": hashlib.sha256(changes.to_json() + b"\0" + text).digest(),
            "changes": changes.to_json().decode(),
            "attrs": orjson.dumps(attrs).decode(),
            "node": chunk.data,
            "plain": chunk.plain,
            "crc": chunk.crc,
        }
        o = t.overlay
        pk = insert_or_keep(self.connection.dialect.name, o).scalar(self.connection, row)
        if pk is None:
            pk = self.connection.execute(sa.select(o.c.pk).where(o.c.digest == row["digest"])).scalar_one()
        return int(pk)


@dataclass(frozen=True, slots=True)
class _Content:
    """One instance as the rules look at it."""

    instances: Instances
    member: Member

    @property
    def changes(self) -> Changes:
        return self.instances.changes(self.member)

    def attributes(self) -> Mapping[str, Any]:
        attributes: Mapping[str, Any] = self.instances.current(self.member)["DICOM"]
        return attributes

    def vrs(self) -> Mapping[str, str]:
        vrs: Mapping[str, str] = self.instances.current(self.member)["DICOMVRs"]
        return vrs
