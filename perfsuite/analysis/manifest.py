"""Quantization manifest: what a checkpoint's own files say is FP4, FP8 or BF16, part by part. Pure.

Files: `config.json`, `hf_quant_config.json` (modelopt) and `model.safetensors.index.json`, as parsed JSON. The parts
are those of the model library. Rules: DeepSeek's `quant_method: fp8`, modelopt's `quant_algo` with `exclude_modules` or
`ignore`, `MIXED_PRECISION` with `quantized_layers` or `moe_quant_algo`, compressed-tensors' `config_groups`.
Sources: vLLM 0.33.0 model_executor/layers/quantization, SGLang 0.5.23 configs/model_config.py; no published file of
these checkpoints was at hand, so the rules are read from the engines that load them.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from perfsuite.analysis.manifest_modules import NEVER_QUANTIZED, modules_of, part_of_weight
from perfsuite.library import Checkpoint, format_family, load_library

_ALGORITHMS = {
    "nvfp4": "nvfp4", "nvfp4_awq": "nvfp4", "w4a4_nvfp4": "nvfp4", "w4a16_nvfp4": "nvfp4",
    "mxfp4": "mxfp4", "w4a8_mxfp4_fp8": "mxfp4",
    "fp8": "fp8", "fp8_pb_wo": "fp8", "fp8_block_scales": "fp8", "fp8_per_channel_per_token": "fp8",
}  # fmt: skip
_KV_ALGORITHMS = {"fp8": "fp8", "nvfp4": "nvfp4", "int8": "int8"}
# Suffix of a tensor beside a module's weight → the format that stores it so.
_SCALE_SUFFIXES = {"weight_scale_2": "nvfp4", "weight_scale_inv": "fp8"}
MIXED = "mixed"


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationManifest:
    """What a checkpoint's files say.

    method          producer and algorithm in the files' words, such as "modelopt 0.41.0, NVFP4"; None: not quantized
    parts           part → format of the library's, "mixed: bf16, nvfp4", or "unknown: WORD"; absent parts have no key
    kv_cache_dtype  "fp8" and the like; None: the files do not ask for a type
    excluded        patterns of modules that are left alone
    total_bytes     size of all tensors as the index says; None without it
    notes           what the files do not agree on
    """

    method: str | None
    parts: Mapping[str, str]
    kv_cache_dtype: str | None
    excluded: tuple[str, ...]
    total_bytes: int | None
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """For the bundle."""
        return {
            "method": self.method,
            "parts": dict(self.parts),
            "kv_cache_dtype": self.kv_cache_dtype,
            "excluded": list(self.excluded),
            "total_bytes": self.total_bytes,
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PartMismatch:
    """A part whose format is not the library's. basis: how the library knows its own."""

    part: str
    expected: str
    found: str
    basis: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scheme:
    """How modules are quantized: the first matching rule of `overrides`, else `default` unless excluded."""

    method: str | None
    default: str
    excluded: tuple[str, ...]
    excluded_format: str
    overrides: tuple[tuple[str, str], ...] = ()


def read_manifest(
    config: Mapping[str, Any], quant: Mapping[str, Any] | None = None, index: Mapping[str, Any] | None = None
) -> QuantizationManifest:
    """The manifest of a checkpoint. config: config.json; quant: hf_quant_config.json; index: the safetensors index."""
    scheme = _scheme(config, quant)
    modules = modules_of(config)
    parts = {part: _joined(_format_of(scheme, part, name) for name in names) for part, names in modules.items()}
    notes: tuple[str, ...] = ()
    weights = _weight_names(index)
    if weights:
        stored = _stored_formats(weights, config.get("num_hidden_layers"))
        notes = tuple(_disagreements(parts, stored))
        parts = {part: kind or parts.get(part, "unknown: scales alone") for part, kind in stored.items()}
    return QuantizationManifest(
        method=scheme.method,
        parts=parts,
        kv_cache_dtype=_kv_cache_dtype(config, quant),
        excluded=scheme.excluded,
        total_bytes=_total_bytes(index),
        notes=notes,
    )


def mismatches(parts: Mapping[str, str], checkpoint: Checkpoint) -> tuple[PartMismatch, ...]:
    """Parts whose format is another family than the library's. Parts that the files do not have are passed over."""
    figures = load_library().figures
    return tuple(
        PartMismatch(
            part=part,
            expected=checkpoint.parts[part].id,
            found=found,
            basis=figures[f"checkpoints.{checkpoint.id}.parts.{part}"].basis,
        )
        for part, found in parts.items()
        if part in checkpoint.parts and format_family(checkpoint.parts[part].id) != format_family(found)
    )


