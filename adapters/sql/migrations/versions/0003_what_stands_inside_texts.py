"""Tails of the texts that searches look into, and an index on StudyDescription."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
WORD = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")

COLUMNS = {"00100020": "patient_id", "00080050": "accession", "00200010": "study_id", "00081030": "description"}
"""The attribute whose values a column of study and study_past holds; names are in study_name."""

# Values that were once a study's are searched with asOf. Sorted: the rows go into the table in its order.
FILL = """
WITH RECURSIVE place (at) AS (SELECT 1 UNION ALL SELECT at + 1 FROM place WHERE at < 64),
held (datastore_pk, kind, text, study_pk) AS (
    SELECT datastore_pk, kind, text, max(study_pk) FROM ({texts}) found GROUP BY datastore_pk, kind, text)
INSERT INTO text_tail (datastore_pk, kind, tail, text, study_pk)
SELECT datastore_pk, kind, tail, text, study_pk FROM (
    SELECT datastore_pk, kind, substr(text, at, 16) AS tail, text, study_pk FROM held
    JOIN place ON at <= length(text) WHERE length(text) <= 64
    UNION SELECT datastore_pk, kind, '', text, study_pk FROM held WHERE length(text) > 64) tails
ORDER BY datastore_pk, kind, tail, text
"""


def upgrade() -> None:
    op.create_table(
        "text_tail",
        sa.Column("datastore_pk", KEY, autoincrement=False, nullable=False),
        sa.Column("kind", WORD, nullable=False),
        sa.Column("tail", WORD, nullable=False),
        sa.Column("text", WORD, nullable=False),
        sa.Column("study_pk", KEY, autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("datastore_pk", "kind", "tail", "text", "study_pk", name=op.f("pk_text_tail")),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_study_description", "study", ["datastore_pk", "description"])
    for kind, column in COLUMNS.items():
        values = f"datastore_pk, '{kind}' AS kind, {column} AS text"
        now = f"SELECT {values}, pk AS study_pk FROM study WHERE {column} <> ''"
        past = f"SELECT {values}, 0 AS study_pk FROM study_past WHERE {column} <> ''"
        _fill(f"{now} UNION ALL {past}")
    _fill("SELECT datastore_pk, kind, norm AS text, study_pk FROM study_name WHERE length(kind) = 8 AND norm <> ''")


def _fill(texts: str) -> None:
    op.execute(FILL.format(texts=texts))
