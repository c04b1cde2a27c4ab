"""How alembic runs our migrations: on the connection that `adapters.sql.schema` hands over, in its transaction."""

from alembic import context

from adapters.sql.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    compare_type=False,
)
context.run_migrations()
