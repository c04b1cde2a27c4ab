"""Indexes for a purge: which deleted image sets are to be purged, and who else shows a document or an edit."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _index("ix_image_set_deleted", "image_set", "deleted_at", "deleted_at IS NOT NULL AND visible > 0")
    _index(op.f("ix_version_levels_doc"), "version", "levels_doc")
    _index(op.f("ix_version_overlay_doc"), "version", "overlay_doc", "overlay_doc IS NOT NULL")
    _index(op.f("ix_version_head_doc"), "version", "head_doc")
    _index(op.f("ix_member_overlay_pk"), "member", "overlay_pk", "overlay_pk IS NOT NULL")


def _index(name: str, table: str, column: str, where: str = "") -> None:
    only = sa.text(where) if where else None
    op.create_index(name, table, [column], sqlite_where=only, postgresql_where=only)
