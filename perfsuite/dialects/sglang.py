"""SGLang: its OpenAI-compatible API, and its own /generate.

OpenAI API: completions take token ids and, with `return_token_ids`, put the new ids into each chunk (and the prompt's
into the first). Chat refuses `return_token_ids` while streaming, so the running usage tells the tokens of each chunk.
The finish reason comes in a chunk of its own; chunks without choices may follow.

/generate: `text` is all text so far (only the new text with --incremental-streaming-output), `meta_info` has the
tokens so far. `finish_reason` is an object. A failed request ends with type "abort" or an error object.
Source: SGLang 0.5.23, srt/entrypoints (http_server, openai/serving_*), srt/managers/tokenizer_manager,
api/v1; streams of 0.5.23 for the OpenAI API.
"""

from __future__ import annotations

from typing import Any

from perfsuite.dialects import openai
from perfsuite.dialects.dialect import Ask, Dialect, Event, checked, refuse_unknown_fields, wanted_fields

# Fields of `sampling_params`, which refuses others. Those beyond temperature and top_p come from extra_body.
SAMPLING_FIELDS = frozenset(
    {
        "beam_width", "choice", "custom_params", "ebnf", "frequency_penalty", "ignore_eos", "json_schema",
        "logit_bias", "max_new_tokens", "min_new_tokens", "min_p", "n", "no_stop_trim", "presence_penalty", "regex",
        "repetition_penalty", "sampling_seed", "skip_special_tokens", "spaces_between_special_tokens", "stop",
        "stop_regex", "stop_token_ids", "stream_interval", "structural_tag", "temperature", "top_k", "top_p",
        "watermark",
    }
)  # fmt: skip
# Fields beside `sampling_params`; /generate passes over others in silence, which hides a slip of the pen.
GENERATE_FIELDS = frozenset(
    {
        "custom_logit_processor", "extra_key", "input_ids", "logprob_start_len", "lora_path", "priority",
        "return_hidden_states", "return_logprob", "return_text_in_logprobs", "routed_dp_rank", "sampling_params",
        "session_params", "stream", "text", "token_ids_logprob", "top_logprobs_num",
    }
)  # fmt: skip
_GENERATE_TAKES = SAMPLING_FIELDS | GENERATE_FIELDS - {"sampling_params"}


def build_body(ask: Ask) -> dict[str, Any]:
    """The plain body plus what tells the tokens of each chunk, and ignore_eos when exact lengths are asked for."""
    body = openai.build_body(ask)
    if ask.api == "chat":
        body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    else:
        body["return_token_ids"] = True
    if ask.ignore_eos:
        body["ignore_eos"] = True
    return body


def build_generate_body(ask: Ask) -> dict[str, Any]:
    """input_ids or text, stream, sampling_params; each extra field goes where /generate takes it."""
    refuse_unknown_fields(ask, _GENERATE_TAKES, server="SGLang's /generate")
    extra = wanted_fields(ask)
    sampling: dict[str, Any] = {"max_new_tokens": ask.output_tokens, "temperature": ask.temperature, "top_p": ask.top_p}
    if ask.ignore_eos:
        sampling["ignore_eos"] = True
    sampling |= {key: value for key, value in extra.items() if key in SAMPLING_FIELDS}
    body: dict[str, Any] = {"text": ask.prompt} if ask.prompt_ids is None else {"input_ids": ask.prompt_ids}
    body |= {"sampling_params": sampling, "stream": True}
    return body | {key: value for key, value in extra.items() if key not in SAMPLING_FIELDS}


def read_generate_message(message: Any) -> Event:
    """The JSON of one event of /generate. Raises EventError."""
    return checked(message, _read_generate_message)


def _read_generate_message(message: dict[str, Any]) -> Event:
    if message.get("error") is not None:
        return Event(error=openai.error_text(message))
    meta = message["meta_info"]
    n_out = meta["completion_tokens"]
    finish = meta["finish_reason"]
    if finish is not None and finish["type"] == "abort" and finish.get("message"):
        return Event(error=openai.error_text({"code": finish.get("status_code"), "message": finish["message"]}))
    return Event(
        visible=True,
        finish_reason=None if finish is None else finish["type"],
        n_in=meta["prompt_tokens"],
        n_out=n_out,
        text_chars=len(message.get("text") or ""),
        is_running=True,
    )


SGLANG = Dialect(
    name="sglang",
    paths=openai.PATHS,
    extra_fields=frozenset({"ignore_eos", "min_tokens", "return_token_ids"}),
    build_body=build_body,
    read_message=openai.read_message,
    plain_tokens=openai.plain_tokens,
)
SGLANG_GENERATE = Dialect(
    name="sglang-generate",
    paths={"completions": "/generate"},
    extra_fields=frozenset({"ignore_eos", "input_ids", "sampling_params", "text"}),
    build_body=build_generate_body,
    read_message=read_generate_message,
    plain_tokens=lambda message: None,  # each event counts the tokens so far
)
