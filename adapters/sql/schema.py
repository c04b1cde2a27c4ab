"""The schema's versions: alembic migrations, run by whoever starts first."""

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from adapters.sql.database import Database
from gateway.domain.errors import Conflict, NotFound


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def migrate(database: Database) -> None:
    """Brings the schema to this release. Raises Conflict when a newer release has made it."""
    config = _config()
    scripts = ScriptDirectory.from_config(config)
    with database.write() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
        if current == scripts.get_current_head():
            return
        if current is not None and current not in {script.revision for script in scripts.walk_revisions()}:
            raise Conflict("The database was made by a newer release of imageset-gateway; start that one.")
        if not database.is_sqlite:  # one process migrates, the others wait and find it done
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(4711)"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def require_current(database: Database) -> None:
    """Raises NotFound for a database without a schema, Conflict for one of another release."""
    found = revision(database)
    if found is None:
        raise NotFound("there is no store here yet: the first start of `imageset-gateway serve` makes one")
    if found != ScriptDirectory.from_config(_config()).get_current_head():
        raise Conflict(f"the schema is at revision {found}: `imageset-gateway db migrate` brings it to this release")


def revision(database: Database) -> str | None:
    """The revision that the database is at; None for an empty one."""
    with database.read() as connection:
        return MigrationContext.configure(connection).get_current_revision()
