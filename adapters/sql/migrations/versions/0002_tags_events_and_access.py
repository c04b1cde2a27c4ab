"""Tags, events that wait for their webhook, and when an image set was last read."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
WORD = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "tag",
        sa.Column("resource", WORD, nullable=False),
        sa.Column("key", WORD, nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("resource", "key", name=op.f("pk_tag")),
    )
    op.create_table(
        "event",
        sa.Column("pk", KEY, autoincrement=True, nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("pk", name=op.f("pk_event")),
    )
    op.add_column("image_set", sa.Column("accessed_at", sa.BigInteger(), nullable=True))
