"""Raw flags that would go round a key of the arm, which is what arms are compared by. Pure.

For each engine: every name of every flag that its launcher writes, and of flags that undo them. Names: `vllm serve
--help` of 0.32 and 0.33, sglang.launch_server of 0.5.10 to 0.5.23, commands/serve.py of TensorRT-LLM 1.2 to 1.4.0rc2.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from perfsuite.errors import ScenarioError

# Flags that no key of the arm stands for, and yet are not to be given raw: kind → what to do instead.
_ADDRESS, _FILE, _NODES, _SEED = "(address)", "(file)", "(nodes)", "(seed)"
_CURES = {
    _ADDRESS: "leave it out: perfsuite chooses host and port",
    _FILE: "write its settings in the arm: a file of settings goes round every key",
    _NODES: "leave it out: what parallelism cannot say, and several nodes, are started by hand and attached to",
    _SEED: "write seed at the top of the scenario: each start gets another one that follows from it",
}
# engine → key of the arm → names of its flags. "--no-X" is the same flag as "--X", "_" the same as "-".
OWN_FLAGS: dict[str, dict[str, str]] = {
    "vllm": {
        _ADDRESS: "--host --port --uds",
        _FILE: "--config",
        _NODES: "--nnodes -n --node-rank -r --prefill-context-parallel-size -pcp",
        _SEED: "--seed",
        "checkpoint": "--model",
        "served_name": "--served-model-name",
        "parallelism.tensor": "--tensor-parallel-size -tp",
        "parallelism.pipeline": "--pipeline-parallel-size -pp",
        "parallelism.data": "--data-parallel-size -dp --data-parallel-size-local -dpl",
        "parallelism.expert": "--enable-expert-parallel -ep",
        "kv_cache_dtype": "--kv-cache-dtype",
        "max_num_seqs": "--max-num-seqs",
        "max_num_batched_tokens": "--max-num-batched-tokens",
        "max_model_len": "--max-model-len",
        "gpu_memory_fraction": "--gpu-memory-utilization --device-memory-utilization",
        "prefix_cache": "--enable-prefix-caching",
        "chunked_prefill": "--enable-chunked-prefill",
        "cuda_graphs": "--enforce-eager",
        "cuda_graph_max_batch": "--max-cudagraph-capture-size",
        "moe_backend": "--moe-backend --kernel-config.moe-backend",
        "attention_backend": "--attention-backend --attention-config.backend -ac.backend",
        "speculation": "--speculative-config -sc --spec-method --spec-model --spec-tokens",
        "load_format": "--load-format",
        "tokenizer": "--tokenizer",
        "custom_tokenizer": "--tokenizer-mode",
        "trust_remote_code": "--trust-remote-code",
        "reasoning_parser": "--reasoning-parser",
        "stream_interval": "--stream-interval",
    },
    "sglang": {
        _ADDRESS: "--host --port",
        _FILE: "--config",
        _NODES: "--nnodes --node-rank",
        _SEED: "--random-seed",
        "checkpoint": "--model-path --model",
        "served_name": "--served-model-name",
        "parallelism.tensor": "--tp-size --tp --tensor-parallel-size",
        "parallelism.pipeline": "--pp-size --pp --pipeline-parallel-size",
        "parallelism.data": "--dp-size --dp --data-parallel-size",
        "parallelism.attention_data": "--attn-dp-size --attention-data-parallel-size --enable-dp-attention",
        "parallelism.expert_size": "--ep-size --ep --expert-parallel-size",
        "kv_cache_dtype": "--kv-cache-dtype",
        "max_num_seqs": "--max-running-requests",
        "max_num_batched_tokens": "--chunked-prefill-size",
        "max_model_len": "--context-length",
        "gpu_memory_fraction": "--mem-fraction-static",
        "prefix_cache": "--disable-radix-cache",
        "cuda_graphs": "--disable-decode-cuda-graph --disable-cuda-graph",
        "cuda_graph_max_batch": "--cuda-graph-max-bs-decode --cuda-graph-max-bs",
        "moe_backend": "--moe-runner-backend",
        "attention_backend": "--attention-backend",
        "speculation": "--speculative-algorithm --speculative-num-steps --speculative-eagle-topk "
        "--speculative-num-draft-tokens",
        "load_format": "--load-format",
        "tokenizer": "--tokenizer-path",
        "trust_remote_code": "--trust-remote-code",
        "reasoning_parser": "--reasoning-parser",
        "stream_interval": "--stream-interval",
    },
    "trtllm": {
        _ADDRESS: "--host --port",
        _FILE: "--config --extra_llm_api_options --set",
        _NODES: "--cp_size --context_parallel_size",
        "served_name": "--served_model_name",
        "parallelism.tensor": "--tp_size --tensor_parallel_size",
        "parallelism.pipeline": "--pp_size --pipeline_parallel_size",
        "parallelism.expert_size": "--ep_size --moe_expert_parallel_size",
        "kv_cache_dtype": "--kv_cache_dtype",
        "max_num_seqs": "--max_batch_size",
        "max_num_batched_tokens": "--max_num_tokens",
        "max_model_len": "--max_seq_len",
        "gpu_memory_fraction": "--free_gpu_memory_fraction --kv_cache_free_gpu_memory_fraction",
        "chunked_prefill": "--enable_chunked_prefill",
        "tokenizer": "--tokenizer",
        "custom_tokenizer": "--custom_tokenizer",
        "trust_remote_code": "--trust_remote_code",
        "reasoning_parser": "--reasoning_parser",
    },
    "emulated": {
        "parallelism.attention_data": "--attention-data",
        "parallelism.expert": "--expert",
        "max_num_seqs": "--max-num-seqs",
        "max_num_batched_tokens": "--max-num-batched-tokens",
        "max_model_len": "--max-model-len",
        "gpu_memory_fraction": "--gpu-memory-fraction",
        "prefix_cache": "--prefix-cache",
        "chunked_prefill": "--chunked-prefill",
        "stream_interval": "--stream-interval",
        "speculation": "--draft-tokens",
        "emulator": "--dialect --draft-accept-ratio --step-time --truth-log --counter-jitter --counter-reset "
        "--gpu-read-min --gpu-read-max",
    },
}
_CUT_SHORT = ("vllm", "sglang", "emulated")  # their parsers take the beginning of a flag, where only one begins so
_FLAG = re.compile(r"--?[A-Za-z]")


def refuse_own_flags(words: Sequence[str], written: Iterable[str], *, engine: str, where: str) -> None:
    """Raises ScenarioError for the first raw flag that a key of the arm stands for, or that perfsuite writes itself.

    written: the launcher's own words; a flag in them would be given twice.
    """
    keys = {_plain(flag): key for key, flags in OWN_FLAGS[engine].items() for flag in flags.split()}
    given = {_plain(name) for name in flag_names(written)}
    for name in flag_names(words):
        key = _key_of(_plain(name), keys, may_be_cut=engine in _CUT_SHORT)
        if key is None and _plain(name) not in given:
            continue
        cure = _CURES.get(key or "") or f"write {key} in the arm, so that differences between arms are seen"
        has_key = key is not None and key not in _CURES
        raise ScenarioError(
            f"{name} has a key of its own" if has_key else f"{name} is perfsuite's to give, or not at all",
            where=where,
            found=name,
            cure=cure if key is not None else "leave it out: perfsuite writes it on every start like this",
        )


def flag_names(words: Iterable[str]) -> Iterator[str]:
    """The flags among the words of a command line, without their values: "--a=b" gives "--a"."""
    return (word.partition("=")[0] for word in words if _FLAG.match(word))


def _plain(name: str) -> str:
    """One spelling of a flag: dashes for underscores, without the "no" that turns it off."""
    name = name.replace("_", "-")
    return "--" + name.removeprefix("--no-") if name.startswith("--no-") else name


def _key_of(name: str, keys: Mapping[str, str], *, may_be_cut: bool) -> str | None:
    """The key that a flag stands for: by its name, by the option that it sets a part of, or cut short."""
    found = keys.get(name) or keys.get(name.partition(".")[0])
    if found is None and may_be_cut:
        found = next((key for flag, key in keys.items() if flag.startswith(name) and "." not in flag), None)
    return found
