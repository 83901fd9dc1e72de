"""The scenario file's vocabulary: strict pydantic models, each field with its unit. No I/O.

Unknown keys, duplicate keys, NaN and infinities are refused. Durations and rates are strings with units.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from perfsuite.scenario.fields import (
    MAX_CONCURRENCY,
    MAX_TOKENS,
    BaseUrl,
    DurationS,
    Name,
    OneOrMore,
    Strict,
    TokenCount,
    Tokens,
    as_list,
    json_trouble,
)
from perfsuite.scenario.load_entry import Load

SCHEMA_VERSION = 1

Engine = Literal["emulated", "vllm", "attach"]
Precision = Literal["bf16", "fp8", "nvfp4", "mxfp4"]
KvDtype = Literal["auto", "bf16", "fp8"]
TraceFormat = Literal["mooncake", "azure", "burstgpt"]
DialectName = Literal["vllm", "sglang", "sglang-generate", "trtllm", "openai"]

_ATTACH_ONLY = ("url", "api_key", "dialect")
_NOT_WITH_ATTACH = (
    "flags", "command", "env", "max_num_seqs", "max_num_batched_tokens", "max_model_len", "gpu_memory_fraction",
    "parallelism",
)  # fmt: skip


class Parallelism(Strict):
    """How a deployment is laid out over its GPUs; sizes are numbers of GPUs."""

    tensor: int = Field(default=1, ge=1, le=1024)
    pipeline: int = Field(default=1, ge=1, le=1024)
    data: int = Field(default=1, ge=1, le=1024)
    expert: bool = Field(default=False, description="experts are spread over the GPUs instead of being cut")
    attention_data: bool = Field(default=False, description="attention is data-parallel: each GPU holds whole requests")


class EmulatorSettings(Strict):
    """Settings of the embedded engine only."""

    step_time: DurationS | None = Field(default=None, description="every step takes this long; no roofline")
    jitter_ratio: float = Field(default=0.02, ge=0, le=0.5, description="standard deviation of step time / step time")
    run_jitter_ratio: float = Field(default=0.005, ge=0, le=0.5, description="the same, drawn once for each start")
    truth_log: bool = Field(default=False, description="write when each chunk was sent into the bundle")


class Arm(Strict):
    """One engine with one checkpoint and its flags. Batch limits are for the whole deployment."""

    engine: Engine
    checkpoint: Annotated[str, StringConstraints(min_length=1, max_length=500)] | None = None
    precision: Precision
    gpus: int = Field(ge=0, le=4096, description="GPUs of the deployment; 0 for a CPU engine")
    gpu: str = Field(default="b200", description="GPU of the library; for the emulator and for capacity")
    parallelism: Parallelism = Parallelism()
    kv_cache_dtype: KvDtype = "auto"
    max_num_seqs: int | None = Field(default=None, ge=1, le=MAX_CONCURRENCY)
    max_num_batched_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    max_model_len: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    gpu_memory_fraction: float | None = Field(default=None, gt=0, le=1)
    prefix_cache: bool = False
    chunked_prefill: bool = True
    served_name: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = None
    command: list[str] | None = Field(
        default=None, min_length=1, description="program that starts the engine, before its arguments"
    )
    flags: list[str] = Field(default_factory=list, description="raw arguments added at the end of the command line")
    env: dict[str, str] = Field(default_factory=dict)
    url: BaseUrl | None = Field(default=None, description="attach only: base URL, without /v1 and without credentials")
    api_key: Annotated[str, StringConstraints(pattern=r"^\$\{[A-Za-z_][A-Za-z0-9_]*\}$")] | None = Field(
        default=None, description="attach only: ${VARIABLE} of the environment that holds the key"
    )
    dialect: DialectName | None = Field(
        default=None, description="attach only: how the server is asked and read; detected without it"
    )
    emulator: EmulatorSettings = EmulatorSettings()

    @model_validator(mode="after")
    def _consistent(self) -> Arm:
        if self.engine == "attach":
            self._check_attach()
        else:
            unused = [key for key in _ATTACH_ONLY if getattr(self, key) is not None]
            if unused:
                raise ValueError(f"{unused[0]}: belongs to engine attach only, and this arm's engine is {self.engine}")
            if self.checkpoint is None:
                raise ValueError(f"engine {self.engine} needs checkpoint")
        if self.engine != "emulated" and self.emulator != EmulatorSettings():
            raise ValueError(f"emulator settings belong to engine emulated only, and this arm's is {self.engine}")
        if self.engine == "emulated" and self.gpus < 1:
            raise ValueError("engine emulated needs gpus of at least 1")
        return self

    def _check_attach(self) -> None:
        if self.url is None:
            raise ValueError("engine attach needs url, the base URL of the server")
        for key in _NOT_WITH_ATTACH:
            if getattr(self, key) != Arm.model_fields[key].get_default(call_default_factory=True):
                raise ValueError(
                    f"{key}: has no effect with engine attach, whose server is up already: set it where the server is "
                    "started, and say it in description"
                )


class ComparisonSpec(Strict):
    """Which arm is compared with which: ratio = candidate / baseline."""

    baseline: Name
    candidate: Name

    @model_validator(mode="after")
    def _different(self) -> ComparisonSpec:
        if self.baseline == self.candidate:
            raise ValueError(f"baseline and candidate are the same arm, {self.baseline!r}")
        return self


class SharedPrefix(Strict):
    """The first `tokens` of each prompt are one of `groups` texts; counted inside input_tokens."""

    tokens: Tokens
    groups: int = Field(default=1, ge=1, le=1_000_000)


class Workload(Strict):
    """What is asked.

    random  token lengths and random tokens
    file    prompts from a local JSONL or Parquet file
    trace   lengths, times and shared blocks of a recorded trace, filled with random tokens
    """

    kind: Literal["random", "file", "trace"] = "random"
    api: Literal["completions", "chat"] = "completions"
    prompt_as: Literal["token_ids", "text"] = Field(
        default="token_ids", description="token_ids: exact lengths; text: lengths verified against the server's usage"
    )
    input_tokens: TokenCount | None = None
    output_tokens: TokenCount | None = None
    shared_prefix: SharedPrefix | None = None
    path: str | None = Field(default=None, description="file and trace: path relative to the scenario file")
    format: TraceFormat | None = Field(default=None, description="trace: the format of the file")
    ignore_eos: bool = Field(
        default=True, description="ask for exactly output_tokens; off for endpoints that refuse it"
    )
    temperature: float = Field(default=0.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    extra_body: dict[str, Any] = Field(default_factory=dict, description="more fields of each request body")

    @model_validator(mode="after")
    def _consistent(self) -> Workload:
        for place, what in json_trouble(self.extra_body):
            raise ValueError(f"extra_body{place}: JSON cannot carry {what}; write it as a text or a number")
        if self.kind != "trace" and self.output_tokens is None:
            raise ValueError("output_tokens is missing")
        if self.kind != "trace" and self.format is not None:
            raise ValueError("format: belongs to workload kind trace")
        if self.kind == "random":
            self._check_random()
        elif self.kind == "file":
            self._check_file()
        else:
            self._check_trace()
        return self

    def _check_random(self) -> None:
        if self.input_tokens is None:
            raise ValueError("workload kind random needs input_tokens")
        if self.path is not None:
            raise ValueError("path belongs to workload kinds file and trace")
        self._check_ids()
        if self.shared_prefix is not None and self.shared_prefix.tokens >= self.input_tokens.min:
            raise ValueError(
                f"shared_prefix.tokens ({self.shared_prefix.tokens}) leaves no fresh token in a prompt of "
                f"input_tokens.min ({self.input_tokens.min})"
            )

    def _check_file(self) -> None:
        if self.path is None:
            raise ValueError("workload kind file needs path")
        if self.input_tokens is not None or self.shared_prefix is not None:
            raise ValueError("input_tokens and shared_prefix belong to workload kind random: the file has the prompts")
        if self.prompt_as == "token_ids":
            raise ValueError("workload kind file sends text: set prompt_as: text")

    def _check_trace(self) -> None:
        for key in ("path", "format"):
            if getattr(self, key) is None:
                raise ValueError(f"workload kind trace needs {key}")
        for key in ("input_tokens", "output_tokens", "shared_prefix"):
            if getattr(self, key) is not None:
                raise ValueError(f"{key}: does not go with workload kind trace: each row of the trace has its own")
        self._check_ids()

    def _check_ids(self) -> None:
        if self.api == "chat" and self.prompt_as == "token_ids":
            raise ValueError("api chat cannot take token ids: set prompt_as: text")


class Slo(Strict):
    """Limits that one request must meet to count as good. ttft from the scheduled time; tpot per output token."""

    ttft: DurationS | None = None
    tpot: DurationS | None = None
    e2e: DurationS | None = None


class Timeouts(Strict):
    """Limits in time; each ends in an outcome of its own."""

    connect: DurationS = 10.0
    first_token: DurationS = 300.0
    idle: DurationS = 120.0
    total: DurationS = 3600.0
    drain: DurationS = Field(default=30.0, description="after an interrupt: how long requests in flight may finish")
    engine_start: DurationS = 1800.0
    engine_stop: DurationS = 60.0


class Limits(Strict):
    """Refuse a plan beyond these."""

    max_total_requests: int = Field(default=1_000_000, ge=1, le=100_000_000)
    max_hours: float = Field(default=24.0, gt=0, le=24 * 365)


class TelemetrySettings(Strict):
    """GPU sampling. `auto`: the emulator's for emulated arms, NVML where GPUs are declared, else none."""

    source: Literal["auto", "nvml", "none"] = "auto"
    hz: float = Field(default=10.0, gt=0, le=100)


