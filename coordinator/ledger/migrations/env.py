"""Run by Alembic for each upgrade or downgrade, with the open transaction of `coordinator.ledger.migrate`."""

from alembic import context

from coordinator.ledger.migrate import VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    version_table=VERSION_TABLE,
    # SQLite alters a table by building a new one.
    render_as_batch=True,
)
context.run_migrations()
