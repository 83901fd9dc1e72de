"""The differences between two arms, in three classes.

entailed     follows from the checkpoints that are compared: allowed
confound     a free choice that differs: refused in mode `matched`, labelled in mode `best-config`
consequence  follows from the other two: reported, or pinned equal by the scenario

Where the arms have the same checkpoint and the same declared precision, nothing is entailed: what differs was chosen.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import replace
from typing import Any

from perfsuite.analysis.difference import CONFOUND, CONSEQUENCE, ENTAILED, KINDS, Difference
from perfsuite.analysis.library_rows import entailed_by_experts, library_rows, manifest_rows
from perfsuite.errors import ScenarioError
from perfsuite.records import ServerFacts
from perfsuite.scenario.arm import Arm
from perfsuite.scenario.schema import Scenario
from perfsuite.units import format_bytes

# What a key's difference is, and why it matters. A key not listed takes the entry of its longest listed beginning up
# to a dot; "" is what remains: a setting nobody has classified may change the result.
_CLASSES: dict[str, tuple[str, str]] = {
    "checkpoint": (ENTAILED, "what is compared"),
    "precision": (ENTAILED, "what is compared"),
    "quantization": (ENTAILED, "the checkpoint's format decides it"),
    "kernels": (ENTAILED, "the checkpoint's format selects them"),
    "weights_bytes": (ENTAILED, "bytes read from memory for each decode step"),
    "part_formats": (ENTAILED, "what the checkpoint quantizes, and what it leaves"),
    "efficiency": (ENTAILED, "the hardware model's factors for the checkpoint's kernels"),
    "flags.--quantization": (ENTAILED, "names the checkpoint's format"),
    "flags.-q": (ENTAILED, "names the checkpoint's format"),
    "dialect": (CONFOUND, "how the server is asked and read"),
    "engine": (CONFOUND, "another engine is another program"),
    "version": (CONFOUND, "another version is another program"),
    "command": (CONFOUND, "may start another program or version"),
    "gpus": (CONFOUND, "bandwidth and compute of the deployment"),
    "gpu": (CONFOUND, "other hardware"),
    "gpu_name": (CONFOUND, "other hardware"),
    "parallelism": (CONFOUND, "decides what each GPU holds and what they exchange"),
    "origin": (CONFOUND, "another model: the checkpoints were not made from one and the same"),
    "cuda_graphs": (CONFOUND, "without them each step launches its kernels one by one"),
    "cuda_graph_max_batch": (CONFOUND, "larger batches run without a captured graph"),
    "moe_backend": (CONFOUND, "the kernels of the experts, where both could run the same"),
    "attention_backend": (CONFOUND, "the kernels of attention, which is the same in both"),
    "speculation": (CONFOUND, "several tokens a step: chunk gaps and TPOT mean something else"),
    "stream_interval": (CONFOUND, "tokens in a chunk: chunk gaps and TTFT mean something else"),
    "load_format": (CONFOUND, "random weights route tokens to other experts"),
    "tokenizer": (CONFOUND, "the same text becomes other tokens"),
    "custom_tokenizer": (CONFOUND, "the same text becomes other tokens"),
    "trust_remote_code": (CONFOUND, "may run the model's own code instead of the engine's"),
    "reasoning_parser": (CONFOUND, "holds back or relabels chunks of reasoning"),
    "engine_version": (CONFOUND, "another version is another program"),
    "container": (CONFOUND, "another image or limits of its own"),
    "srun": (CONFOUND, "other limits of the Slurm step"),
    "llm_api_options": (CONFOUND, "a free choice of the launch options"),
    "kv_cache_dtype": (CONFOUND, "halves or doubles the KV bytes; auto resolves differently for each checkpoint"),
    "dtype": (CONFOUND, "type of everything that is not quantized"),
    "max_num_seqs": (CONFOUND, "limits the batch"),
    "max_num_batched_tokens": (CONFOUND, "limits the tokens of a step, so prefill and TTFT"),
    "max_model_len": (CONFOUND, "decides how memory is reserved"),
    "gpu_memory_fraction": (CONFOUND, "decides the KV capacity"),
    "prefix_cache": (CONFOUND, "skips prefill of repeated text"),
    "chunked_prefill": (CONFOUND, "trades TTFT against TPOT"),
    "flags": (CONFOUND, "a free choice of the launch command"),
    "env": (CONFOUND, "a free choice of the launch environment"),
    "telemetry": (CONSEQUENCE, "where the arms' GPUs are read: their energy may be known unequally well"),
    "emulator": (CONFOUND, "settings of the hardware model"),
    # What servers call their settings, resolved.
    "enforce_eager": (CONFOUND, "without CUDA graphs each step launches its kernels one by one"),
    "device_config": (CONFOUND, "other hardware"),
    "enable_prefix_caching": (CONFOUND, "skips prefill of repeated text"),
    "disable_radix_cache": (CONFOUND, "skips prefill of repeated text"),
    "enable_chunked_prefill": (CONFOUND, "trades TTFT against TPOT"),
    "gpu_memory_utilization": (CONFOUND, "decides the KV capacity"),
    "mem_fraction_static": (CONFOUND, "decides the KV capacity; left out, the engine chooses by the free memory"),
    "max_running_requests": (CONFOUND, "limits the batch; left out, the engine chooses by the free memory"),
    "max_prefill_tokens": (CONFOUND, "limits the tokens of a step, so prefill and TTFT"),
    "chunked_prefill_size": (CONFOUND, "limits the tokens of a step, so prefill and TTFT"),
    "rank_max_num_batched_tokens": (CONFOUND, "limits the tokens of a step, so prefill and TTFT"),
    "rank_max_num_tokens": (CONFOUND, "limits the tokens of a step, so prefill and TTFT"),
    "rank_max_batch_size": (CONFOUND, "limits the batch"),
    "rank_max_num_requests": (CONFOUND, "limits the batch"),
    "context_length": (CONFOUND, "decides how memory is reserved"),
    "speculative_algorithm": (CONFOUND, "several tokens a step: chunk gaps and TPOT mean something else"),
    "speculative_num_steps": (CONFOUND, "several tokens a step: chunk gaps and TPOT mean something else"),
    "speculative_num_draft_tokens": (CONFOUND, "several tokens a step: chunk gaps and TPOT mean something else"),
    "tensor_parallel_size": (CONFOUND, "decides what each GPU holds and what they exchange"),
    "pipeline_parallel_size": (CONFOUND, "decides what each GPU holds and what they exchange"),
    "data_parallel_size": (CONFOUND, "decides what each GPU holds and what they exchange"),
    "tp_size": (CONFOUND, "decides what each GPU holds and what they exchange"),
    "pp_size": (CONFOUND, "decides what each GPU holds and what they exchange"),
    "dp_size": (CONFOUND, "decides what each GPU holds and what they exchange"),
    "attn_dp_size": (CONFOUND, "decides what each GPU holds and what they exchange"),
    "ep_size": (CONFOUND, "decides what each GPU holds and what they exchange"),
    "effective_max_running_requests_per_dp": (CONSEQUENCE, "how many requests the KV capacity lets run"),
    "page_size": (CONSEQUENCE, "the engine's choice for its attention kernel"),
    "tokens_per_block": (CONSEQUENCE, "the engine's choice for its attention kernel"),
    "kv_capacity_tokens": (CONSEQUENCE, "what the weights leave of the memory"),
    "kv_bytes_per_token": (CONSEQUENCE, "follows from model, KV type and layout"),
    "gpu_memory_used_bytes": (CONSEQUENCE, "weights, KV blocks and work space in use"),
    "memory_used_bytes": (CONSEQUENCE, "weights, KV blocks and work space in use"),
    "num_gpu_blocks": (CONSEQUENCE, "what the weights leave of the memory"),
    "block_size": (CONSEQUENCE, "the engine's choice for its attention kernel"),
    "num_preemptions": (CONSEQUENCE, "the batch did not fit the KV capacity"),
    "": (CONFOUND, "a setting nobody has classified"),
}

# Names, places, notes, and what restates another key: they differ without any effect of their own.
ARM_KEYS_WITHOUT_EFFECT = frozenset({"served_name", "url", "api_key", "truth_log"})
SERVER_KEYS_WITHOUT_EFFECT = frozenset(
    {"served_name", "served_model", "model", "url", "api_key", "truth_log", "emulated", "sources", "source", "name"}
    | {"host", "port", "seed", "random_seed", "pid", "log_path", "tokenizer", "model_path", "id", "created", "root"}
    | {"args", "vocab_size_source", "owned_by", "note", "not_stated", "weights_bytes_per_gpu", "kv_pool_bytes_per_gpu"}
    | {"max_seq_len", "cache_dtype"}  # restate max_model_len and kv_cache_dtype
    | {"preflight", "quantization_manifest", "preflight_notes"}  # judged by findings; the manifest's parts have rows
)
_SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)


__all__ = [
    "CONFOUND",
    "CONSEQUENCE",
    "ENTAILED",
    "KINDS",
    "Difference",
    "arm_settings",
    "classify",
    "confounds",
    "differences",
    "parse_flags",
    "refuse_confounds",
    "server_settings",
]


def differences(
    baseline: Arm,
    candidate: Arm,
    baseline_facts: ServerFacts | None = None,
    candidate_facts: ServerFacts | None = None,
) -> tuple[Difference, ...]:
    """Every difference between two arms: of the scenario, and of the servers' facts where both are known."""
    is_same_checkpoint = (baseline.checkpoint, baseline.precision) == (candidate.checkpoint, candidate.precision)
    found = {row.key: row for row in _rows(arm_settings(baseline), arm_settings(candidate), "scenario")}
    found = {key: entailed_by_experts(row, baseline, candidate) for key, row in found.items()}
    found |= {row.key: row for row in library_rows(baseline, candidate)}
    if baseline_facts is not None and candidate_facts is not None:
        for row in _rows(server_settings(baseline_facts), server_settings(candidate_facts), "server"):
            found.setdefault(row.key, row)
        found |= {row.key: row for row in manifest_rows(baseline_facts, candidate_facts)}
    rows = [_as_chosen(row) for row in found.values()] if is_same_checkpoint else list(found.values())
    return tuple(sorted(rows, key=lambda row: KINDS.index(row.kind)))