def _scheme(config: Mapping[str, Any], quant: Mapping[str, Any] | None) -> _Scheme:
    plain = _dtype(config)
    inline = config.get("quantization_config")
    inline = inline if isinstance(inline, Mapping) else {}
    modelopt = quant.get("quantization") if isinstance(quant, Mapping) else None
    if isinstance(modelopt, Mapping):
        return _modelopt(modelopt, _producer(quant or {}), inline, plain, config)
    method = str(inline.get("quant_method", "")).lower()
    if method.startswith("modelopt") or (not method and "quant_algo" in inline):
        return _modelopt(inline, _producer(inline), {}, plain, config)
    if method == "fp8":
        return _deepseek_fp8(inline, plain, config)
    if method == "compressed-tensors":
        return _compressed_tensors(inline, plain)
    if method:
        return _Scheme(method=method, default=f"unknown: {method}", excluded=(), excluded_format=plain)
    return _Scheme(method=None, default=plain, excluded=(), excluded_format=plain)


def _deepseek_fp8(inline: Mapping[str, Any], plain: str, config: Mapping[str, Any]) -> _Scheme:
    """Block-wise FP8; a DeepSeek-V4 configuration says in expert_dtype what its experts are, fp4 unless told."""
    fp8 = "fp8-ue8m0" if _is_v4(config) else "fp8"
    overrides: tuple[tuple[str, str], ...] = ()
    if _is_v4(config):
        told = str(config.get("expert_dtype") or inline.get("expert_dtype") or "fp4")
        kind = "mxfp4" if told == "fp4" else "fp8"
        overrides = (("*.experts.*", kind),)
    named = (*_texts(inline.get("modules_to_not_convert")), *_texts(inline.get("ignored_layers")))
    excluded = named or ("lm_head", "head")  # the head is stored in BF16 without being named
    return _Scheme(method="fp8", default=fp8, excluded=excluded, excluded_format=plain, overrides=overrides)


def _modelopt(
    told: Mapping[str, Any], producer: str, inline: Mapping[str, Any], plain: str, config: Mapping[str, Any]
) -> _Scheme:
    algorithm = str(told.get("quant_algo") or "")
    excluded = (*_texts(told.get("exclude_modules")), *_texts(told.get("ignore")))
    method = ", ".join(word for word in (producer, algorithm) if word)
    if algorithm.upper() != "MIXED_PRECISION":
        return _Scheme(method=method, default=_format_name(algorithm, plain), excluded=excluded, excluded_format=plain)
    layers = told.get("quantized_layers")
    rules = [
        (name, _format_name(str(layer.get("quant_algo") or ""), plain))
        for name, layer in (layers.items() if isinstance(layers, Mapping) else ())
        if isinstance(layer, Mapping)
    ]
    experts = told.get("moe_quant_algo")
    if experts:
        rules.append(("*.experts.*", _format_name(str(experts), plain)))
    rest = "fp8-ue8m0" if _is_v4(config) and (experts or inline.get("quant_method") == "fp8") else plain
    return _Scheme(method=method, default=rest, excluded=excluded, excluded_format=plain, overrides=tuple(rules))


def _compressed_tensors(inline: Mapping[str, Any], plain: str) -> _Scheme:
    groups = inline.get("config_groups")
    groups = list(groups.values()) if isinstance(groups, Mapping) else []
    rules = [
        (str(target), _group_format(group, plain))
        for group in groups
        if isinstance(group, Mapping)
        for target in _texts(group.get("targets"))
        if target != "Linear"
    ]
    linear = [_group_format(group, plain) for group in groups if "Linear" in _texts(group.get("targets"))]
    return _Scheme(
        method=f"compressed-tensors, {inline.get('format', 'format not told')}",
        default=linear[0] if linear else plain,
        excluded=_texts(inline.get("ignore")),
        excluded_format=plain,
        overrides=tuple(rules),
    )


def _group_format(group: Mapping[str, Any], plain: str) -> str:
    weights = group.get("weights")
    if not isinstance(weights, Mapping):
        return plain
    bits, kind, size = weights.get("num_bits"), weights.get("type"), weights.get("group_size")
    if (bits, kind) == (4, "float"):
        return "mxfp4" if size == 32 else "nvfp4"
    return "fp8" if (bits, kind) == (8, "float") else f"unknown: {kind}{bits}"


