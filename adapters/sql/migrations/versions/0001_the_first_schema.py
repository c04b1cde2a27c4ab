"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
WORD = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "blob",
        sa.Column("pk", KEY, autoincrement=True, nullable=False),
        sa.Column("name", WORD, nullable=False),
        sa.Column("kind", WORD, nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("pk", name=op.f("pk_blob")),
        sa.UniqueConstraint("name", name=op.f("uq_blob_name")),
    )
    op.create_table(
        "client_token",
        sa.Column("operation", WORD, nullable=False),
        sa.Column("token", WORD, nullable=False),
        sa.Column("request_digest", sa.LargeBinary(), nullable=False),
        sa.Column("answer", WORD, nullable=False),
        sa.PrimaryKeyConstraint("operation", "token", name=op.f("pk_client_token")),
    )
    op.create_table(
        "datastore",
        sa.Column("pk", KEY, autoincrement=True, nullable=False),
        sa.Column("id", WORD, nullable=False),
        sa.Column("name", WORD, nullable=False),
        sa.Column("status", WORD, nullable=False),
        sa.Column("storage_format", WORD, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("pk", name=op.f("pk_datastore")),
        sa.UniqueConstraint("id", name=op.f("uq_datastore_id")),
    )
    op.create_table(
        "doc",
        sa.Column("pk", KEY, autoincrement=True, nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("plain", sa.Integer(), nullable=False),
        sa.Column("crc", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("pk", name=op.f("pk_doc")),
        sa.UniqueConstraint("digest", name=op.f("uq_doc_digest")),
    )
    op.create_table(
        "overlay",
        sa.Column("pk", KEY, autoincrement=True, nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("changes", sa.Text(), nullable=False),
        sa.Column("attrs", sa.Text(), nullable=True),
        sa.Column("node", sa.LargeBinary(), nullable=False),
        sa.Column("plain", sa.Integer(), nullable=False),
        sa.Column("crc", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("pk", name=op.f("pk_overlay")),
        sa.UniqueConstraint("digest", name=op.f("uq_overlay_digest")),
    )
    op.create_table(
        "set_index_past",
        sa.Column("pk", KEY, autoincrement=True, nullable=False),
        sa.Column("image_set_pk", KEY, nullable=False),
        sa.Column("datastore_pk", KEY, nullable=False),
        sa.Column("is_primary", sa.Boolean(), nullable=False),
        sa.Column("study_uid", WORD, nullable=False),
        sa.Column("series_uid", WORD, nullable=False),
        sa.Column("patient_id", WORD, server_default="", nullable=False),
        sa.Column("accession", WORD, server_default="", nullable=False),
        sa.Column("study_id", WORD, server_default="", nullable=False),
        sa.Column("study_date", WORD, server_default="", nullable=False),
        sa.Column("study_time", WORD, server_default="", nullable=False),
        sa.Column("modality", WORD, server_default="", nullable=False),
        sa.Column("series_number", WORD, server_default="", nullable=False),
        sa.Column("series_description", WORD, server_default="", nullable=False),
        sa.Column("body_part", WORD, server_default="", nullable=False),
        sa.Column("attrs", sa.Text(), nullable=False),
        sa.Column("seq_from", sa.BigInteger(), nullable=False),
        sa.Column("seq_to", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("pk", name=op.f("pk_set_index_past")),
    )
    with op.batch_alter_table("set_index_past", schema=None) as batch_op:
        batch_op.create_index("ix_set_index_past_set", ["image_set_pk", "seq_from"], unique=False)
        batch_op.create_index("ix_set_index_past_study", ["datastore_pk", "study_uid"], unique=False)

    op.create_table(
        "study",
        sa.Column("pk", KEY, autoincrement=True, nullable=False),
        sa.Column("datastore_pk", KEY, nullable=False),
        sa.Column("study_uid", WORD, nullable=False),
        sa.Column("patient_id", WORD, server_default="", nullable=False),
        sa.Column("accession", WORD, server_default="", nullable=False),
        sa.Column("study_id", WORD, server_default="", nullable=False),
        sa.Column("study_date", WORD, server_default="", nullable=False),
        sa.Column("study_time", WORD, server_default="", nullable=False),
        sa.Column("birth_date", WORD, server_default="", nullable=False),
        sa.Column("sex", WORD, server_default="", nullable=False),
        sa.Column("description", WORD, server_default="", nullable=False),
        sa.Column("attrs", sa.Text(), nullable=False),
        sa.Column("seq_from", sa.BigInteger(), nullable=False),
        sa.Column("modalities", WORD, server_default="", nullable=False),
        sa.Column("n_series", sa.Integer(), nullable=False),
        sa.Column("n_instances", sa.Integer(), nullable=False),
        sa.Column("changed", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("pk", name=op.f("pk_study")),
    )
    with op.batch_alter_table("study", schema=None) as batch_op:
        batch_op.create_index("ix_study_accession", ["datastore_pk", "accession"], unique=False)
        batch_op.create_index("ix_study_changed", ["datastore_pk", "changed", "pk"], unique=False)
        batch_op.create_index("ix_study_date", ["datastore_pk", "study_date", "study_time"], unique=False)
        batch_op.create_index("ix_study_id", ["datastore_pk", "study_id"], unique=False)
        batch_op.create_index("ix_study_patient", ["datastore_pk", "patient_id"], unique=False)
        batch_op.create_index("uq_study_uid", ["datastore_pk", "study_uid"], unique=True)

    op.create_table(
        "study_past",
        sa.Column("pk", KEY, autoincrement=True, nullable=False),
        sa.Column("datastore_pk", KEY, nullable=False),
        sa.Column("study_uid", WORD, nullable=False),
        sa.Column("patient_id", WORD, server_default="", nullable=False),
        sa.Column("accession", WORD, server_default="", nullable=False),
        sa.Column("study_id", WORD, server_default="", nullable=False),
        sa.Column("study_date", WORD, server_default="", nullable=False),
        sa.Column("study_time", WORD, server_default="", nullable=False),
        sa.Column("birth_date", WORD, server_default="", nullable=False),
        sa.Column("sex", WORD, server_default="", nullable=False),
        sa.Column("description", WORD, server_default="", nullable=False),
        sa.Column("attrs", sa.Text(), nullable=False),
        sa.Column("seq_from", sa.BigInteger(), nullable=False),
        sa.Column("seq_to", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("pk", name=op.f("pk_study_past")),
    )
    with op.batch_alter_table("study_past", schema=None) as batch_op:
        batch_op.create_index("ix_study_past_date", ["datastore_pk", "study_date"], unique=False)
        batch_op.create_index("ix_study_past_patient", ["datastore_pk", "patient_id"], unique=False)
        batch_op.create_index("ix_study_past_uid", ["datastore_pk", "study_uid", "seq_from"], unique=False)

    op.create_table(
        "trash",
        sa.Column("name", WORD, nullable=False),
        sa.Column("delete_after", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_trash")),
    )
    op.create_table(
        "work",
        sa.Column("pk", KEY, autoincrement=True, nullable=False),
        sa.Column("kind", WORD, nullable=False),
        sa.Column("lock_key", WORD, nullable=True),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("priority", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("state", WORD, nullable=False),
        sa.Column("run_after", sa.BigInteger(), nullable=False),
        sa.Column("owner", WORD, nullable=True),
        sa.Column("lease_until", sa.BigInteger(), nullable=True),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("pk", name=op.f("pk_work")),
    )
    with op.batch_alter_table("work", schema=None) as batch_op:
        batch_op.create_index("ix_work_next", ["state", "priority", "pk"], unique=False)
        batch_op.create_index(
            "uq_work_lock",
            ["lock_key"],
            unique=True,
            sqlite_where=sa.text("state = 'running' AND lock_key IS NOT NULL"),
            postgresql_where=sa.text("state = 'running' AND lock_key IS NOT NULL"),
        )

    op.create_table(
        "datastore_seq",
        sa.Column("datastore_pk", KEY, autoincrement=False, nullable=False),
        sa.Column("seq", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("last_at", sa.BigInteger(), server_default="0", nullable=False),
        sa.ForeignKeyConstraint(["datastore_pk"], ["datastore.pk"], name=op.f("fk_datastore_seq_datastore_pk")),
        sa.PrimaryKeyConstraint("datastore_pk", name=op.f("pk_datastore_seq")),
    )
    op.create_table(
        "image_set",
        sa.Column("pk", KEY, autoincrement=True, nullable=False),
        sa.Column("id", WORD, nullable=False),
        sa.Column("datastore_pk", KEY, nullable=False),
        sa.Column("is_primary", sa.Boolean(), nullable=False),
        sa.Column("study_uid", WORD, nullable=False),
        sa.Column("series_uid", WORD, nullable=False),
        sa.Column("state", WORD, nullable=False),
        sa.Column("workflow", WORD, nullable=False),
        sa.Column("latest", sa.Integer(), nullable=False),
        sa.Column("visible", sa.Integer(), nullable=False),
        sa.Column("n_instances", sa.Integer(), nullable=False),
        sa.Column("n_frames", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("deleted_at", sa.BigInteger(), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["datastore_pk"], ["datastore.pk"], name=op.f("fk_image_set_datastore_pk"), ondelete="RESTRICT"
        ),
        sa.PrimaryKeyConstraint("pk", name=op.f("pk_image_set")),
        sa.UniqueConstraint("id", name=op.f("uq_image_set_id")),
    )
    with op.batch_alter_table("image_set", schema=None) as batch_op:
        batch_op.create_index("ix_image_set_study", ["datastore_pk", "study_uid"], unique=False)
        batch_op.create_index(
            "uq_image_set_primary",
            ["datastore_pk", "series_uid"],
            unique=True,
            sqlite_where=sa.text("is_primary AND state <> 'DELETED'"),
            postgresql_where=sa.text("is_primary AND state <> 'DELETED'"),
        )

    op.create_table(
        "job",
        sa.Column("pk", KEY, autoincrement=True, nullable=False),
        sa.Column("id", WORD, nullable=False),
        sa.Column("datastore_pk", KEY, nullable=False),
        sa.Column("name", WORD, nullable=False),
        sa.Column("source", WORD, nullable=False),
        sa.Column("status", WORD, nullable=False),
        sa.Column("submitted_at", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("role_arn", sa.Text(), nullable=True),
        sa.Column("input_uri", sa.Text(), nullable=True),
        sa.Column("output_uri", sa.Text(), nullable=True),
        sa.Column("called_ae", WORD, nullable=True),
        sa.Column("calling_ae", WORD, nullable=True),
        sa.Column("principal", WORD, nullable=True),
        sa.Column("staged", sa.LargeBinary(), nullable=True),
        sa.Column("n_imported", sa.Integer(), server_default="0", nullable=False),
        sa.Column("n_identical", sa.Integer(), server_default="0", nullable=False),
        sa.Column("n_failed", sa.Integer(), server_default="0", nullable=False),
        sa.Column("n_warned", sa.Integer(), server_default="0", nullable=False),
        sa.Column("outcomes", sa.LargeBinary(), nullable=True),
        sa.Column("keeps_spool", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.ForeignKeyConstraint(
            ["datastore_pk"], ["datastore.pk"], name=op.f("fk_job_datastore_pk"), ondelete="RESTRICT"
        ),
        sa.PrimaryKeyConstraint("pk", name=op.f("pk_job")),
        sa.UniqueConstraint("id", name=op.f("uq_job_id")),
    )
    with op.batch_alter_table("job", schema=None) as batch_op:
        batch_op.create_index(
            "ix_job_kept",
            ["pk"],
            unique=False,
            sqlite_where=sa.text("keeps_spool"),
            postgresql_where=sa.text("keeps_spool"),
        )
        batch_op.create_index("ix_job_listing", ["datastore_pk", "submitted_at", "pk"], unique=False)

    op.create_table(
        "pixel",
        sa.Column("pk", KEY, autoincrement=True, nullable=False),
        sa.Column("datastore_pk", KEY, nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("blob_pk", KEY, nullable=False),
        sa.Column("off", sa.BigInteger(), nullable=False),
        sa.Column("len", sa.BigInteger(), nullable=False),
        sa.Column("state", WORD, nullable=False),
        sa.Column("syntax", WORD, nullable=False),
        sa.Column("stored_syntax", WORD, nullable=False),
        sa.Column("format", sa.Text(), nullable=True),
        sa.Column("n_frames", sa.Integer(), nullable=False),
        sa.Column("frames", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["blob_pk"], ["blob.pk"], name=op.f("fk_pixel_blob_pk"), ondelete="RESTRICT"),
        sa.ForeignKeyConstraint(
            ["datastore_pk"], ["datastore.pk"], name=op.f("fk_pixel_datastore_pk"), ondelete="RESTRICT"
        ),
        sa.PrimaryKeyConstraint("pk", name=op.f("pk_pixel")),
        sa.UniqueConstraint("datastore_pk", "digest", name=op.f("uq_pixel_datastore_pk_digest")),
    )
    with op.batch_alter_table("pixel", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_pixel_blob_pk"), ["blob_pk"], unique=False)
        batch_op.create_index(
            "ix_pixel_raw",
            ["pk"],
            unique=False,
            sqlite_where=sa.text("state = 'raw'"),
            postgresql_where=sa.text("state = 'raw'"),
        )

    op.create_table(
        "study_modality",
        sa.Column("datastore_pk", KEY, autoincrement=False, nullable=False),
        sa.Column("modality", WORD, nullable=False),
        sa.Column("changed", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("study_pk", KEY, autoincrement=False, nullable=False),
        sa.ForeignKeyConstraint(
            ["study_pk"], ["study.pk"], name=op.f("fk_study_modality_study_pk"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("datastore_pk", "modality", "changed", "study_pk", name=op.f("pk_study_modality")),
    )
    with op.batch_alter_table("study_modality", schema=None) as batch_op:
        batch_op.create_index("ix_study_modality_study", ["study_pk"], unique=False)

    op.create_table(
        "study_name",
        sa.Column("pk", KEY, autoincrement=True, nullable=False),
        sa.Column("datastore_pk", KEY, nullable=False),
        sa.Column("kind", WORD, nullable=False),
        sa.Column("norm", WORD, nullable=False),
        sa.Column("study_pk", KEY, nullable=False),
        sa.ForeignKeyConstraint(["study_pk"], ["study.pk"], name=op.f("fk_study_name_study_pk"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("pk", name=op.f("pk_study_name")),
    )
    with op.batch_alter_table("study_name", schema=None) as batch_op:
        batch_op.create_index("ix_study_name_norm", ["datastore_pk", "kind", "norm", "study_pk"], unique=False)
        batch_op.create_index(batch_op.f("ix_study_name_study_pk"), ["study_pk"], unique=False)

    op.create_table(
        "change",
        sa.Column("datastore_pk", KEY, autoincrement=False, nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("kind", WORD, nullable=False),
        sa.Column("image_set_pk", KEY, nullable=True),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("job_pk", KEY, nullable=True),
        sa.Column("principal", WORD, nullable=True),
        sa.Column("body", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["datastore_pk"], ["datastore.pk"], name=op.f("fk_change_datastore_pk")),
        sa.ForeignKeyConstraint(
            ["image_set_pk"], ["image_set.pk"], name=op.f("fk_change_image_set_pk"), ondelete="RESTRICT"
        ),
        sa.ForeignKeyConstraint(["job_pk"], ["job.pk"], name=op.f("fk_change_job_pk"), ondelete="RESTRICT"),
        sa.PrimaryKeyConstraint("datastore_pk", "seq", name=op.f("pk_change")),
    )
    with op.batch_alter_table("change", schema=None) as batch_op:
        batch_op.create_index("ix_change_at", ["datastore_pk", "at"], unique=False)

    op.create_table(
        "conflict",
        sa.Column("pk", KEY, autoincrement=True, nullable=False),
        sa.Column("datastore_pk", KEY, nullable=False),
        sa.Column("image_set_pk", KEY, nullable=False),
        sa.Column("attribute", WORD, nullable=False),
        sa.Column("source", WORD, nullable=False),
        sa.Column("instances", sa.Integer(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["datastore_pk"], ["datastore.pk"], name=op.f("fk_conflict_datastore_pk"), ondelete="RESTRICT"
        ),
        sa.ForeignKeyConstraint(
            ["image_set_pk"], ["image_set.pk"], name=op.f("fk_conflict_image_set_pk"), ondelete="RESTRICT"
        ),
        sa.PrimaryKeyConstraint("pk", name=op.f("pk_conflict")),
    )
    with op.batch_alter_table("conflict", schema=None) as batch_op:
        batch_op.create_index("ix_conflict_listing", ["datastore_pk", "pk"], unique=False)

    op.create_table(
        "job_segment",
        sa.Column("segment", WORD, nullable=False),
        sa.Column("job_pk", KEY, autoincrement=False, nullable=False),
        sa.ForeignKeyConstraint(["job_pk"], ["job.pk"], name=op.f("fk_job_segment_job_pk")),
        sa.PrimaryKeyConstraint("segment", "job_pk", name=op.f("pk_job_segment")),
    )
    with op.batch_alter_table("job_segment", schema=None) as batch_op:
        batch_op.create_index("ix_job_segment_job", ["job_pk"], unique=False)

    op.create_table(
        "record",
        sa.Column("pk", KEY, autoincrement=True, nullable=False),
        sa.Column("id", WORD, nullable=False),
        sa.Column("datastore_pk", KEY, nullable=False),
        sa.Column("identity", sa.LargeBinary(), nullable=False),
        sa.Column("sop_uid", WORD, nullable=False),
        sa.Column("sop_class", WORD, nullable=False),
        sa.Column("syntax", WORD, nullable=False),
        sa.Column("number", sa.Integer(), nullable=True),
        sa.Column("warning", sa.Integer(), nullable=True),
        sa.Column("attrs", sa.Text(), nullable=False),
        sa.Column("pixel_pk", KEY, nullable=True),
        sa.Column("blob_pk", KEY, nullable=False),
        sa.Column("head", sa.LargeBinary(), nullable=False),
        sa.Column("json", sa.LargeBinary(), nullable=False),
        sa.Column("node", sa.LargeBinary(), nullable=False),
        sa.Column("fmt", sa.SmallInteger(), server_default="1", nullable=False),
        sa.Column("received_at", sa.BigInteger(), nullable=False),
        sa.Column("called_ae", WORD, nullable=True),
        sa.Column("calling_ae", WORD, nullable=True),
        sa.Column("principal", WORD, nullable=True),
        sa.Column("job_pk", KEY, nullable=False),
        sa.Column("spool", WORD, nullable=True),
        sa.Column("spool_off", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["blob_pk"], ["blob.pk"], name=op.f("fk_record_blob_pk"), ondelete="RESTRICT"),
        sa.ForeignKeyConstraint(
            ["datastore_pk"], ["datastore.pk"], name=op.f("fk_record_datastore_pk"), ondelete="RESTRICT"
        ),
        sa.ForeignKeyConstraint(["job_pk"], ["job.pk"], name=op.f("fk_record_job_pk"), ondelete="RESTRICT"),
        sa.ForeignKeyConstraint(["pixel_pk"], ["pixel.pk"], name=op.f("fk_record_pixel_pk"), ondelete="RESTRICT"),
        sa.PrimaryKeyConstraint("pk", name=op.f("pk_record")),
        sa.UniqueConstraint("id", name=op.f("uq_record_id")),
    )
    with op.batch_alter_table("record", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_record_blob_pk"), ["blob_pk"], unique=False)
        batch_op.create_index(batch_op.f("ix_record_pixel_pk"), ["pixel_pk"], unique=False)
        batch_op.create_index("uq_record_spool", ["spool", "spool_off"], unique=True)

    op.create_table(
        "set_index",
        sa.Column("image_set_pk", KEY, autoincrement=False, nullable=False),
        sa.Column("datastore_pk", KEY, nullable=False),
        sa.Column("is_primary", sa.Boolean(), nullable=False),
        sa.Column("study_uid", WORD, nullable=False),
        sa.Column("series_uid", WORD, nullable=False),
        sa.Column("patient_id", WORD, server_default="", nullable=False),
        sa.Column("accession", WORD, server_default="", nullable=False),
        sa.Column("study_id", WORD, server_default="", nullable=False),
        sa.Column("study_date", WORD, server_default="", nullable=False),
        sa.Column("study_time", WORD, server_default="", nullable=False),
        sa.Column("modality", WORD, server_default="", nullable=False),
        sa.Column("series_number", WORD, server_default="", nullable=False),
        sa.Column("series_description", WORD, server_default="", nullable=False),
        sa.Column("body_part", WORD, server_default="", nullable=False),
        sa.Column("attrs", sa.Text(), nullable=False),
        sa.Column("seq_from", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=True),
        sa.Column("n_instances", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["image_set_pk"], ["image_set.pk"], name=op.f("fk_set_index_image_set_pk")),
        sa.PrimaryKeyConstraint("image_set_pk", name=op.f("pk_set_index")),
    )
    with op.batch_alter_table("set_index", schema=None) as batch_op:
        batch_op.create_index("ix_set_index_accession", ["datastore_pk", "accession"], unique=False)
        batch_op.create_index(
            "ix_set_index_conflicts",
            ["datastore_pk", "updated_at"],
            unique=False,
            sqlite_where=sa.text("NOT is_primary"),
            postgresql_where=sa.text("NOT is_primary"),
        )
        batch_op.create_index("ix_set_index_created", ["datastore_pk", "created_at", "image_set_pk"], unique=False)
        batch_op.create_index("ix_set_index_date", ["datastore_pk", "study_date", "study_time"], unique=False)
        batch_op.create_index("ix_set_index_modality", ["datastore_pk", "modality", "series_uid"], unique=False)
        batch_op.create_index("ix_set_index_patient", ["datastore_pk", "patient_id"], unique=False)
        batch_op.create_index("ix_set_index_series", ["datastore_pk", "series_uid"], unique=False)
        batch_op.create_index("ix_set_index_study", ["datastore_pk", "study_uid"], unique=False)
        batch_op.create_index("ix_set_index_study_id", ["datastore_pk", "study_id"], unique=False)
        batch_op.create_index("ix_set_index_updated", ["datastore_pk", "updated_at", "image_set_pk"], unique=False)

    op.create_table(
        "set_lock",
        sa.Column("image_set_pk", KEY, autoincrement=False, nullable=False),
        sa.Column("work_pk", KEY, nullable=False),
        sa.ForeignKeyConstraint(["image_set_pk"], ["image_set.pk"], name=op.f("fk_set_lock_image_set_pk")),
        sa.PrimaryKeyConstraint("image_set_pk", name=op.f("pk_set_lock")),
    )
    op.create_table(
        "version",
        sa.Column("image_set_pk", KEY, autoincrement=False, nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("content", sa.Integer(), nullable=True),
        sa.Column("state", WORD, nullable=False),
        sa.Column("workflow", WORD, nullable=False),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("forced", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("study_uid", WORD, nullable=False),
        sa.Column("series_uid", WORD, nullable=False),
        sa.Column("levels_doc", KEY, nullable=True),
        sa.Column("overlay_doc", KEY, nullable=True),
        sa.Column("head_doc", KEY, nullable=True),
        sa.Column("n_instances", sa.Integer(), nullable=False),
        sa.Column("n_frames", sa.BigInteger(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=True),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("called_ae", WORD, nullable=True),
        sa.Column("calling_ae", WORD, nullable=True),
        sa.Column("principal", WORD, nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("job_pk", KEY, nullable=True),
        sa.ForeignKeyConstraint(["head_doc"], ["doc.pk"], name=op.f("fk_version_head_doc"), ondelete="RESTRICT"),
        sa.ForeignKeyConstraint(["image_set_pk"], ["image_set.pk"], name=op.f("fk_version_image_set_pk")),
        sa.ForeignKeyConstraint(["job_pk"], ["job.pk"], name=op.f("fk_version_job_pk"), ondelete="RESTRICT"),
        sa.ForeignKeyConstraint(["levels_doc"], ["doc.pk"], name=op.f("fk_version_levels_doc"), ondelete="RESTRICT"),
        sa.ForeignKeyConstraint(["overlay_doc"], ["doc.pk"], name=op.f("fk_version_overlay_doc"), ondelete="RESTRICT"),
        sa.PrimaryKeyConstraint("image_set_pk", "version", name=op.f("pk_version")),
    )
    op.create_table(
        "member",
        sa.Column("pk", KEY, autoincrement=True, nullable=False),
        sa.Column("image_set_pk", KEY, nullable=False),
        sa.Column("sop_uid", WORD, nullable=False),
        sa.Column("v_from", sa.Integer(), nullable=False),
        sa.Column("v_to", sa.Integer(), nullable=False),
        sa.Column("record_pk", KEY, nullable=False),
        sa.Column("overlay_pk", KEY, nullable=True),
        sa.Column("number", sa.Integer(), nullable=True),
        sa.Column("sop_class", WORD, nullable=False),
        sa.ForeignKeyConstraint(
            ["image_set_pk"], ["image_set.pk"], name=op.f("fk_member_image_set_pk"), ondelete="RESTRICT"
        ),
        sa.ForeignKeyConstraint(["overlay_pk"], ["overlay.pk"], name=op.f("fk_member_overlay_pk"), ondelete="RESTRICT"),
        sa.ForeignKeyConstraint(["record_pk"], ["record.pk"], name=op.f("fk_member_record_pk"), ondelete="RESTRICT"),
        sa.PrimaryKeyConstraint("pk", name=op.f("pk_member")),
    )
    with op.batch_alter_table("member", schema=None) as batch_op:
        batch_op.create_index("ix_member_manifest", ["image_set_pk", "v_from"], unique=False)
        batch_op.create_index(batch_op.f("ix_member_record_pk"), ["record_pk"], unique=False)
        batch_op.create_index(
            "ix_member_sop",
            ["sop_uid"],
            unique=False,
            sqlite_where=sa.text("v_to = 2147483647"),
            postgresql_where=sa.text("v_to = 2147483647"),
        )
        batch_op.create_index(
            "uq_member_live",
            ["image_set_pk", "sop_uid"],
            unique=True,
            sqlite_where=sa.text("v_to = 2147483647"),
            postgresql_where=sa.text("v_to = 2147483647"),
        )