def confounds(
    baseline: Arm,
    candidate: Arm,
    baseline_facts: ServerFacts | None = None,
    candidate_facts: ServerFacts | None = None,
) -> tuple[Difference, ...]:
    """The differences that mode `matched` refuses."""
    rows = differences(baseline, candidate, baseline_facts, candidate_facts)
    return tuple(row for row in rows if row.kind == CONFOUND)


def refuse_confounds(scenario: Scenario) -> None:
    """In mode matched, raise ScenarioError naming every confound between the arms of a comparison; `where`: the key."""
    if scenario.mode != "matched":
        return
    for spec in scenario.comparisons:
        rows = confounds(scenario.arms[spec.baseline], scenario.arms[spec.candidate])
        if rows:
            raise ScenarioError(
                f"mode matched, but {spec.baseline} and {spec.candidate} differ in more than the checkpoint",
                where=f"arms.{spec.candidate}",
                found="; ".join(f"{row.text} ({row.why})" for row in rows),
                cure="make them equal, or set mode: best-config, which labels them in the report",
            )


def arm_settings(arm: Arm) -> dict[str, str]:
    """The settings of an arm by dotted key, as text; flags and env one by one."""
    values = arm.model_dump()
    flags, env = values.pop("flags"), values.pop("env")
    values["command"] = " ".join(values["command"]) if values["command"] else None
    settings = dict(_flat(values, ARM_KEYS_WITHOUT_EFFECT))
    settings |= {f"flags.{name}": value for name, value in parse_flags(flags).items()}
    return settings | {f"env.{name}": _env_text(name, value) for name, value in env.items()}


