"""The first schema: runs, what they depend on, their trials and metrics, comparisons, and what people wrote."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_TABLES = (
    "environments",
    "runs",
    "annotations",
    "arms",
    "comparisons",
    "differences",
    "levels",
    "metrics",
    "ratios",
    "servers",
    "trials",
)


def upgrade() -> None:
    _environments()
    _runs()
    _annotations()
    _arms()
    _comparisons()
    _differences()
    _levels()
    _metrics()
    _ratios()
    _servers()
    _trials()


def downgrade() -> None:
    for table in reversed(_TABLES):
        op.drop_table(table)


def _environments() -> None:
    op.create_table(
        "environments",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("engine_version", sa.Text(), nullable=True),
        sa.Column("checkpoint", sa.Text(), nullable=True),
        sa.Column("engine_flags", sa.Text(), nullable=True),
        sa.Column("driver", sa.Text(), nullable=True),
        sa.Column("gpu", sa.Text(), nullable=True),
        sa.Column("node", sa.Text(), nullable=True),
        sa.Column("kernel", sa.Text(), nullable=True),
        sa.Column("client_version", sa.Text(), nullable=True),
        sa.Column("client_host", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_environments")),
        sa.UniqueConstraint("digest", name=op.f("uq_environments_digest")),
    )


def _runs() -> None:
    op.create_table(
        "runs",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("scenario", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("mode", sa.Text(), nullable=False),
        sa.Column("definition", sa.Text(), nullable=False),
        sa.Column("metrics_version", sa.Integer(), nullable=False),
        sa.Column("emulated", sa.Boolean(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=True),
        sa.Column("created_utc_ns", sa.BigInteger(), nullable=False),
        sa.Column("ended_utc_ns", sa.BigInteger(), nullable=True),
        sa.Column("perfsuite", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("num_trials", sa.Integer(), nullable=False),
        sa.Column("num_played", sa.Integer(), nullable=True),
        sa.Column("num_requests", sa.BigInteger(), nullable=True),
        sa.Column("bundle", sa.Text(), nullable=False),
        sa.Column("bundle_host", sa.Text(), nullable=False),
        sa.Column("manifest_sha256", sa.Text(), nullable=False),
        sa.Column("catalogued_utc_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
        sa.UniqueConstraint("run_id", name=op.f("uq_runs_run_id")),
    )
    op.create_index(op.f("ix_runs_created_utc_ns"), "runs", ["created_utc_ns"], unique=False)
    op.create_index(op.f("ix_runs_scenario_created_utc_ns"), "runs", ["scenario", "created_utc_ns"], unique=False)


def _annotations() -> None:
    op.create_table(
        "annotations",
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("utc_ns", sa.BigInteger(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("is_accepted", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name=op.f("fk_annotations_run"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run", "number", name=op.f("pk_annotations")),
    )


def _arms() -> None:
    op.create_table(
        "arms",
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("arm", sa.Text(), nullable=False),
        sa.Column("engine", sa.Text(), nullable=False),
        sa.Column("checkpoint", sa.Text(), nullable=True),
        sa.Column("precision", sa.Text(), nullable=False),
        sa.Column("gpus", sa.Integer(), nullable=False),
        sa.Column("environment", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["environment"], ["environments.id"], name=op.f("fk_arms_environment")),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name=op.f("fk_arms_run"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run", "arm", name=op.f("pk_arms")),
    )
    op.create_index(op.f("ix_arms_environment"), "arms", ["environment"], unique=False)


def _comparisons() -> None:
    op.create_table(
        "comparisons",
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("comparison", sa.Integer(), nullable=False),
        sa.Column("baseline", sa.Text(), nullable=False),
        sa.Column("candidate", sa.Text(), nullable=False),
        sa.Column("emulated", sa.Boolean(), nullable=False),
        sa.Column("comparable", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name=op.f("fk_comparisons_run"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run", "comparison", name=op.f("pk_comparisons")),
    )


def _differences() -> None:
    op.create_table(
        "differences",
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("comparison", sa.Integer(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("baseline", sa.Text(), nullable=False),
        sa.Column("candidate", sa.Text(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name=op.f("fk_differences_run"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run", "comparison", "key", name=op.f("pk_differences")),
    )


def _levels() -> None:
    op.create_table(
        "levels",
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("arm", sa.Text(), nullable=False),
        sa.Column("load_point", sa.Text(), nullable=False),
        sa.Column("metric", sa.Text(), nullable=False),
        sa.Column("median", sa.Float(), nullable=False),
        sa.Column("num_trials", sa.Integer(), nullable=False),
        sa.Column("environment", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["environment"], ["environments.id"], name=op.f("fk_levels_environment")),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name=op.f("fk_levels_run"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run", "arm", "load_point", "metric", name=op.f("pk_levels")),
    )
    op.create_index(
        "ix_levels_history",
        "levels",
        ["metric", "arm", "load_point", "run", "median", "num_trials", "environment"],
        unique=False,
    )


def _metrics() -> None:
    op.create_table(
        "metrics",
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("trial", sa.Integer(), nullable=False),
        sa.Column("metric", sa.Text(), nullable=False),
        sa.Column("value", sa.Float(), nullable=True),
        sa.Column("note", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name=op.f("fk_metrics_run"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run", "trial", "metric", name=op.f("pk_metrics")),
    )


def _ratios() -> None:
    op.create_table(
        "ratios",
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("comparison", sa.Integer(), nullable=False),
        sa.Column("load_point", sa.Text(), nullable=False),
        sa.Column("metric", sa.Text(), nullable=False),
        sa.Column("baseline", sa.Text(), nullable=False),
        sa.Column("candidate", sa.Text(), nullable=False),
        sa.Column("is_primary", sa.Boolean(), nullable=False),
        sa.Column("num_pairs", sa.Integer(), nullable=False),
        sa.Column("label", sa.Text(), nullable=True),
        sa.Column("ratio", sa.Float(), nullable=True),
        sa.Column("ratio_low", sa.Float(), nullable=True),
        sa.Column("ratio_high", sa.Float(), nullable=True),
        sa.Column("verdict", sa.Text(), nullable=True),
        sa.Column("is_below_margin", sa.Boolean(), nullable=True),
        sa.Column("detectable_ratio", sa.Float(), nullable=True),
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column("environment", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["environment"], ["environments.id"], name=op.f("fk_ratios_environment")),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name=op.f("fk_ratios_run"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run", "comparison", "load_point", "metric", name=op.f("pk_ratios")),
    )
    op.create_index(
        "ix_ratios_history",
        "ratios",
        [
            "metric",
            "candidate",
            "baseline",
            "load_point",
            "run",
            "ratio",
            "ratio_low",
            "ratio_high",
            "num_pairs",
            "environment",
        ],
        unique=False,
    )


def _servers() -> None:
    op.create_table(
        "servers",
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("block", sa.Integer(), nullable=False),
        sa.Column("arm", sa.Text(), nullable=True),
        sa.Column("engine", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=True),
        sa.Column("emulated", sa.Boolean(), nullable=False),
        sa.Column("served_model", sa.Text(), nullable=True),
        sa.Column("gpu_name", sa.Text(), nullable=True),
        sa.Column("driver", sa.Text(), nullable=True),
        sa.Column("quantization", sa.Text(), nullable=True),
        sa.Column("kv_cache_dtype", sa.Text(), nullable=True),
        sa.Column("kv_capacity_tokens", sa.BigInteger(), nullable=True),
        sa.Column("weights_bytes", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name=op.f("fk_servers_run"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run", "block", name=op.f("pk_servers")),
    )


def _trials() -> None:
    op.create_table(
        "trials",
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("trial", sa.Integer(), nullable=False),
        sa.Column("block", sa.Integer(), nullable=False),
        sa.Column("arm", sa.Text(), nullable=False),
        sa.Column("comparison", sa.Integer(), nullable=True),
        sa.Column("pair", sa.Integer(), nullable=False),
        sa.Column("load_point", sa.Text(), nullable=False),
        sa.Column("emulated", sa.Boolean(), nullable=False),
        sa.Column("validity", sa.Text(), nullable=False),
        sa.Column("reasons", sa.Text(), nullable=False),
        sa.Column("num_ok", sa.Integer(), nullable=False),
        sa.Column("window_utc_ns", sa.BigInteger(), nullable=True),
        sa.Column("window_s", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name=op.f("fk_trials_run"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run", "trial", name=op.f("pk_trials")),
    )
