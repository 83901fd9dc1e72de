"""The scenario file's vocabulary of arms: one engine with one checkpoint and its flags. No I/O."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator

from perfsuite.scenario.fields import (
    MAX_CONCURRENCY,
    MAX_TOKENS,
    BaseUrl,
    DurationOrZeroS,
    DurationS,
    Strict,
    json_trouble,
)
from perfsuite.scenario.telemetry_entry import TelemetrySource

Engine = Literal["emulated", "vllm", "sglang", "trtllm", "attach"]
Precision = Literal["bf16", "fp8", "nvfp4", "mxfp4"]
KvDtype = Literal["auto", "bf16", "fp8"]
DialectName = Literal["vllm", "sglang", "sglang-generate", "trtllm", "openai"]


def _argument(text: str) -> str:
    """The text. Raises ValueError when an argument list, a variable or a shell script cannot carry it."""
    if odd := next((char for char in text if char not in "\t\n" and (char < " " or "\x7f" <= char < "\xa0")), None):
        raise ValueError(f"wanted a text without control characters, found {odd!r} in {text!r}")
    return text


Argument = Annotated[str, AfterValidator(_argument)]
Word = Annotated[str, StringConstraints(min_length=1, max_length=500), AfterValidator(_argument)]
VARIABLE_NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"


def _variable_name(text: str) -> str:
    if isinstance(text, str) and not re.fullmatch(VARIABLE_NAME, text):
        raise ValueError(f"wanted the name of a variable (letters, digits and _, no digit first), found {text!r}")
    return text


VariableName = Annotated[str, BeforeValidator(_variable_name), StringConstraints(pattern=VARIABLE_NAME)]

_ATTACH_ONLY = ("url", "api_key", "dialect")
_SERVING_ONLY = (
    "engine_version", "tokenizer", "custom_tokenizer", "trust_remote_code", "load_format", "cuda_graphs",
    "cuda_graph_max_batch", "moe_backend", "attention_backend", "speculation", "stream_interval", "reasoning_parser",
    "container", "srun",
)  # fmt: skip
_EMULATED_TOO = ("speculation", "stream_interval")
_NOT_WITH_ATTACH = (
    "flags", "command", "env", "max_num_seqs", "max_num_batched_tokens", "max_model_len", "gpu_memory_fraction",
    "parallelism", *_SERVING_ONLY,
)  # fmt: skip


class Parallelism(Strict):
    """How a deployment is laid out over its GPUs; sizes are numbers of GPUs."""

    tensor: int = Field(default=1, ge=1, le=1024)
    pipeline: int = Field(default=1, ge=1, le=1024)
    data: int = Field(default=1, ge=1, le=1024)
    expert: bool = Field(default=False, description="experts are spread over the GPUs instead of being cut")
    expert_size: int | None = Field(
        default=None, ge=1, le=1024, description="GPUs that one set of experts is spread over; all of them without it"
    )
    attention_data: bool = Field(default=False, description="attention is data-parallel: each GPU holds whole requests")


class Speculation(Strict):
    """Speculative decoding with the checkpoint's own multi-token-prediction layers."""

    method: Literal["mtp"] = "mtp"
    tokens: int = Field(ge=1, le=16, description="tokens drafted in each step")


class Container(Strict):
    """The engine runs in a container that `docker run` starts on this host."""

    image: Word
    shm_size: Annotated[str, StringConstraints(pattern=r"^[0-9]+[bkmg]?$")] | None = Field(
        default=None, description="size of /dev/shm, such as 32g; without it the host's IPC namespace is shared"
    )
    volumes: list[Word] = Field(default_factory=list, description="HOST:CONTAINER[:ro], as docker's --volume takes it")
    args: list[Argument] = Field(default_factory=list, description="more arguments of docker run, before the image")


class Srun(Strict):
    """The engine runs as a Slurm step on the node of perfsuite itself."""

    args: list[Argument] = Field(default_factory=list, description="more arguments of srun, before the program")


GpuReadS = Annotated[DurationOrZeroS, Field(le=1.0)]


class EmulatorSettings(Strict):
    """Settings of the embedded engine only."""

    dialect: Literal["vllm", "sglang", "sglang-generate", "trtllm"] = Field(
        default="vllm", description="the engine whose API and metrics it speaks"
    )
    draft_accept_ratio: float = Field(
        default=0.7, ge=0, le=1, description="with speculation: probability that a drafted token is accepted"
    )
    step_time: DurationS | None = Field(default=None, description="every step takes this long; no roofline")
    jitter_ratio: float = Field(default=0.02, ge=0, le=0.5, description="standard deviation of step time / step time")
    run_jitter_ratio: float = Field(default=0.005, ge=0, le=0.5, description="the same, drawn once for each start")
    truth_log: bool = Field(default=False, description="write when each chunk was sent into the bundle")
    counter_jitter_ratio: float = Field(
        default=0.0, ge=0, lt=0.5, description="the GPUs' counters refresh every 100 ms ± this ratio of it"
    )
    counter_reset: DurationS | None = Field(
        default=None, description="so long after each start the energy counters start again at 0"
    )
    gpu_read: Annotated[list[GpuReadS], Field(min_length=2, max_length=2)] | None = Field(
        default=None, description="shortest and longest reading of the GPUs; values of an instant within it"
    )

    @model_validator(mode="after")
    def _ordered(self) -> EmulatorSettings:
        if self.gpu_read is not None and self.gpu_read[0] > self.gpu_read[1]:
            raise ValueError("gpu_read: the shortest comes first, such as [5ms, 20ms]")
        return self


