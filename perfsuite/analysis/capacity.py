"""GPU memory as capacity: what it holds, how many sequences fit, the fewest GPUs, FP8 against NVFP4. Pure.

Told by the engine or measured where it can be; computed from the model library elsewhere, and then said so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from perfsuite.analysis.roofline import (
    Layout,
    kv_bytes_per_token,
    kv_capacity_tokens,
    weights_bytes_per_gpu,
)
from perfsuite.library import Checkpoint, Gpu, known_checkpoint
from perfsuite.records import ServerFacts
from perfsuite.scenario.arm import Arm
from perfsuite.scenario.check import has_kv_dtype

LENGTHS_TOKENS = (2_048, 8_192, 32_768, 131_072)  # prompt and answer of one sequence
GPU_COUNTS = (1, 2, 4, 8, 16, 32)
MEMORY_RATIO = 0.9  # share of the memory that an engine takes when the arm does not say
OTHER_BYTES_PER_GPU = 8e9  # activations, graphs, context: assumed where nothing tells

# Size of the FP8 checkpoint / size of the NVFP4 checkpoint as the model cards of the NVFP4 checkpoints state it
# ("reducing the disk size and GPU memory requirements by approximately …").
CLAIMED_RATIOS: Mapping[str, float] = {"deepseek-r1": 1.6, "deepseek-v3.1": 1.6, "deepseek-v3.2": 1.66}


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What the memory of a deployment holds, in bytes over all its GPUs. None = neither told nor computable.

    used      measured: highest in the steady windows, without what the driver reserves
    reserved  measured: by driver and firmware
    weights   as the engine says, else computed
    kv_cache  the cache pool: capacity × bytes per token, once for each GPU that keeps a copy
    other     used − weights − kv_cache: activations, graphs, the engine's own; None when that is below 0
    total     measured
    basis     of weights and kv_cache: "told" or "computed", by name
    """

    used: float | None = None
    reserved: float | None = None
    weights: float | None = None
    kv_cache: float | None = None
    other: float | None = None
    total: float | None = None
    basis: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedGpu:
    """The GPU of a deployment.

    basis     "told" by the server or the telemetry, or "scenario"
    is_known  by the model library
    """

    name: str
    basis: str
    is_known: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What a deployment has room for. None where the library does not know the checkpoint or its cache.

    kv_bytes_per_token   all layers, one copy
    kv_capacity_tokens   as the engine says
    fits                 sequences at once, by their length in tokens: capacity / length
    fewest_gpus          of GPU_COUNTS, by length: where one sequence of the length fits, computed; None = none does
    gpu                  what fewest_gpus is of; None = neither told nor named, and then there is none
    memory_ratio         share of the GPU's memory that fewest_gpus takes for the engine's
    """

    memory: Memory
    num_gpus: int
    kv_bytes_per_token: float | None
    kv_capacity_tokens: int | None
    fits: Mapping[int, int]
    fewest_gpus: Mapping[int, int | None]
    gpu: ServedGpu | None
    memory_ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeRatio:
    """The weights of two checkpoints of one model: baseline / candidate, and what the candidate's card claims.

    disk: of the files; memory: of the weights as loaded (told by both engines, else computed).
    """

    disk: float | None
    memory: float | None
    claimed: float | None


def layout_of(arm: Arm) -> Layout | None:
    """How an arm lies on its GPUs; None for one without GPUs."""
    if arm.gpus < 1:
        return None
    tensor = 1 if arm.parallelism.attention_data else max(1, arm.gpus // arm.parallelism.data)
    return Layout(num_gpus=arm.gpus, attention_tensor=tensor, expert=arm.parallelism.expert)


def capacity_of(
    arm: Arm,
    facts: ServerFacts | None,
    *,
    gpu: Gpu | None,
    served_gpu: ServedGpu | None = None,
    used_bytes: float | None = None,
    reserved_bytes: float | None = None,
    total_bytes: float | None = None,
) -> Capacity | None:
    """The capacity of an arm as served; None for one without GPUs. The bytes: measured, over all GPUs.

    gpu: of the library, for the fewest GPUs; None = not asked. served_gpu: how that is known.
    """
    layout, checkpoint = layout_of(arm), known_checkpoint(arm.checkpoint or "")
    if layout is None:
        return None
    dtype = _kv_dtype(arm, facts, checkpoint)
    per_token = kv_bytes_per_token(checkpoint.shape, dtype) if checkpoint is not None and dtype else None
    tokens = facts.kv_capacity_tokens if facts is not None else None
    weights = facts.weights_bytes if facts is not None else None
    basis = {"weights": "told"} if weights is not None else {}
    if weights is None and checkpoint is not None:
        weights, basis = round(weights_bytes_per_gpu(checkpoint, layout) * layout.num_gpus), {"weights": "computed"}
    kv_cache = None
    if tokens is not None and per_token is not None:
        kv_cache = tokens * per_token * layout.attention_tensor  # tensor parallelism copies the latent to each GPU
        basis |= {"kv_cache": "computed"}
    other = None
    if used_bytes is not None and weights is not None and kv_cache is not None:
        other = used_bytes - weights - kv_cache if used_bytes >= weights + kv_cache else None
    lengths = [n for n in LENGTHS_TOKENS if arm.max_model_len is None or n <= arm.max_model_len]
    return Capacity(
        memory=Memory(
            used=used_bytes,
            reserved=reserved_bytes,
            weights=weights,
            kv_cache=kv_cache,
            other=other,
            total=total_bytes,
            basis=basis,
        ),
        num_gpus=arm.gpus,
        kv_bytes_per_token=per_token,
        kv_capacity_tokens=tokens,
        fits={n: tokens // n for n in lengths} if tokens is not None else {},
        fewest_gpus=_fewest(arm, checkpoint, gpu, dtype, lengths),
        gpu=served_gpu,
        memory_ratio=_memory_ratio(arm),
    )


def _memory_ratio(arm: Arm) -> float:
    return arm.gpu_memory_fraction or MEMORY_RATIO


def _kv_dtype(arm: Arm, facts: ServerFacts | None, checkpoint: Checkpoint | None) -> str | None:
    """The cache's type as the server says it, else as the arm does; None when the library has no size of it."""
    if checkpoint is None:
        return None
    told = facts.kv_cache_dtype if facts is not None else None
    name = next((n for n in ("fp8", "bf16") if told and told.startswith(n)), None) or arm.kv_cache_dtype
    if not has_kv_dtype(checkpoint, name):
        return None
    return checkpoint.kv_cache_dtype_auto if name == "auto" else name


