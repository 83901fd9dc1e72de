"""The prompts that the request specs stand for. Pure: the same seed gives the same prompt on every machine.

Random numbers come from SHAKE-128 (FIPS 202) of the seed: no library's version can change them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from perfsuite.scenario.schema import Slo

TRACE_BLOCK_TOKENS = 512  # tokens of one hash id of a Mooncake trace
_SEED_BITS = 64
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRow:
    """One row of a prompt file: a prompt or a list of chat messages; output_tokens overrides the scenario's.

    slo         limits that go over those of the scenario, one by one
    extra_body  more fields of the request body; they go over those of the scenario
    """

    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    output_tokens: int | None = None
    slo: Slo | None = None
    extra_body: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRows:
    """The rows of a prompt file, in file order."""

    rows: tuple[PromptRow, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, numbers: NDArray[np.int64]) -> PromptRows:
        """These rows, in this order."""
        return PromptRows(rows=tuple(self.rows[number] for number in numbers.tolist()))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TraceRows:
    """The rows of a trace, in file order, as columns of shape (num_rows,).

    t_ns           int64, when the request came, after the first one; non-decreasing
    input_tokens   int32
    output_tokens  int32
    block_start    int64, shape (num_rows + 1,): the blocks of row i are block_id[block_start[i]:block_start[i + 1]]
    block_id       int64: prompts that begin with the same ids begin with the same TRACE_BLOCK_TOKENS tokens for each;
                   whole blocks only, what a prompt has beyond them is fresh
    """

    t_ns: NDArray[np.int64]
    input_tokens: NDArray[np.int32]
    output_tokens: NDArray[np.int32]
    block_start: NDArray[np.int64]
    block_id: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.t_ns)

    def blocks(self, row: int) -> NDArray[np.int64]:
        """The ids of the whole blocks of a row."""
        return self.block_id[self.block_start[row] : self.block_start[row + 1]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What a user says, and the answer that the file has. answer_tokens: how long it is, where the file tells."""

    user: str
    answer: str | None = None
    answer_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """One conversation of a file: at least one turn. system: the instructions before it; None = none."""

    turns: tuple[Turn, ...]
    system: str | None = None
    slo: Slo | None = None
    extra_body: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ConversationRows:
    """The conversations of a file, in file order, and columns of them.

    turn_start     int64, shape (num_rows + 1,): the turns of row i are output_tokens[turn_start[i]:turn_start[i + 1]]
    output_tokens  int32, length of each given answer; 0 where the file does not tell
    num_left_out   conversations of the file in which no user says anything
    """

    rows: tuple[Conversation, ...]
    turn_start: NDArray[np.int64]
    output_tokens: NDArray[np.int32]
    num_left_out: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_turns(self) -> NDArray[np.int64]:
        """Turns of each conversation, shape (num_rows,)."""
        return np.diff(self.turn_start)

    def at(self, numbers: NDArray[np.int64]) -> ConversationRows:
        """These rows, in this order."""
        return conversation_rows([self.rows[number] for number in numbers.tolist()], num_left_out=self.num_left_out)


def conversation_rows(rows: Sequence[Conversation], *, num_left_out: int = 0) -> ConversationRows:
    """Conversations with their columns."""
    return ConversationRows(
        rows=tuple(rows),
        turn_start=np.cumsum([0, *(len(row.turns) for row in rows)], dtype=np.int64),
        output_tokens=np.array([turn.answer_tokens or 0 for row in rows for turn in row.turns], dtype=np.int32),
        num_left_out=num_left_out,
    )


FileRows = PromptRows | TraceRows | ConversationRows


