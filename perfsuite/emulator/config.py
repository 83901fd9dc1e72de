"""Settings of the embedded engine and the facts that follow from them. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from perfsuite.analysis.roofline import (
    Efficiency,
    Layout,
    kv_bytes_per_token,
    kv_capacity_tokens,
    weights_bytes_per_gpu,
)
from perfsuite.analysis.step_time import StepModel, step_model
from perfsuite.emulator.scheduler import SchedulerLimits
from perfsuite.errors import UsageError
from perfsuite.library import Checkpoint, Gpu, find_checkpoint, find_gpu

KV_DTYPES = ("auto", "bf16", "fp8")
DIALECTS = ("vllm", "sglang", "trtllm")
RESERVED_BYTES_PER_GPU = 8e9
"""Activations, graphs and communication buffers of one GPU. Assumed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatorConfig:
    """How the embedded engine is started. Batch limits are for the whole deployment.

    checkpoint, gpu        ids or aliases of the model library
    gpus                   GPUs of the deployment = tensor × data
    attention_data         attention is data-parallel inside the tensor group: each GPU holds whole requests
    gpu_memory_fraction    of each GPU's usable memory, for weights, cache and the reserve
    jitter, run_jitter     standard deviation / mean of each step's time, and once for each start
    step_time_s            every step takes this long (times the jitters); None: roofline
    seed                   of the jitters, answer words and lengths
    truth_log              JSON lines: when each chunk was sent; None: not written
    profile_dir            folder of the profiler's traces; None: where the request says, else none is written
    dialect                whose API and metrics it speaks: one of DIALECTS
    stream_interval        tokens in a chunk: the first token is sent at once, then every so many together
    draft_tokens           speculative tokens proposed for each decode, 0 = none; the draft's own time is not modelled
    draft_accept_ratio     probability that a proposed token is accepted when all before it were
    max_queued             requests in the queue beyond which the API refuses with 503; 0 = no limit
    counter_jitter_ratio   refresh k of the GPUs' counters comes at (k + u) × 100 ms, u uniform in ± this; below 0.5
    counter_reset_s        the energy counters start again at 0 so long after the start; None: never
    gpu_read_min_s, gpu_read_max_s  a reading of the GPUs takes a time between these, uniform; its values are of an
                           instant within it, uniform too
    """

    checkpoint: str
    gpu: str = "b200"
    gpus: int = 8
    tensor: int = 8
    data: int = 1
    attention_data: bool = False
    expert: bool = False
    kv_cache_dtype: str = "auto"
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    max_model_len: int = 16384
    gpu_memory_fraction: float = 0.9
    prefix_cache: bool = False
    chunked_prefill: bool = True
    served_name: str | None = None
    seed: int = 0
    jitter: float = 0.02
    run_jitter: float = 0.005
    step_time_s: float | None = None
    truth_log: Path | None = None
    profile_dir: Path | None = None
    dialect: str = "vllm"
    stream_interval: int = 1
    draft_tokens: int = 0
    draft_accept_ratio: float = 0.7
    max_queued: int = 0
    counter_jitter_ratio: float = 0.0
    counter_reset_s: float | None = None
    gpu_read_min_s: float = 0.0
    gpu_read_max_s: float = 0.0
    host: str = "127.0.0.1"
    port: int = 8000
    efficiency: Efficiency = field(default_factory=Efficiency)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """What an EmulatorConfig amounts to. Bytes are of one GPU unless named otherwise."""

    config: EmulatorConfig
    checkpoint: Checkpoint
    gpu: Gpu
    layout: Layout
    model: StepModel
    kv_cache_dtype: str
    kv_bytes_per_token: float
    kv_capacity_tokens: int
    weights_bytes_per_gpu: float
    kv_pool_bytes_per_gpu: float
    served_name: str

    @property
    def memory_used_bytes(self) -> int:
        """Of one GPU: weights, the whole cache pool and the reserve, whatever is running."""
        return int(self.weights_bytes_per_gpu + self.kv_pool_bytes_per_gpu + RESERVED_BYTES_PER_GPU)

    @property
    def limits(self) -> SchedulerLimits:
        """The scheduler's limits."""
        return SchedulerLimits(
            max_num_seqs=self.config.max_num_seqs,
            max_num_batched_tokens=self.config.max_num_batched_tokens,
            kv_capacity_tokens=self.kv_capacity_tokens,
            chunked_prefill=self.config.chunked_prefill,
            prefix_cache=self.config.prefix_cache,
            draft_tokens=self.config.draft_tokens,
            draft_accept_ratio=self.config.draft_accept_ratio,
            seed=self.config.seed,
        )