def _fewest(
    arm: Arm, checkpoint: Checkpoint | None, gpu: Gpu | None, dtype: str | None, lengths: Sequence[int]
) -> dict[int, int | None]:
    if checkpoint is None or gpu is None or dtype is None:
        return {}
    ratio = _memory_ratio(arm)
    return {n: fewest_gpus(checkpoint, gpu, dtype, length_tokens=n, memory_ratio=ratio) for n in lengths}


def fewest_gpus(
    checkpoint: Checkpoint,
    gpu: Gpu,
    kv_dtype: str,
    *,
    length_tokens: int,
    num_sequences: int = 1,
    memory_ratio: float = MEMORY_RATIO,
    other_bytes: float = OTHER_BYTES_PER_GPU,
) -> int | None:
    """The smallest of GPU_COUNTS, in tensor parallelism, on which so many sequences of the length fit; None = none.

    memory_usable × memory_ratio − other − weights / GPUs must hold num_sequences × (length × bytes per token + window).
    """
    for num_gpus in GPU_COUNTS:
        layout = Layout(num_gpus=num_gpus, attention_tensor=num_gpus)
        pool = gpu.memory_usable_bytes * memory_ratio - other_bytes - weights_bytes_per_gpu(checkpoint, layout)
        room = kv_capacity_tokens(checkpoint.shape, kv_dtype, layout, pool, num_sequences)
        if pool > 0 and room >= num_sequences * length_tokens:
            return num_gpus
    return None


def size_ratio(baseline: Arm, candidate: Arm, sides: tuple[Capacity | None, Capacity | None]) -> SizeRatio | None:
    """The weights of two arms of one model; None where the library knows neither, or they are not FP8 and NVFP4."""
    before, after = (known_checkpoint(arm.checkpoint or "") for arm in (baseline, candidate))
    if before is None or after is None or before.model != after.model:
        return None
    is_claimed = (before.precision, after.precision) == ("fp8", "nvfp4")
    weights = [side.memory.weights if side is not None else None for side in sides]
    return SizeRatio(
        disk=before.disk_bytes / after.disk_bytes,
        memory=weights[0] / weights[1] if weights[0] and weights[1] else None,
        claimed=CLAIMED_RATIOS.get(before.model) if is_claimed else None,
    )
