"""The scenario file's vocabulary of workloads: what is asked. No I/O."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from perfsuite.scenario.fields import MAX_TOKENS, Strict, TokenCount, Tokens, json_trouble
from perfsuite.scenario.session_entry import Cancel, Sessions

TraceFormat = Literal["mooncake", "azure", "burstgpt"]


class SharedPrefix(Strict):
    """The first `tokens` of each prompt are one of `groups` texts; counted inside input_tokens."""

    tokens: Tokens
    groups: int = Field(default=1, ge=1, le=1_000_000)


class Workload(Strict):
    """What is asked.

    random         token lengths and random tokens
    file           prompts from a local JSONL or Parquet file
    trace          lengths, times and shared blocks of a recorded trace, filled with random tokens
    conversations  conversations from a local JSON or JSONL file: the first turn of each, or with `sessions` all of them
    """

    kind: Literal["random", "file", "trace", "conversations"] = "random"
    api: Literal["completions", "chat"] = "completions"
    prompt_as: Literal["token_ids", "text"] = Field(
        default="token_ids", description="token_ids: exact lengths; text: lengths verified against the server's usage"
    )
    input_tokens: TokenCount | None = None
    output_tokens: TokenCount | None = None
    shared_prefix: SharedPrefix | None = None
    sessions: Sessions | None = Field(default=None, description="random and conversations: several turns each")
    cancel: Cancel | None = None
    path: str | None = Field(
        default=None, description="file, trace and conversations: path relative to the scenario file"
    )
    format: TraceFormat | None = Field(default=None, description="trace: the format of the file")
    ignore_eos: bool = Field(
        default=True, description="ask for exactly output_tokens; off for endpoints that refuse it"
    )
    temperature: float = Field(default=0.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    extra_body: dict[str, Any] = Field(default_factory=dict, description="more fields of each request body")

    @model_validator(mode="after")
    def _consistent(self) -> Workload:
        for place, what in json_trouble(self.extra_body):
            raise ValueError(f"extra_body{place}: JSON cannot carry {what}; write it as a text or a number")
        if self.kind != "trace" and self.output_tokens is None:
            raise ValueError("output_tokens is missing")
        if self.kind != "trace" and self.format is not None:
            raise ValueError("format: belongs to workload kind trace")
        if self.kind == "random":
            self._check_random()
        elif self.kind == "trace":
            self._check_trace()
        else:
            self._check_file()
        self._check_cancel()
        return self

    @property
    def longest_prompt_tokens(self) -> int | None:
        """Tokens of the longest prompt: the last turn of a session has all that was said before. None: of a file."""
        if self.input_tokens is None:
            return None
        num_turns = self.sessions.turns.max if self.sessions is not None and self.sessions.turns is not None else 1
        answer_tokens = self.output_tokens.max if self.output_tokens is not None else 0
        return num_turns * self.input_tokens.max + (num_turns - 1) * answer_tokens

    def _check_random(self) -> None:
        if self.input_tokens is None:
            raise ValueError("workload kind random needs input_tokens")
        if self.path is not None:
            raise ValueError("path belongs to workload kinds file, trace and conversations")
        self._check_ids()
        if self.sessions is not None and self.sessions.turns is None:
            raise ValueError("sessions: workload kind random needs turns, such as turns: {min: 2, max: 6}")
        if (self.longest_prompt_tokens or 0) > MAX_TOKENS:
            raise ValueError(f"sessions: the last prompt of a session may have more than {MAX_TOKENS:,} tokens")
        if self.shared_prefix is not None and self.shared_prefix.tokens >= self.input_tokens.min:
            raise ValueError(
                f"shared_prefix.tokens ({self.shared_prefix.tokens}) leaves no fresh token in a prompt of "
                f"input_tokens.min ({self.input_tokens.min})"
            )

    def _check_file(self) -> None:
        if self.path is None:
            raise ValueError(f"workload kind {self.kind} needs path")
        if self.input_tokens is not None or self.shared_prefix is not None:
            raise ValueError("input_tokens and shared_prefix belong to workload kind random: the file has the prompts")
        if self.prompt_as == "token_ids":
            raise ValueError(f"workload kind {self.kind} sends text: set prompt_as: text")
        if self.kind == "file" and self.sessions is not None:
            raise ValueError(
                "sessions: belongs to workload kinds random and conversations; a row of a file is one request"
            )

    def _check_trace(self) -> None:
        for key in ("path", "format"):
            if getattr(self, key) is None:
                raise ValueError(f"workload kind trace needs {key}")
        if self.sessions is not None:
            raise ValueError("sessions: belongs to workload kinds random and conversations; a trace has its own times")
        for key in ("input_tokens", "output_tokens", "shared_prefix"):
            if getattr(self, key) is not None:
                raise ValueError(f"{key}: does not go with workload kind trace: each row of the trace has its own")
        self._check_ids()

    def _check_ids(self) -> None:
        if self.api == "chat" and self.prompt_as == "token_ids":
            raise ValueError("api chat cannot take token ids: set prompt_as: text")

    def _check_cancel(self) -> None:
        if self.cancel is None or self.output_tokens is None:
            return
        if self.cancel.after_tokens.min >= self.output_tokens.max and self.kind == "random":
            raise ValueError(
                f"cancel: after_tokens ({self.cancel.after_tokens.min}) is not below output_tokens "
                f"({self.output_tokens.max}), so nothing would be cancelled"
            )