class Arm(Strict):
    """One engine with one checkpoint and its flags. Batch limits are for the whole deployment."""

    engine: Engine
    checkpoint: Word | None = None
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
    cuda_graphs: bool = Field(default=True, description="false: none are captured; true: as the engine does by default")
    cuda_graph_max_batch: int | None = Field(default=None, ge=1, le=MAX_CONCURRENCY)
    moe_backend: Word | None = None
    attention_backend: Word | None = None
    speculation: Speculation | None = None
    stream_interval: int | None = Field(default=None, ge=1, le=10_000, description="tokens in a streamed chunk")
    load_format: Literal["auto", "dummy"] = Field(default="auto", description="dummy: random weights")
    tokenizer: Word | None = Field(default=None, description="another tokenizer than the checkpoint's own")
    custom_tokenizer: Word | None = Field(default=None, description="the engine's name of a tokenizer class")
    trust_remote_code: bool = False
    reasoning_parser: Word | None = None
    served_name: Annotated[Argument, StringConstraints(min_length=1, max_length=200)] | None = None
    engine_version: Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)*[A-Za-z0-9.+-]*$")] | None = Field(
        default=None, description="decides the names of flags; without it the installed version is looked up"
    )
    command: list[Argument] | None = Field(
        default=None, min_length=1, description="program that starts the engine, before its arguments"
    )
    flags: list[Argument] = Field(
        default_factory=list, description="raw arguments added at the end of the command line"
    )
    llm_api_options: dict[str, Any] = Field(
        default_factory=dict, description="trtllm only: more keys of its options file (extra_llm_api_options)"
    )
    env: dict[VariableName, Argument] = Field(default_factory=dict)
    container: Container | None = None
    srun: Srun | None = None
    url: BaseUrl | None = Field(default=None, description="attach only: base URL, without /v1 and without credentials")
    api_key: Annotated[str, StringConstraints(pattern=r"^\$\{[A-Za-z_][A-Za-z0-9_]*\}$")] | None = Field(
        default=None, description="attach only: ${VARIABLE} of the environment that holds the key"
    )
    dialect: DialectName | None = Field(
        default=None, description="attach only: how the server is asked and read; detected without it"
    )
    emulator: EmulatorSettings = EmulatorSettings()
    telemetry: TelemetrySource | None = Field(
        default=None, description="where this arm's GPUs are read, in place of the scenario's telemetry"
    )

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
        if self.engine == "emulated":
            self._check_emulated()
        self._check_start()
        return self

    def _check_emulated(self) -> None:
        if self.gpus < 1:
            raise ValueError("engine emulated needs gpus of at least 1")
        if self.telemetry is not None and self.telemetry.source not in ("auto", "none"):
            raise ValueError("telemetry.source: emulated arms have the emulator's GPUs (auto), or none")
        for key in _SERVING_ONLY:
            if key not in _EMULATED_TOO and not self._is_default(key):
                raise ValueError(f"{key}: the embedded engine has no such setting")

    def _check_start(self) -> None:
        if self.container is not None and self.srun is not None:
            raise ValueError("container and srun exclude each other: name the one that starts the engine")
        if self.parallelism.expert_size is not None and not self.parallelism.expert:
            raise ValueError("parallelism.expert_size needs parallelism.expert: true")
        if self.llm_api_options and self.engine != "trtllm":
            raise ValueError(f"llm_api_options: belongs to engine trtllm only, and this arm's engine is {self.engine}")
        if trouble := next(json_trouble(self.llm_api_options), None):
            raise ValueError(f"llm_api_options{trouble[0]}: found {trouble[1]}")

    def _is_default(self, key: str) -> bool:
        return bool(getattr(self, key) == Arm.model_fields[key].get_default(call_default_factory=True))

    def _check_attach(self) -> None:
        if self.url is None:
            raise ValueError("engine attach needs url, the base URL of the server")
        for key in _NOT_WITH_ATTACH:
            if not self._is_default(key):
                raise ValueError(
                    f"{key}: has no effect with engine attach, whose server is up already: set it where the server is "
                    "started, and say it in description"
                )
