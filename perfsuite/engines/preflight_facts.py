"""What a started server says of itself against what its arm asks for. Pure."""

from __future__ import annotations

from typing import Any

from perfsuite.errors import EngineError
from perfsuite.library import format_family, known_checkpoint
from perfsuite.records import ServerFacts
from perfsuite.scenario.arm import Arm

# Words of the engines for how weights are quantized → our precision. "modelopt" and words for mixed ones tell none.
_PRECISIONS = {
    "fp8": "fp8", "fbgemm_fp8": "fp8", "modelopt_fp8": "fp8", "fp8_block_scales": "fp8", "modelopt_fp4": "nvfp4",
    "nvfp4": "nvfp4", "petit_nvfp4": "nvfp4", "mxfp4": "mxfp4",
}  # fmt: skip
# What servers call their tensor and their pipeline parallelism.
_SIZES = (("tensor_parallel_size", "tp_size"), ("pipeline_parallel_size", "pp_size"))
_ON, _OFF = ("true", "on", "1"), ("false", "off", "0")


def check_facts(facts: ServerFacts, arm: Arm, *, where: str) -> list[str]:
    """Notes on what is not told. Raises EngineError where the server says that it is not what the arm asks for."""
    _check_layout(facts, arm, where)
    notes = _check_precision(facts, arm, where)
    notes += _check_kv_cache_dtype(facts, arm, where)
    notes += _check_prefix_cache(facts, arm, where)
    notes += _check_kernels(facts, arm)
    return notes


def _check_layout(facts: ServerFacts, arm: Arm, where: str) -> None:
    """Is the server cut as the arm says? Figures per GPU divide by the arm's GPUs."""
    tensor, pipeline = (_told_size(facts, keys) for keys in _SIZES)
    layout = arm.parallelism
    if arm.engine == "attach":
        size = (tensor or 1) * (pipeline or 1)
        if arm.gpus and arm.gpus % size:
            raise EngineError(
                "the server's tensor × pipeline does not divide the GPUs that the arm declares",
                where=where,
                found=f"{size} against gpus: {arm.gpus}",
                cure="correct gpus of the arm: figures per GPU divide by it",
            )
        return
    # vLLM's attention DP is data parallelism over ranks that are not cut.
    wanted = 1 if layout.attention_data and facts.engine == "vllm" else layout.tensor
    for name, told, asked in (("tensor", tensor, wanted), ("pipeline", pipeline, layout.pipeline)):
        if told is not None and told != asked and not facts.emulated:
            raise EngineError(
                f"the server's {name} parallelism is {told}, the arm asks for {asked}",
                where=where,
                cure="check flags and env of the arm: this would be measured as another deployment",
            )


def _told_size(facts: ServerFacts, keys: tuple[str, ...]) -> int | None:
    """The first of the keys that the server's resolved settings tell as a number."""
    words = (str(facts.config.get(key)) for key in keys)
    return next((int(word) for word in words if word.isdecimal()), None)


def _check_precision(facts: ServerFacts, arm: Arm, where: str) -> list[str]:
    word = facts.quantization or facts.config.get("quantization")
    told = "bf16" if (facts.engine, word) == ("vllm", "None") else _PRECISIONS.get(str(word).lower())
    if told is None:
        return [] if arm.engine == "attach" else [f"the server does not tell its precision ({arm.precision} declared)"]
    if told != arm.precision and not _may_be_a_part(told, arm):
        raise EngineError(
            f"the server's weights are {told}, the arm says {arm.precision}",
            where=where,
            found=f"quantization: {word}",
            cure="check the arm's checkpoint and flags: this would be measured under the wrong name",
        )
    return []


def _may_be_a_part(told: str, arm: Arm) -> bool:
    """Whether a checkpoint named after one format holds another as well, which is what the server told.

    DeepSeek-V4-Flash has FP8 beside its 4-bit experts; of a checkpoint that the library does not know, it may be so.
    """
    checkpoint = known_checkpoint(arm.checkpoint) if arm.checkpoint else None
    if checkpoint is None:
        return told == "fp8" and arm.precision in ("nvfp4", "mxfp4")
    return told != "bf16" and told in {format_family(part.id) for part in checkpoint.parts.values()}


def _check_kernels(facts: ServerFacts, arm: Arm) -> list[str]:
    if arm.engine == "attach" or facts.emulated or arm.precision not in ("nvfp4", "mxfp4") or facts.kernels:
        return []
    return [f"the server names no kernel: nothing confirms that {arm.precision} is multiplied as {arm.precision}"]


def _check_kv_cache_dtype(facts: ServerFacts, arm: Arm, where: str) -> list[str]:
    if facts.kv_cache_dtype is None:
        return ["the server does not tell the type of its KV cache"]
    if arm.kv_cache_dtype == "auto":
        return [f"kv_cache_dtype was left to the engine, which took {facts.kv_cache_dtype}"]
    if kv_family(facts.kv_cache_dtype) != arm.kv_cache_dtype:
        raise EngineError(
            f"the server's KV cache is {facts.kv_cache_dtype}, the arm says {arm.kv_cache_dtype}",
            where=where,
            cure="KV bytes would not be what the comparison says; check the flags and the engine's version",
        )
    return []


def kv_family(dtype: str) -> str:
    """fp8 for every FP8 layout (fp8_e4m3, fp8_ds_mla), bf16 for bfloat16; others as they are."""
    word = dtype.lower()
    return "fp8" if word.startswith(("fp8", "float8")) else "bf16" if word in ("bf16", "bfloat16") else word


def _check_prefix_cache(facts: ServerFacts, arm: Arm, where: str) -> list[str]:
    told = told_prefix_cache(facts.config)
    if told is None or told == arm.prefix_cache:
        return []
    if not arm.prefix_cache:
        raise EngineError(
            "the server reuses prompt prefixes, the arm says prefix_cache: false",
            where=where,
            cure="every engine has it on by default: restart the server with it off, or write prefix_cache: true",
        )
    return ["the arm says prefix_cache: true, and the server has it off"]


def told_prefix_cache(config: dict[str, Any]) -> bool | None:
    """Whether a server's resolved settings say that prefixes are reused; None when they do not tell."""
    for key, meaning in (
        ("enable_prefix_caching", True), ("prefix_cache", True), ("enable_block_reuse", True),
        ("disable_radix_cache", False),
    ):  # fmt: skip
        word = str(config.get(key)).lower()
        if word in (*_ON, *_OFF):
            return (word in _ON) == meaning
    return None
