"""Continuous batching in the manner of vLLM's scheduler: pure, one step at a time.

Each step has a budget of tokens. Running sequences come first, in the order of their admission: one token for a decode,
a chunk for an unfinished prompt. When blocks run out the youngest running sequence is preempted: it loses its blocks,
goes to the head of the queue and will be computed again, generated tokens included. Then waiting sequences are admitted
first come, first served, while sequences, tokens and blocks allow. Without chunked prefill a step is either whole
prompts or decodes.

With a draft, each decode of a sequence verifies `draft_tokens` proposed tokens: it yields one token and as many of the
proposed ones as are accepted, each with the same probability and only after all before it.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from perfsuite.analysis.step_time import Batch, PrefillChunk
from perfsuite.emulator.blocks import BLOCK_TOKENS, BlockPool, num_blocks_for


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    """Limits of the whole deployment. `kv_capacity_tokens` is rounded down to whole blocks. draft_tokens: proposed for
    each decode, 0 = no speculation; each is accepted with probability draft_accept_ratio, drawn from `seed`.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    kv_capacity_tokens: int
    chunked_prefill: bool = True
    prefix_cache: bool = False
    draft_tokens: int = 0
    draft_accept_ratio: float = 0.7
    seed: int = 0


class Generation:
    """One request inside the scheduler: mutable progress in tokens.

    prompt_tokens, output_tokens  what it has and what it will produce
    block_hashes                  chained hash of each full prompt block; empty without a prefix cache
    num_generated                 tokens produced so far
    num_computed                  tokens whose cache entries exist
    num_cached                    prompt tokens found in the prefix cache at the first admission
    num_new, num_iterations       tokens that the last step yielded; steps that yielded some
    """

    __slots__ = (
        "block_hashes",
        "num_cached",
        "num_computed",
        "num_generated",
        "num_iterations",
        "num_new",
        "num_preemptions",
        "output_tokens",
        "private_blocks",
        "prompt_tokens",
        "shared_blocks",
    )

    def __init__(self, *, prompt_tokens: int, output_tokens: int, block_hashes: Sequence[int] = ()) -> None:
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.block_hashes = tuple(block_hashes)
        self.num_generated = 0
        self.num_computed = 0
        self.num_cached = 0
        self.num_preemptions = 0
        self.num_new = self.num_iterations = 0
        self.private_blocks = 0
        self.shared_blocks: list[int] = []

    @property
    def num_tokens(self) -> int:
        """Prompt and generated tokens: what must be computed before the next token appears."""
        return self.prompt_tokens + self.num_generated

    @property
    def is_finished(self) -> bool:
        """All tokens have been produced."""
        return self.num_generated >= self.output_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One scheduled step: `scheduled` pairs each sequence with its tokens in this step; `batch` is its cost's input."""

    scheduled: tuple[tuple[Generation, int], ...]
    batch: Batch

    @property
    def num_tokens(self) -> int:
        """Tokens of the step."""
        return sum(count for _, count in self.scheduled)