def _format_name(algorithm: str, plain: str) -> str:
    if not algorithm or algorithm.lower() in ("none", "no_quant"):
        return plain
    return _ALGORITHMS.get(algorithm.lower(), f"unknown: {algorithm}")


def _format_of(scheme: _Scheme, part: str, module: str) -> str:
    if part in NEVER_QUANTIZED or any(_matches(module, pattern) for pattern in scheme.excluded):
        return scheme.excluded_format
    for pattern, kind in scheme.overrides:
        if _matches(module, pattern):
            return kind
    return scheme.default


def _matches(module: str, pattern: str) -> bool:
    """A shell pattern, a regular expression after "re:", or the name of the module or of one above it."""
    if pattern.startswith("re:"):
        try:
            return re.match(pattern[3:], module) is not None
        except re.error:
            return False
    return fnmatch.fnmatchcase(module, pattern) or module.startswith(pattern + ".")


def _joined(formats: Iterable[str]) -> str:
    kinds = sorted(set(formats))
    return kinds[0] if len(kinds) == 1 else f"{MIXED}: {', '.join(kinds)}"


def _weight_names(index: Mapping[str, Any] | None) -> tuple[str, ...]:
    names = index.get("weight_map") if isinstance(index, Mapping) else None
    return tuple(names) if isinstance(names, Mapping) else ()


def _stored_formats(names: Sequence[str], num_layers: object) -> dict[str, str]:
    """Part → format by the scales stored beside its weights; "" for a part whose scales do not tell.

    A weight without any scale is BF16. `weight_scale` or `scale` alone is used by several formats, so it does not tell.
    """
    layers = num_layers if isinstance(num_layers, int) else None
    tensors = set(names)
    found: dict[str, set[str]] = {}
    for name in names:
        module, _, suffix = name.rpartition(".")
        part = part_of_weight(module, layers)
        if suffix != "weight" or part is None:
            continue
        kinds = [kind for scale, kind in _SCALE_SUFFIXES.items() if f"{module}.{scale}" in tensors]
        ambiguous = any(f"{module}.{scale}" in tensors for scale in ("weight_scale", "scale"))
        found.setdefault(part, set()).add(kinds[0] if kinds else "" if ambiguous else "bf16")
    return {part: "" if "" in kinds else _joined(kinds) for part, kinds in found.items()}


def _disagreements(parts: Mapping[str, str], stored: Mapping[str, str]) -> Iterator[str]:
    for part, kind in stored.items():
        told = parts.get(part)
        if told is not None and kind and format_family(told) != format_family(kind):
            yield f"{part}: the configuration says {told}, the stored scales say {kind}"


def _kv_cache_dtype(config: Mapping[str, Any], quant: Mapping[str, Any] | None) -> str | None:
    inline = config.get("quantization_config")
    told = quant.get("quantization") if isinstance(quant, Mapping) else None
    for source in (told, inline):
        if not isinstance(source, Mapping):
            continue
        if algorithm := source.get("kv_cache_quant_algo"):
            return _KV_ALGORITHMS.get(str(algorithm).lower(), str(algorithm))
        scheme = source.get("kv_cache_scheme")
        if isinstance(scheme, Mapping) and scheme.get("type") == "float" and scheme.get("num_bits") == 8:
            return "fp8"
    return None


def _total_bytes(index: Mapping[str, Any] | None) -> int | None:
    metadata = index.get("metadata") if isinstance(index, Mapping) else None
    size = metadata.get("total_size") if isinstance(metadata, Mapping) else None
    return int(size) if isinstance(size, int | float) and not isinstance(size, bool) else None


def _producer(told: Mapping[str, Any]) -> str:
    producer = told.get("producer")
    if isinstance(producer, Mapping):
        return " ".join(str(producer[key]) for key in ("name", "version") if producer.get(key))
    return "modelopt"


def _dtype(config: Mapping[str, Any]) -> str:
    told = str(config.get("torch_dtype") or config.get("dtype") or "bfloat16").removeprefix("torch.")
    return {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}.get(told, told)


def _is_v4(config: Mapping[str, Any]) -> bool:
    names = (str(config.get("model_type", "")), *_texts(config.get("architectures")))
    return any("deepseek_v4" in name.lower() or "deepseekv4" in name.lower() for name in names)


def _texts(value: object) -> tuple[str, ...]:
    return tuple(str(each) for each in value) if isinstance(value, list | tuple) else ()
