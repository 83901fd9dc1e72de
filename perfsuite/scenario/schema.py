"""The scenario file's vocabulary: strict pydantic models, each field with its unit. No I/O.

Unknown keys, duplicate keys, NaN and infinities are refused. Durations and rates are strings with units.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, WithJsonSchema, model_validator

from perfsuite.units import parse_duration_s, parse_rate_per_s

SCHEMA_VERSION = 1
MAX_REQUESTS_PER_TRIAL = 10_000_000
MAX_TOKENS = 10_000_000
MAX_CONCURRENCY = 100_000

Engine = Literal["emulated", "vllm", "attach"]
Precision = Literal["bf16", "fp8", "nvfp4", "mxfp4"]
KvDtype = Literal["auto", "bf16", "fp8"]


def _duration(value: Any) -> Any:
    if isinstance(value, str):
        return parse_duration_s(value)
    raise ValueError(f"wanted a duration with its unit, such as 500ms, 2s or 1.5min, found {value!r}")


def _rate(value: Any) -> Any:
    if isinstance(value, str):
        return parse_rate_per_s(value)
    raise ValueError(f'wanted a rate with its unit, such as "2 req/s", found {value!r}')


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _token_range(value: Any) -> Any:
    return {"min": value, "max": value} if isinstance(value, int) and not isinstance(value, bool) else value


_DURATION_SCHEMA = WithJsonSchema({"type": "string", "examples": ["500ms", "2s", "10min"]})
DurationS = Annotated[float, BeforeValidator(_duration), Field(gt=0, le=7 * 86400), _DURATION_SCHEMA]
DurationOrZeroS = Annotated[float, BeforeValidator(_duration), Field(ge=0, le=7 * 86400), _DURATION_SCHEMA]
RatePerS = Annotated[
    float, BeforeValidator(_rate), Field(gt=0, le=1e6), WithJsonSchema({"type": "string", "examples": ["2 req/s"]})
]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Tokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)]


class Strict(BaseModel):
    """Every model of a scenario: no unknown keys, no coercion, no NaN, immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class TokenRange(Strict):
    """A uniform integer range of token counts, both ends included. A plain integer means exactly that many."""

    min: Tokens
    max: Tokens

    @model_validator(mode="after")
    def _ordered(self) -> TokenRange:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is greater than max ({self.max})")
        return self