class Scheduler:
    """See the module. `add`, then `schedule` and `complete` in turn; `abort` at any time, also between the two."""

    def __init__(self, limits: SchedulerLimits) -> None:
        self.limits = limits
        self.waiting: deque[Generation] = deque()
        self.running: list[Generation] = []
        self.pool = BlockPool(limits.kv_capacity_tokens // BLOCK_TOKENS)
        self.num_preemptions = 0
        self.num_cached_tokens = 0
        self.num_queried_tokens = 0
        self.kv_usage_max_ratio = 0.0
        self.num_drafts = self.num_draft_tokens = self.num_accepted_tokens = 0
        self._random = random.Random(f"perfsuite draft {limits.seed}")

    def add(self, generation: Generation) -> None:
        """Queue a request. Raises ValueError if it could never run within the limits."""
        total = generation.prompt_tokens + generation.output_tokens
        if num_blocks_for(total) > self.pool.num_blocks:
            raise ValueError(f"{total} tokens do not fit in a cache of {self.pool.num_blocks * BLOCK_TOKENS}")
        if not self.limits.chunked_prefill and total > self.limits.max_num_batched_tokens:
            raise ValueError(f"{total} tokens do not fit in a step of {self.limits.max_num_batched_tokens}")
        if generation.prompt_tokens < 1 or generation.output_tokens < 1:
            raise ValueError("a request needs at least one prompt token and one output token")
        self.waiting.append(generation)

    def abort(self, generation: Generation) -> None:
        """Forget a request, wherever it is; one that is already gone is ignored."""
        if generation in self.running:
            self.running.remove(generation)
            self._release(generation)
        elif generation in self.waiting:
            self.waiting.remove(generation)

    @property
    def kv_usage_ratio(self) -> float:
        """Share of the blocks held by sequences, 0..1."""
        return self.pool.num_used / self.pool.num_blocks

    def schedule(self) -> Step | None:
        """The next step, or None if nothing can run (then nothing waits either)."""
        chosen: dict[Generation, int] = {}
        if self.limits.chunked_prefill:
            preempted = self._continue_running(chosen)
            if not preempted:
                self._admit(chosen)
        else:
            self._admit(chosen)
            if not chosen:
                self._continue_running(chosen)
        self.kv_usage_max_ratio = max(self.kv_usage_max_ratio, self.kv_usage_ratio)
        return _step(chosen, self._num_drafted) if chosen else None

    def complete(self, step: Step) -> list[Generation]:
        """Book the step as computed; the sequences that produced tokens, in order; finished ones are released."""
        produced = []
        for generation, count in step.scheduled:
            if generation.private_blocks + len(generation.shared_blocks) == 0:
                continue  # aborted in the meantime
            generation.num_computed += count
            if self.limits.prefix_cache:
                self._publish(generation)
            if generation.num_computed < generation.num_tokens:
                continue
            self._produce(generation)
            produced.append(generation)
        self._drop_finished(produced)
        return produced

    def _produce(self, generation: Generation) -> None:
        """One more token, and the proposed ones that are accepted, whose cache entries exist already."""
        accepted = 0
        drafted = self._num_drafted(generation)
        if drafted:
            while accepted < drafted and self._random.random() < self.limits.draft_accept_ratio:
                accepted += 1
            self.num_drafts += 1
            self.num_draft_tokens += drafted
            self.num_accepted_tokens += accepted
        generation.num_new = 1 + accepted
        generation.num_iterations += 1
        generation.num_generated += generation.num_new
        generation.num_computed += accepted

    def _num_drafted(self, generation: Generation) -> int:
        """Tokens proposed in a decode: none for the first token, and none beyond the last."""
        if generation.num_generated == 0:
            return 0
        return max(0, min(self.limits.draft_tokens, generation.output_tokens - generation.num_generated - 1))

    def _drop_finished(self, produced: Sequence[Generation]) -> None:
        finished = [generation for generation in produced if generation.is_finished]
        if finished:
            self.running = [generation for generation in self.running if not generation.is_finished]
        for generation in finished:
            self._release(generation)

    def _continue_running(self, chosen: dict[Generation, int]) -> bool:
        """Give each running sequence its tokens; True if one had to be preempted."""
        budget = self.limits.max_num_batched_tokens
        preempted = False
        index = 0
        while index < len(self.running) and budget > 0:
            generation = self.running[index]
            count = min(generation.num_tokens - generation.num_computed, budget)
            while not self._reserve(generation, count + self._num_drafted(generation)):
                preempted = True
                if self._preempt_youngest() is generation:
                    return True
            chosen[generation] = count
            budget -= count
            index += 1
        return preempted

    def _admit(self, chosen: dict[Generation, int]) -> None:
        budget = self.limits.max_num_batched_tokens - sum(chosen.values())
        while self.waiting and len(self.running) < self.limits.max_num_seqs and budget > 0:
            generation = self.waiting[0]
            hits = self._cached_blocks(generation)
            needed = generation.num_tokens - len(hits) * BLOCK_TOKENS
            if not self.limits.chunked_prefill and needed > budget:
                return
            count = min(needed, budget)
            if not self._reserve_new(generation, hits, count):
                return
            self.waiting.popleft()
            self.running.append(generation)
            chosen[generation] = count
            budget -= count

    def _reserve(self, generation: Generation, count: int) -> bool:
        """Blocks for `count` more tokens of a running sequence; False if there are too few."""
        wanted = num_blocks_for(generation.num_computed + count)
        missing = wanted - generation.private_blocks - len(generation.shared_blocks)
        if missing > 0:
            if not self.pool.take(missing):
                return False
            generation.private_blocks += missing
        return True

    def _reserve_new(self, generation: Generation, hits: Sequence[int], count: int) -> bool:
        """Share the cached blocks and take the others; on failure nothing is held."""
        self.pool.share(hits)
        generation.shared_blocks = list(hits)
        generation.num_computed = len(hits) * BLOCK_TOKENS
        if not self._reserve(generation, count):
            self._release(generation)
            return False
        if self.limits.prefix_cache and generation.num_preemptions == 0:
            generation.num_cached = generation.num_computed
            self.num_cached_tokens += generation.num_computed
            self.num_queried_tokens += generation.prompt_tokens
        return True

    def _cached_blocks(self, generation: Generation) -> Sequence[int]:
        """Hashes of the leading prompt blocks in the cache; at least one token is left to compute."""
        if not self.limits.prefix_cache:
            return ()
        usable = generation.block_hashes[: (generation.num_tokens - 1) // BLOCK_TOKENS]
        return usable[: self.pool.num_cached(usable)]

    def _publish(self, generation: Generation) -> None:
        """Enter the prompt blocks that are now complete into the prefix cache."""
        complete = min(generation.num_computed // BLOCK_TOKENS, len(generation.block_hashes))
        while len(generation.shared_blocks) < complete and generation.private_blocks > 0:
            block_hash = generation.block_hashes[len(generation.shared_blocks)]
            if self.pool.publish(block_hash):
                generation.private_blocks -= 1
            else:  # computed twice at the same time: use the cached copy and free the own one
                self.pool.share([block_hash])
                self.pool.give_back(1, ())
                generation.private_blocks -= 1
            generation.shared_blocks.append(block_hash)

    def _preempt_youngest(self) -> Generation:
        victim = self.running.pop()
        self._release(victim)
        victim.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting.appendleft(victim)
        return victim

    def _release(self, generation: Generation) -> None:
        self.pool.give_back(generation.private_blocks, generation.shared_blocks)
        generation.private_blocks = 0
        generation.shared_blocks = []
        generation.num_computed = 0


def _step(chosen: dict[Generation, int], num_drafted: Callable[[Generation], int]) -> Step:
    prefill = []
    decodes = []
    for generation, count in chosen.items():
        if count == 1 and generation.num_generated > 0 and generation.num_computed == generation.num_tokens - 1:
            drafted = num_drafted(generation)
            if drafted:  # the proposed tokens pass through the model with the last one
                prefill.append(PrefillChunk(num_tokens=1 + drafted, context=generation.num_computed))
            else:
                decodes.append(generation.num_computed)
        else:
            prefill.append(PrefillChunk(num_tokens=count, context=generation.num_computed))
    return Step(scheduled=tuple(chosen.items()), batch=Batch(prefill=prefill, decode_contexts=decodes))
