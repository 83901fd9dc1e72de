"""TensorRT-LLM's OpenAI-compatible API (trtllm-serve): a body with one unknown field is refused with status 400.

Both stream options are sent, since what is left out is true or false depending on the version. The running usage tells
the tokens of each chunk with the text unchanged; `detokenize: false` in extra_body replaces text by token ids.
The first chat chunk, a role without a token, is flushed together with the first token. Keys that are null are left out,
`reasoning_content` may be an empty string, and chunks with a token and no text occur. There is no error event: a failed
request ends with a dropped connection or with a finish reason of its own (timeout, cancelled).
Source: TensorRT-LLM, serve/openai_protocol.py and serve/postprocess_handlers.py of about 1.2 and of 2026 main. No
stream was captured from a running server.
"""

from __future__ import annotations

from typing import Any

from perfsuite.dialects import openai
from perfsuite.dialects.dialect import Ask, Dialect, refuse_unknown_fields

# Fields of versions 1.2 to 2026 main together; an older server answers a newer field with status 400.
_BOTH = frozenset(
    {
        "add_special_tokens", "best_of", "conversation_params", "disaggregated_params", "early_stopping", "echo",
        "frequency_penalty", "ignore_eos", "include_stop_str_in_output", "length_penalty", "logit_bias", "logprobs",
        "lora_request", "max_tokens", "min_p", "min_tokens", "model", "n", "presence_penalty", "priority",
        "prompt_ignore_length", "repetition_penalty", "response_format", "seed", "skip_special_tokens",
        "spaces_between_special_tokens", "stop", "stop_token_ids", "stream", "stream_options", "temperature",
        "thinking_token_budget", "top_k", "top_p", "top_p_min", "truncate_prompt_tokens", "use_beam_search", "user",
    }
)  # fmt: skip
FIELDS = {
    "completions": _BOTH | {"detokenize", "prompt", "return_context_logits"},
    "chat": _BOTH
    | {
        "add_generation_prompt", "agent_hierarchy", "cache_salt", "chat_template", "chat_template_kwargs", "documents",
        "max_completion_tokens", "media_io_kwargs", "messages", "mm_processor_kwargs", "prompt_token_ids",
        "reasoning_effort", "thinking", "tool_choice", "tools", "top_logprobs",
    },
}  # fmt: skip


def build_body(ask: Ask) -> dict[str, Any]:
    """The plain body, the usage in each chunk, and ignore_eos when exact lengths are asked for."""
    refuse_unknown_fields(ask, FIELDS[ask.api], server="TensorRT-LLM")
    body = openai.build_body(ask)
    body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    if ask.ignore_eos:
        body["ignore_eos"] = True
    return body


TRTLLM = Dialect(
    name="trtllm",
    paths=openai.PATHS,
    extra_fields=frozenset({"ignore_eos", "min_tokens"}),
    build_body=build_body,
    read_message=openai.read_message,
    plain_tokens=openai.plain_tokens,
)
