"""Run by Alembic: migrations in the transaction of the connection that catalog_engine.py gives."""

from __future__ import annotations

from alembic import context

from perfsuite.store.catalog_schema import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    render_as_batch=True,  # SQLite changes a table by making it anew
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