PrimaryMetric = Literal[
    "output_tps_per_gpu", "ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "tpot_p99_s", "j_per_output_token"
]
DEFAULT_PRIMARY_METRICS: tuple[PrimaryMetric, ...] = ("output_tps_per_gpu", "ttft_p50_s", "tpot_p50_s")


class Scenario(Strict):
    """A scenario file. See docs/scenarios.md."""

    schema_version: Literal[1] = Field(alias="schema", default=1)
    name: Name
    description: str = Field(default="", max_length=2000)
    model: Name
    mode: Literal["matched", "best-config"] = "matched"
    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    blocks: int = Field(default=6, ge=1, le=1000, description="blocks of each arm, which is also the number of pairs")
    arms: dict[Name, Arm] = Field(min_length=1, max_length=100)
    comparisons: list[ComparisonSpec] = Field(default_factory=list, max_length=100)
    workload: Workload
    load: list[Load] = Field(min_length=1, max_length=100)
    slo: Slo = Slo()
    price_usd_per_gpu_hour: float | None = Field(default=None, ge=0, le=10_000)
    primary_metrics: Annotated[list[PrimaryMetric], BeforeValidator(as_list), Field(min_length=1), OneOrMore()] = Field(
        default=list(DEFAULT_PRIMARY_METRICS)
    )
    timeouts: Timeouts = Timeouts()
    limits: Limits = Limits()
    telemetry: TelemetrySettings = TelemetrySettings()

    @model_validator(mode="after")
    def _loads_fit_the_workload(self) -> Scenario:
        for number, load in enumerate(self.load):
            if (load.trace is not None) != (self.workload.kind == "trace"):
                raise ValueError(
                    f"load[{number}]: workload kind trace needs an entry with trace, such as trace: {{speed: 1.0}}"
                    if load.trace is None
                    else f"load[{number}].trace: belongs to workload kind trace, found kind: {self.workload.kind}"
                )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Scenario:
        if self.comparisons and self.blocks % 2:
            raise ValueError(f"blocks: must be even, so that each arm goes first equally often; found {self.blocks}")
        used: set[str] = set()
        for number, comparison in enumerate(self.comparisons):
            if (first := self.comparisons.index(comparison)) < number:
                raise ValueError(f"comparisons[{number}]: the same as comparisons[{first}]: keep one of them")
            for arm in (comparison.baseline, comparison.candidate):
                if arm not in self.arms:
                    raise ValueError(f"comparisons: name the arm {arm!r}, which is not in arms: {', '.join(self.arms)}")
                used.add(arm)
        if self.comparisons and (unused := [arm for arm in self.arms if arm not in used]):
            raise ValueError(f"arms: {unused[0]!r} is in no comparison, so it would never run")
        return self


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of scenario files, for editors: `perfsuite schema`."""
    schema = Scenario.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "perfsuite scenario"}
