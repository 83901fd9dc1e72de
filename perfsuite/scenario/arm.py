"""The scenario file's vocabulary of arms: one engine with one checkpoint and its flags. No I/O."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from perfsuite.scenario.fields import MAX_CONCURRENCY, MAX_TOKENS, BaseUrl, DurationS, Strict

Engine = Literal["emulated", "vllm", "attach"]
Precision = Literal["bf16", "fp8", "nvfp4", "mxfp4"]
KvDtype = Literal["auto", "bf16", "fp8"]
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