TokenCount = Annotated[TokenRange, BeforeValidator(_token_range)]


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
    command: list[str] | None = Field(default=None, description="program that starts the engine, before its arguments")
    flags: list[str] = Field(default_factory=list, description="raw arguments added at the end of the command line")
    env: dict[str, str] = Field(default_factory=dict)
    url: Annotated[str, StringConstraints(pattern=r"^https?://[^\s@?#]+$")] | None = Field(
        default=None, description="attach only: base URL, without /v1 and without credentials"
    )
    api_key: Annotated[str, StringConstraints(pattern=r"^\$\{[A-Za-z_][A-Za-z0-9_]*\}$")] | None = Field(
        default=None, description="attach only: ${VARIABLE} of the environment that holds the key"
    )
    emulator: EmulatorSettings = EmulatorSettings()

    @model_validator(mode="after")
    def _consistent(self) -> Arm:
        if self.engine == "attach" and self.url is None:
            raise ValueError("engine attach needs url, the base URL of the server")
        if self.engine != "attach":
            unused = [key for key in ("url", "api_key") if getattr(self, key) is not None]
            if unused:
                raise ValueError(f"{unused[0]} belongs to engine attach only, and this arm's engine is {self.engine}")
            if self.checkpoint is None:
                raise ValueError(f"engine {self.engine} needs checkpoint")
        if self.engine != "emulated" and self.emulator != EmulatorSettings():
            raise ValueError(f"emulator settings belong to engine emulated only, and this arm's is {self.engine}")
        if self.engine == "emulated" and self.gpus < 1:
            raise ValueError("engine emulated needs gpus of at least 1")
        return self


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
    """What is asked. `random`: token lengths and random tokens. `file`: prompts from a local JSONL or Parquet file."""

    kind: Literal["random", "file"] = "random"
    api: Literal["completions", "chat"] = "completions"
    prompt_as: Literal["token_ids", "text"] = Field(
        default="token_ids", description="token_ids: exact lengths; text: lengths verified against the server's usage"
    )
    input_tokens: TokenCount | None = None
    output_tokens: TokenCount | None = None
    shared_prefix: SharedPrefix | None = None
    path: str | None = Field(default=None, description="file only: path relative to the scenario file")
    ignore_eos: bool = Field(
        default=True, description="ask for exactly output_tokens; off for endpoints that refuse it"
    )
    temperature: float = Field(default=0.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    extra_body: dict[str, Any] = Field(default_factory=dict, description="more fields of each request body")

    @model_validator(mode="after")
    def _consistent(self) -> Workload:
        if self.output_tokens is None:
            raise ValueError("output_tokens is missing")
        if self.kind == "random":
            self._check_random()
        else:
            self._check_file()
        return self

    def _check_random(self) -> None:
        if self.input_tokens is None:
            raise ValueError("workload kind random needs input_tokens")
        if self.path is not None:
            raise ValueError("path belongs to workload kind file")
        if self.api == "chat" and self.prompt_as == "token_ids":
            raise ValueError("api chat cannot take token ids: set prompt_as: text")
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


class Load(Strict):
    """One entry of `load`; a list of concurrencies or rates makes one load point of each.

    Exactly one of concurrency (closed loop), rate (open loop), offline (all at once).
    """

    concurrency: Annotated[list[Annotated[int, Field(ge=1, le=MAX_CONCURRENCY)]], BeforeValidator(_as_list)] | None = (
        Field(default=None, min_length=1, max_length=100)
    )
    rate: Annotated[list[RatePerS], BeforeValidator(_as_list)] | None = Field(
        default=None, min_length=1, max_length=100
    )
    offline: bool = False
    arrivals: Literal["constant", "poisson", "gamma"] = "poisson"
    burstiness: float = Field(default=1.0, gt=0, le=1000, description="gamma shape; 1 = Poisson, below 1 = burstier")
    requests: int | None = Field(default=None, ge=1, le=MAX_REQUESTS_PER_TRIAL)
    requests_per_concurrency: int | None = Field(default=None, ge=1, le=100_000)
    duration: DurationS | None = Field(default=None, description="open loop: length of the schedule")
    warmup_requests: int | None = Field(default=None, ge=0, le=MAX_REQUESTS_PER_TRIAL)
    warmup_per_concurrency: int | None = Field(default=None, ge=0, le=1000)
    ramp_in: DurationOrZeroS = Field(default=0.0, description="closed loop: the slots open evenly over this time")

    @model_validator(mode="after")
    def _one_kind(self) -> Load:
        kinds = [self.concurrency is not None, self.rate is not None, self.offline]
        if sum(kinds) != 1:
            raise ValueError("wanted exactly one of concurrency, rate, offline: true")
        if self.warmup_requests is not None and self.warmup_per_concurrency is not None:
            raise ValueError("warmup_requests and warmup_per_concurrency exclude each other")
        for message in self._misplaced():
            raise ValueError(message)
        return self

    def _misplaced(self) -> list[str]:
        out: list[str] = []
        if self.concurrency is None:
            keys = ("requests_per_concurrency", "warmup_per_concurrency")
            out += [f"{key} belongs to closed loop (concurrency)" for key in keys if getattr(self, key) is not None]
            out += ["ramp_in belongs to closed loop (concurrency)"] if self.ramp_in else []
        elif (self.requests is None) == (self.requests_per_concurrency is None):
            out.append("concurrency needs exactly one of requests, requests_per_concurrency")
        if self.rate is None and self.duration is not None:
            out.append("duration belongs to open loop (rate); a closed loop is planned by its number of requests")
        if self.rate is not None and (self.requests is None) == (self.duration is None):
            out.append("rate needs exactly one of requests, duration")
        if self.offline and self.requests is None:
            out.append("offline needs requests")
        if self.arrivals != "gamma" and self.burstiness != 1.0:
            out.append(f"burstiness belongs to arrivals: gamma, found arrivals: {self.arrivals}")
        return out


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
    primary_metrics: list[PrimaryMetric] = Field(default=list(DEFAULT_PRIMARY_METRICS), min_length=1)
    timeouts: Timeouts = Timeouts()
    limits: Limits = Limits()
    telemetry: TelemetrySettings = TelemetrySettings()

    @model_validator(mode="after")
    def _consistent(self) -> Scenario:
        if self.comparisons and self.blocks % 2:
            raise ValueError(f"blocks: must be even, so that each arm goes first equally often; found {self.blocks}")
        used: set[str] = set()
        for comparison in self.comparisons:
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
