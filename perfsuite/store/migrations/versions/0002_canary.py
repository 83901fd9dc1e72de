"""Runs keep the canary of their load host."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_COLUMNS = ("canary_cpu_bytes_per_s", "canary_memory_bytes_per_s")


def upgrade() -> None:
    for name in _COLUMNS:
        op.add_column("runs", sa.Column(name, sa.Float(), nullable=True))


def downgrade() -> None:
    for name in reversed(_COLUMNS):  # not in a batch: the table made anew would take the rows of the others along
        op.drop_column("runs", name)