def deploy(config: EmulatorConfig) -> Deployment:
    """The deployment of a configuration. Raises UsageError when it contradicts itself or does not fit in memory."""
    _check(config)
    checkpoint, gpu = find_checkpoint(config.checkpoint), find_gpu(config.gpu)
    layout = Layout(
        num_gpus=config.gpus, attention_tensor=1 if config.attention_data else config.tensor, expert=config.expert
    )
    kv_dtype = checkpoint.kv_cache_dtype_auto if config.kv_cache_dtype == "auto" else config.kv_cache_dtype
    try:
        model = step_model(checkpoint, gpu, layout, kv_dtype)
    except KeyError:
        known = ", ".join(checkpoint.shape.kv_streams[0].bytes_per_entry)
        raise UsageError(
            f"{checkpoint.model} has no cache of this type", found=kv_dtype, cure=f"set kv_cache_dtype to {known}"
        ) from None
    weights = weights_bytes_per_gpu(checkpoint, layout)
    pool = gpu.memory_usable_bytes * config.gpu_memory_fraction - weights - RESERVED_BYTES_PER_GPU
    capacity = kv_capacity_tokens(checkpoint.shape, kv_dtype, layout, pool, config.max_num_seqs)
    deployment = Deployment(
        config=config,
        checkpoint=checkpoint,
        gpu=gpu,
        layout=layout,
        model=model,
        kv_cache_dtype=kv_dtype,
        kv_bytes_per_token=kv_bytes_per_token(checkpoint.shape, kv_dtype),
        kv_capacity_tokens=capacity,
        weights_bytes_per_gpu=weights,
        kv_pool_bytes_per_gpu=max(0.0, pool),
        served_name=config.served_name or checkpoint.id,
    )
    _check_fits(deployment)
    return deployment


def _check(config: EmulatorConfig) -> None:
    if config.kv_cache_dtype not in KV_DTYPES:
        raise UsageError("unknown kv_cache_dtype", found=config.kv_cache_dtype, cure=f"one of {', '.join(KV_DTYPES)}")
    if config.gpus < 1 or config.tensor * config.data != config.gpus:
        raise UsageError(
            "the parallelism does not add up to the GPUs",
            found=f"tensor {config.tensor} × data {config.data} for {config.gpus} GPUs",
            cure="set tensor × data = gpus; pipeline parallelism is not modelled",
        )
    if config.dialect not in DIALECTS:
        raise UsageError("unknown dialect", found=config.dialect, cure=f"one of {', '.join(DIALECTS)}")
    if config.draft_tokens < 0 or not 0 <= config.draft_accept_ratio <= 1:
        found = f"{config.draft_tokens} draft tokens, accepted {config.draft_accept_ratio}"
        raise UsageError("draft tokens must be 0 or more, and their acceptance 0 to 1", found=found)
    for name in ("max_num_seqs", "max_num_batched_tokens", "max_model_len", "stream_interval"):
        if getattr(config, name) < 1:
            raise UsageError(f"{name} must be at least 1", found=str(getattr(config, name)))
    if not config.chunked_prefill and config.max_num_batched_tokens < config.max_model_len:
        raise UsageError(
            "without chunked prefill a whole prompt must fit in one step",
            found=f"max_num_batched_tokens {config.max_num_batched_tokens} < max_model_len {config.max_model_len}",
            cure="raise max_num_batched_tokens or lower max_model_len",
        )
    if config.step_time_s is not None and not 0 < config.step_time_s < 3600:
        raise UsageError("step time must be above 0 and below one hour", found=f"{config.step_time_s} s")
    _check_gpu_counters(config)


def _check_gpu_counters(config: EmulatorConfig) -> None:
    if not 0 <= config.counter_jitter_ratio < 0.5:
        raise UsageError(
            "the jitter of the counters must be 0 or more, and below 0.5 of their period",
            found=f"{config.counter_jitter_ratio}",
        )
    if not 0 <= config.gpu_read_min_s <= config.gpu_read_max_s <= 1:
        raise UsageError(
            "a reading of the GPUs takes 0 to 1 s, and the shortest is not longer than the longest",
            found=f"{config.gpu_read_min_s} to {config.gpu_read_max_s} s",
        )
    if config.counter_reset_s is not None and config.counter_reset_s < 0:
        raise UsageError("the counters cannot start again before the start", found=f"{config.counter_reset_s} s")


def _check_fits(deployment: Deployment) -> None:
    config = deployment.config
    num_heads = deployment.checkpoint.shape.attention.num_heads
    if num_heads % deployment.layout.attention_tensor:
        raise UsageError(
            f"the {num_heads} attention heads of {deployment.checkpoint.id} cannot be cut evenly",
            found=f"over {deployment.layout.attention_tensor} GPUs",
            cure="set tensor to a divisor of the heads, or use attention data parallelism",
        )
    if deployment.kv_capacity_tokens // deployment.layout.attention_data >= config.max_model_len:
        return
    usable = deployment.gpu.memory_usable_bytes * config.gpu_memory_fraction
    raise UsageError(
        f"{deployment.checkpoint.id} on {config.gpus} × {deployment.gpu.name} leaves no room for one request of "
        f"max_model_len ({config.max_model_len} tokens)",
        found=f"weights {deployment.weights_bytes_per_gpu / 1e9:.1f} GB of {usable / 1e9:.1f} GB a GPU, "
        f"cache for {deployment.kv_capacity_tokens} tokens",
        cure="use more GPUs, a smaller checkpoint or a lower max_model_len",
    )