def ordinary_token_range(vocab_size: int) -> tuple[int, int]:
    """[low, high) of token ids that are words in every tokenizer with that many: neither special nor unused.

    Left out: the first 1,000 (control and byte tokens come first) or, in a small vocabulary, its first tenth; and the
    last hundredth (added special tokens and padding come last: 128,000 of DeepSeek's 129,280 and of Llama 3's 128,256).
    """
    return min(1000, vocab_size // 10), vocab_size - max(1, vocab_size // 100)


def prompt_token_ids(
    seed: int,
    num_tokens: int,
    prefix_seed: int = 0,
    prefix_tokens: int = 0,
    vocab_size: int = 32_000,
    *,
    blocks: NDArray[np.int64] | None = None,
) -> NDArray[np.int32]:
    """Token ids, int32, shape (num_tokens,): the shared prefix (prefix_tokens of them), then fresh ones.

    The first fresh ids are the digits of the seed, so two requests of different seeds share no more than the prefix.
    blocks: the prefix is made of these blocks of a trace; equal ids give equal blocks under one prefix_seed only.
    """
    low, high = ordinary_token_range(vocab_size)
    return (_numbers(seed, num_tokens, prefix_seed, prefix_tokens, high - low, blocks) + low).astype(np.int32)


def prompt_text(
    seed: int,
    num_tokens: int,
    prefix_seed: int = 0,
    prefix_tokens: int = 0,
    *,
    blocks: NDArray[np.int64] | None = None,
) -> str:
    """num_tokens common English words, about one token each, made as `prompt_token_ids` makes its ids."""
    numbers = _numbers(seed, num_tokens, prefix_seed, prefix_tokens, len(WORDS), blocks)
    return " ".join(WORDS[number] for number in numbers.tolist())


def _numbers(
    seed: int, num: int, prefix_seed: int, num_prefix: int, below: int, blocks: NDArray[np.int64] | None
) -> NDArray[np.int64]:
    """Prefix and fresh part of a prompt as integers in [0, below), shape (num,)."""
    if not num_prefix and blocks is None:
        return _draw(seed, num, below)
    prefix = _draw(prefix_seed, num_prefix, below) if blocks is None else _draw_blocks(prefix_seed, blocks, below)
    return np.concatenate([prefix, _draw(seed, num - len(prefix), below)])


def _draw_blocks(prefix_seed: int, block_ids: NDArray[np.int64], below: int) -> NDArray[np.int64]:
    """TRACE_BLOCK_TOKENS integers in [0, below) for each block id, shape (num_blocks × TRACE_BLOCK_TOKENS,).

    A block's seed is a bijection of its id, and its first integers are the digits of the seed, as in `_draw`.
    """
    seeds = _mix(block_ids.astype(np.uint64) + np.array([prefix_seed], dtype=np.uint64))
    raw = _mix(seeds[:, None] + np.arange(1, TRACE_BLOCK_TOKENS + 1, dtype=np.uint64) * _GOLDEN)
    out = ((raw >> np.uint64(32)) * np.uint64(below) >> np.uint64(32)).astype(np.int64)
    for column in range(len(_digits(0, below))):
        seeds, out[:, column] = np.divmod(seeds, np.uint64(below))
    return out.ravel()


def _mix(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's output function: a bijection of 64-bit integers."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def _draw(seed: int, num: int, below: int) -> NDArray[np.int64]:
    """`num` integers in [0, below), shape (num,): first the digits of the seed in base `below`, then random ones."""
    stream = hashlib.shake_128(seed.to_bytes(_SEED_BITS // 8, "little")).digest(4 * num)
    out = np.frombuffer(stream, dtype="<u4").astype(np.int64) * below >> 32
    digits = _digits(seed, below)[:num]
    out[: len(digits)] = digits
    return out


def _digits(seed: int, base: int) -> list[int]:
    """All digits of a 64-bit seed, the lowest first: an injection, so different seeds differ in one of them."""
    digits = []
    largest = (1 << _SEED_BITS) - 1
    while largest:
        seed, digit = divmod(seed, base)
        largest //= base
        digits.append(digit)
    return digits


# 256 common words: each is one token, with its leading space, in the vocabularies of GPT, Llama and DeepSeek.
_WORDS_TEXT = """
able about above across act add after again age ago air all almost along also always among and animal another answer
any appear area arm art ask back ball bank base bear beat bed been before begin behind best better big bird bit black
blood blue board boat body book both box boy bring brown build burn busy buy call came can capital car card care carry
case cat cause cell center chair chance change chart check child choose church circle city class clean clear climb
clock close cloud coast cold color come common company compare complete control cook cool copy corn corner cost count
country course cover cross crowd cry current cut dance dark day dead deal dear deep design desk die difference dinner
direct do doctor dog dollar door double down draw dream dress drink drive drop dry during each ear early earth east
easy eat edge egg eight electric end energy engine enough enter equal even evening event ever every exact example eye
face fact fair fall family far farm fast father favor fear feel feet few field fight figure fill film final find fine
finger finish fire first fish fit five flat floor flow flower fly follow food foot force forest form forward found
four free fresh friend front fruit full game garden gas gather gave general gentle girl give glad glass gold gone good
grand grass great green ground group grow guess guide gun hair half hand happen happy hard hat head hear heart heat
heavy help here high hill history
"""
WORDS = tuple(_WORDS_TEXT.split())