def _env_text(name: str, value: str) -> str:
    """The value, or for names of secrets a short digest: enough to see that two of them differ."""
    return f"hidden {hashlib.sha256(value.encode()).hexdigest()[:6]}" if _SECRET.search(name) else value


def server_settings(facts: ServerFacts) -> dict[str, str]:
    """The facts of a server by dotted key, as text; `config` is laid at the top level, unknown facts are left out."""
    known = {
        "engine": facts.engine,
        "version": facts.version,
        "max_model_len": facts.max_model_len,
        "kv_cache_dtype": facts.kv_cache_dtype,
        "kv_capacity_tokens": facts.kv_capacity_tokens,
        "weights_bytes": facts.weights_bytes,
        "gpu_name": facts.gpu_name,
        "quantization": facts.quantization,
        "kernels": facts.kernels,
    }
    told = {key: value for key, value in known.items() if value is not None}
    return dict(_flat(facts.config, SERVER_KEYS_WITHOUT_EFFECT)) | dict(_flat(told, SERVER_KEYS_WITHOUT_EFFECT))


def parse_flags(words: list[str]) -> dict[str, str]:
    """Flags of a command line by name: "--a b c --d=e" gives {"--a": "b c", "--d": "e"}. Repeated ones are joined."""
    flags: dict[str, list[str]] = {}
    name = ""
    for word in words:
        if word.startswith("-") and not word.lstrip("-.").isdigit():
            name, _, value = word.partition("=")
            flags.setdefault(name, []).extend([value] if value else [])
        else:
            flags.setdefault(name, []).append(word)
    return {name: " ".join(values) for name, values in flags.items()}


def _flat(values: Mapping[str, Any], passed_over: Container[str], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if key in passed_over:
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, passed_over, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _text(key, value)


def _text(key: str, value: Any) -> str:
    if value is None:
        return "not set"
    if key.endswith("_bytes") and isinstance(value, int | float):
        return format_bytes(value)
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _rows(baseline: Mapping[str, str], candidate: Mapping[str, str], source: str) -> Iterator[Difference]:
    """Differing keys. A server's key that only one side tells is unknown, not different."""
    keys = [key for key in (*baseline, *candidate) if source == "scenario" or (key in baseline and key in candidate)]
    for key in dict.fromkeys(keys):
        before, after = baseline.get(key, "not set"), candidate.get(key, "not set")
        if before != after:
            kind, why = classify(key)
            yield Difference(
                key=key, baseline=before or "set", candidate=after or "set", kind=kind, why=why, source=source
            )


def classify(key: str) -> tuple[str, str]:
    """(class, why it matters) of a dotted key."""
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        if (entry := _CLASSES.get(".".join(parts[:length]))) is not None:
            return entry
    return _CLASSES[""]


def _as_chosen(row: Difference) -> Difference:
    """With one checkpoint and precision on both sides, what would be entailed is a free choice.

    But for the bytes of the weights: servers measure them at each start, a little differently.
    """
    if row.kind != ENTAILED:
        return row
    if row.key == "weights_bytes":
        return replace(row, kind=CONSEQUENCE, why="as measured at the start; the checkpoint is the same")
    return replace(row, kind=CONFOUND, why="a free choice: both arms have the same checkpoint and precision")
