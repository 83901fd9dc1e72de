"""The tables of the catalog, the same on SQLite and PostgreSQL: an index over bundles that can always be made again.

Times: int64 nanoseconds, UTC. No arrays: a value has a row. `runs.id` and `environments.id` are numbers of one catalog;
a run's own name is `run_id`. Names and types follow the migrations in `migrations/versions`; a test compares them.

Schema history:
  0001  first schema.
  0002  runs: the canary of the load host.
  0003  annotations: is_explained.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    false,
)

METADATA = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _of_run() -> Column[int]:
    return Column("run", Integer, ForeignKey("runs.id", ondelete="CASCADE"), nullable=False)


# One row a bundle. definition: analysis.definition, what may be compared with what. canary_*: rates of the load host,
# telemetry/canary.py. manifest_sha256, metrics_version: reindex leaves a row alone when both are those of the bundle
# and of the code.
RUNS = Table(
    "runs",
    METADATA,
    Column("id", Integer, nullable=False),
    Column("run_id", Text, nullable=False),
    Column("scenario", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("mode", Text, nullable=False),
    Column("definition", Text, nullable=False),
    Column("metrics_version", Integer, nullable=False),
    Column("emulated", Boolean, nullable=False),
    Column("status", Text, nullable=False),
    Column("seed", BigInteger),
    Column("created_utc_ns", BigInteger, nullable=False),
    Column("ended_utc_ns", BigInteger),
    Column("perfsuite", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("num_trials", Integer, nullable=False),
    Column("num_played", Integer),
    Column("num_requests", BigInteger),
    Column("canary_cpu_bytes_per_s", Float),
    Column("canary_memory_bytes_per_s", Float),
    Column("bundle", Text, nullable=False),
    Column("bundle_host", Text, nullable=False),
    Column("manifest_sha256", Text, nullable=False),
    Column("catalogued_utc_ns", BigInteger, nullable=False),
    PrimaryKeyConstraint("id"),
    UniqueConstraint("run_id"),
    Index(None, "scenario", "created_utc_ns"),
    Index(None, "created_utc_ns"),
)

# What a number may depend on besides what was asked for; the keys of analysis.history.CAUSES. One row a combination.
ENVIRONMENTS = Table(
    "environments",
    METADATA,
    Column("id", Integer, nullable=False),
    Column("digest", Text, nullable=False),
    Column("engine_version", Text),
    Column("checkpoint", Text),
    Column("engine_flags", Text),
    Column("driver", Text),
    Column("gpu", Text),
    Column("node", Text),
    Column("kernel", Text),
    Column("client_version", Text),
    Column("client_host", Text),
    PrimaryKeyConstraint("id"),
    UniqueConstraint("digest"),
)

ARMS = Table(
    "arms",
    METADATA,
    _of_run(),
    Column("arm", Text, nullable=False),
    Column("engine", Text, nullable=False),
    Column("checkpoint", Text),
    Column("precision", Text, nullable=False),
    Column("gpus", Integer, nullable=False),
    Column("environment", Integer, ForeignKey("environments.id"), nullable=False),
    PrimaryKeyConstraint("run", "arm"),
    Index(None, "environment"),
)

SERVERS = Table(
    "servers",
    METADATA,
    _of_run(),
    Column("block", Integer, nullable=False),
    Column("arm", Text),
    Column("engine", Text, nullable=False),
    Column("version", Text),
    Column("emulated", Boolean, nullable=False),
    Column("served_model", Text),
    Column("gpu_name", Text),
    Column("driver", Text),
    Column("quantization", Text),
    Column("kv_cache_dtype", Text),
    Column("kv_capacity_tokens", BigInteger),
    Column("weights_bytes", BigInteger),
    PrimaryKeyConstraint("run", "block"),
)

TRIALS = Table(
    "trials",
    METADATA,
    _of_run(),
    Column("trial", Integer, nullable=False),
    Column("block", Integer, nullable=False),
    Column("arm", Text, nullable=False),
    Column("comparison", Integer),
    Column("pair", Integer, nullable=False),
    Column("load_point", Text, nullable=False),
    Column("emulated", Boolean, nullable=False),
    Column("validity", Text, nullable=False),
    Column("reasons", Text, nullable=False),  # codes, a space between
    Column("num_ok", Integer, nullable=False),
    Column("window_utc_ns", BigInteger),
    Column("window_s", Float),
    PrimaryKeyConstraint("run", "trial"),
)

METRICS = Table(
    "metrics",
    METADATA,
    _of_run(),
    Column("trial", Integer, nullable=False),
    Column("metric", Text, nullable=False),
    Column("value", Float),
    Column("note", Text),  # why the value is missing
    PrimaryKeyConstraint("run", "trial", "metric"),
)

# The points of histories: the median of a metric over the usable trials of an arm at a load point. The index answers a
# history without the table; environment is that of the arm, so that it need not be looked up.
LEVELS = Table(
    "levels",
    METADATA,
    _of_run(),
    Column("arm", Text, nullable=False),
    Column("load_point", Text, nullable=False),
    Column("metric", Text, nullable=False),
    Column("median", Float, nullable=False),
    Column("num_trials", Integer, nullable=False),
    Column("environment", Integer, ForeignKey("environments.id"), nullable=False),
    PrimaryKeyConstraint("run", "arm", "load_point", "metric"),
    Index("ix_levels_history", "metric", "arm", "load_point", "run", "median", "num_trials", "environment"),
)

COMPARISONS = Table(
    "comparisons",
    METADATA,
    _of_run(),
    Column("comparison", Integer, nullable=False),
    Column("baseline", Text, nullable=False),
    Column("candidate", Text, nullable=False),
    Column("emulated", Boolean, nullable=False),
    Column("comparable", Boolean, nullable=False),
    Column("reason", Text),
    PrimaryKeyConstraint("run", "comparison"),
)

RATIOS = Table(
    "ratios",
    METADATA,
    _of_run(),
    Column("comparison", Integer, nullable=False),
    Column("load_point", Text, nullable=False),
    Column("metric", Text, nullable=False),
    Column("baseline", Text, nullable=False),
    Column("candidate", Text, nullable=False),
    Column("is_primary", Boolean, nullable=False),
    Column("num_pairs", Integer, nullable=False),
    Column("label", Text),
    Column("ratio", Float),
    Column("ratio_low", Float),
    Column("ratio_high", Float),
    Column("verdict", Text),
    Column("is_below_margin", Boolean),
    Column("detectable_ratio", Float),
    Column("note", Text),
    Column("environment", Integer, ForeignKey("environments.id"), nullable=False),  # of the candidate
    PrimaryKeyConstraint("run", "comparison", "load_point", "metric"),
    Index(
        "ix_ratios_history",
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
    ),
)

DIFFERENCES = Table(
    "differences",
    METADATA,
    _of_run(),
    Column("comparison", Integer, nullable=False),
    Column("key", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("baseline", Text, nullable=False),
    Column("candidate", Text, nullable=False),
    Column("why", Text, nullable=False),
    Column("source", Text, nullable=False),
    PrimaryKeyConstraint("run", "comparison", "key"),
)

# What people wrote beside a bundle (annotations.jsonl). is_accepted: the level from this run on is the new normal;
# is_explained: the cause of a change is known, and the baseline stays where it is.
ANNOTATIONS = Table(
    "annotations",
    METADATA,
    _of_run(),
    Column("number", Integer, nullable=False),
    Column("utc_ns", BigInteger, nullable=False),
    Column("text", Text, nullable=False),
    Column("is_accepted", Boolean, nullable=False),
    Column("is_explained", Boolean, nullable=False, server_default=false()),
    PrimaryKeyConstraint("run", "number"),
)

OF_RUN = (ARMS, SERVERS, TRIALS, METRICS, LEVELS, COMPARISONS, RATIOS, DIFFERENCES, ANNOTATIONS)
