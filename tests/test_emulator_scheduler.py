"""The emulated engine's scheduler, cache blocks, step times and power: pure, so tested without a clock."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfsuite.analysis.step_time import Batch
from perfsuite.emulator.api import ModelLimits, parse_request
from perfsuite.emulator.blocks import BLOCK_TOKENS, BlockPool, num_blocks_for
from perfsuite.emulator.config import EmulatorConfig, deploy
from perfsuite.emulator.device import PowerMeter, StepTimer, step_power_w
from perfsuite.emulator.realtime import Engine
from perfsuite.emulator.scheduler import Generation, Scheduler, SchedulerLimits, Step
from perfsuite.emulator.sse import Answer
from perfsuite.emulator.stream import Stream
from perfsuite.emulator.vllm import WORDING
from perfsuite.emulator.words import block_hashes
from perfsuite.errors import UsageError
from perfsuite.library import find_gpu

B200 = find_gpu("b200")


def _limits(seqs: int = 8, tokens: int = 64, cache: int = 4096, **more: bool) -> SchedulerLimits:
    return SchedulerLimits(max_num_seqs=seqs, max_num_batched_tokens=tokens, kv_capacity_tokens=cache, **more)


def _play(scheduler: Scheduler, max_steps: int = 100_000) -> tuple[list[Step], list[Generation]]:
    """Run until nothing is left: all steps, and the sequences in the order in which they finished."""
    steps: list[Step] = []
    finished: list[Generation] = []
    while (step := scheduler.schedule()) is not None:
        steps.append(step)
        finished += [generation for generation in scheduler.complete(step) if generation.is_finished]
        assert len(steps) < max_steps
    return steps, finished


sizes = st.lists(st.tuples(st.integers(1, 150), st.integers(1, 40)), min_size=1, max_size=25)


@settings(max_examples=120, deadline=None)
@given(
    requests=sizes,
    seqs=st.integers(1, 10),
    tokens=st.integers(1, 200),
    blocks=st.integers(12, 60),
    prefix_cache=st.booleans(),
)
def test_no_limit_is_exceeded_and_every_request_gets_exactly_its_tokens(
    requests: list[tuple[int, int]], seqs: int, tokens: int, blocks: int, prefix_cache: bool
) -> None:
    scheduler = Scheduler(_limits(seqs, tokens, blocks * BLOCK_TOKENS, prefix_cache=prefix_cache))
    added = []
    for prompt, output in requests:
        hashes = block_hashes([7] * prompt, BLOCK_TOKENS)
        added.append(Generation(prompt_tokens=prompt, output_tokens=output, block_hashes=hashes))
        scheduler.add(added[-1])
    num_steps = 0
    while (step := scheduler.schedule()) is not None:
        num_steps += 1
        assert 1 <= step.num_tokens <= tokens and step.num_tokens == step.batch.num_tokens
        assert len(scheduler.running) <= seqs
        assert 0 <= scheduler.pool.num_used <= blocks
        for generation, _ in step.scheduled:
            held = generation.private_blocks + len(generation.shared_blocks)
            assert held * BLOCK_TOKENS >= generation.num_computed
        scheduler.complete(step)
        assert num_steps < 200_000
    assert [generation.num_generated for generation in added] == [output for _, output in requests]
    assert not scheduler.waiting and not scheduler.running and scheduler.pool.num_used == 0


@settings(max_examples=60, deadline=None)
@given(requests=sizes, seqs=st.integers(1, 10))
def test_without_chunked_prefill_a_step_is_prompts_or_decodes_and_prompts_stay_whole(
    requests: list[tuple[int, int]], seqs: int
) -> None:
    scheduler = Scheduler(_limits(seqs, 200, 30 * BLOCK_TOKENS, chunked_prefill=False))
    for prompt, output in requests:
        scheduler.add(Generation(prompt_tokens=prompt, output_tokens=output))
    steps, finished = _play(scheduler)
    assert len(finished) == len(requests)
    for step in steps:
        assert not (step.batch.prefill and step.batch.decode_contexts)
        assert all(chunk.context == 0 for chunk in step.batch.prefill)
        assert step.num_tokens <= 200


@settings(max_examples=60, deadline=None)
@given(requests=sizes, gone=st.sets(st.integers(0, 24)), when=st.integers(0, 30))
def test_aborted_requests_give_their_blocks_back_and_the_others_complete(
    requests: list[tuple[int, int]], gone: set[int], when: int
) -> None:
    scheduler = Scheduler(_limits(4, 32, 30 * BLOCK_TOKENS))
    added = [Generation(prompt_tokens=prompt, output_tokens=output) for prompt, output in requests]
    for generation in added:
        scheduler.add(generation)
    for _ in range(when):
        if (step := scheduler.schedule()) is not None:
            scheduler.complete(step)
    step = scheduler.schedule()
    for index in gone & set(range(len(added))):
        scheduler.abort(added[index])
    if step is not None:
        assert not {added.index(generation) for generation in scheduler.complete(step)} & gone
    _play(scheduler)
    assert scheduler.pool.num_used == 0
    for index, generation in enumerate(added):
        assert index in gone or generation.is_finished


def test_requests_are_admitted_first_come_first_served() -> None:
    scheduler = Scheduler(_limits(seqs=2))
    added = [Generation(prompt_tokens=10, output_tokens=5) for _ in range(6)]
    for generation in added:
        scheduler.add(generation)
    _, finished = _play(scheduler)
    assert finished == added


def test_decodes_come_before_prompts_and_a_prompt_takes_what_is_left_of_the_budget() -> None:
    scheduler = Scheduler(_limits(tokens=64))
    scheduler.add(Generation(prompt_tokens=10, output_tokens=9))
    step = scheduler.schedule()
    assert step is not None
    scheduler.complete(step)
    scheduler.add(Generation(prompt_tokens=100, output_tokens=2))
    shapes = []
    for _ in range(3):
        step = scheduler.schedule()
        assert step is not None
        shapes.append((list(step.batch.decode_contexts), [(c.num_tokens, c.context) for c in step.batch.prefill]))
        scheduler.complete(step)
    assert shapes == [([10], [(63, 0)]), ([11], [(37, 63)]), ([12, 100], [])]


def test_a_short_cache_preempts_the_youngest_which_is_computed_again_and_completes() -> None:
    scheduler = Scheduler(_limits(seqs=4, tokens=256, cache=6 * BLOCK_TOKENS))
    old = Generation(prompt_tokens=30, output_tokens=40)
    young = Generation(prompt_tokens=30, output_tokens=40)
    scheduler.add(old)
    scheduler.add(young)
    steps, finished = _play(scheduler)
    assert scheduler.num_preemptions >= 1
    assert old.num_preemptions == 0 and young.num_preemptions == scheduler.num_preemptions
    assert finished == [old, young]
    recomputed = [chunk for step in steps for chunk in step.batch.prefill if chunk.num_tokens > 30]
    assert recomputed, "the preempted sequence computes its prompt and its generated tokens again"


def test_no_preemption_happens_while_the_cache_is_large_enough() -> None:
    scheduler = Scheduler(_limits(seqs=4, tokens=256, cache=4 * 5 * BLOCK_TOKENS))
    for _ in range(8):
        scheduler.add(Generation(prompt_tokens=30, output_tokens=40))
    _play(scheduler)
    assert scheduler.num_preemptions == 0
    assert scheduler.kv_usage_max_ratio == pytest.approx(1.0)


def test_a_request_that_could_never_run_is_refused_at_once() -> None:
    scheduler = Scheduler(_limits(cache=64))
    with pytest.raises(ValueError, match="do not fit"):
        scheduler.add(Generation(prompt_tokens=60, output_tokens=10))
    with pytest.raises(ValueError, match="at least one"):
        scheduler.add(Generation(prompt_tokens=0, output_tokens=10))
    whole = Scheduler(_limits(tokens=32, chunked_prefill=False))
    with pytest.raises(ValueError, match="do not fit in a step"):
        whole.add(Generation(prompt_tokens=30, output_tokens=10))


def _cached_tokens(first: list[int], second: list[int]) -> int:
    scheduler = Scheduler(_limits(tokens=512, prefix_cache=True))
    for ids in (first, second):
        hashes = block_hashes(ids, BLOCK_TOKENS)
        scheduler.add(Generation(prompt_tokens=len(ids), output_tokens=3, block_hashes=hashes))
        _play(scheduler)
    return scheduler.num_cached_tokens


def test_the_prefix_cache_hits_whole_blocks_of_an_equal_beginning() -> None:
    text = list(range(100))
    assert _cached_tokens(text, text) == 96
    assert _cached_tokens(text, [*text[:40], *range(500, 560)]) == 32
    assert _cached_tokens(text, [999, *text[1:]]) == 0
    assert _cached_tokens(list(range(96)), list(range(96))) == 80, "at least one token is computed"


def test_the_prefix_cache_forgets_what_it_needs_the_room_for() -> None:
    scheduler = Scheduler(_limits(tokens=512, cache=10 * BLOCK_TOKENS, prefix_cache=True))
    texts = [list(range(start, start + 120)) for start in (0, 1000, 0)]
    for ids in texts:
        hashes = block_hashes(ids, BLOCK_TOKENS)
        scheduler.add(Generation(prompt_tokens=120, output_tokens=2, block_hashes=hashes))
        _play(scheduler)
    assert 0 <= scheduler.num_cached_tokens < 112


def test_without_a_prefix_cache_nothing_is_found() -> None:
    scheduler = Scheduler(_limits(tokens=512))
    for _ in range(2):
        scheduler.add(Generation(prompt_tokens=64, output_tokens=2))
        _play(scheduler)
    assert scheduler.num_cached_tokens == 0 and scheduler.num_queried_tokens == 0


def test_blocks_are_taken_all_or_none() -> None:
    pool = BlockPool(4)
    assert pool.take(3) and not pool.take(2) and pool.num_available == 1
    pool.give_back(3, ())
    assert pool.num_used == 0 and num_blocks_for(17) == 2


def _config(**more: object) -> EmulatorConfig:
    return EmulatorConfig(checkpoint="deepseek-v3.2-nvfp4", **more)  # type: ignore[arg-type]


class FakeLoop:
    """The two things that the engine asks of an event loop, under the test's own clock."""

    def __init__(self) -> None:
        self.now_s = 50.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now_s

    def call_at(self, when_s: float, callback: Callable[[], None]) -> None:
        self.timers.append((when_s, callback))

    def fire(self, late_s: float = 0.0) -> float:
        """Run the one timer, late by `late_s`; when it was due."""
        ((due_s, callback),) = self.timers
        self.timers.clear()
        self.now_s = due_s + late_s
        callback()
        return due_s


def _engine_with_one_request(loop: FakeLoop, max_tokens: int) -> Engine:
    engine = Engine(deploy(_config(step_time_s=0.01, jitter=0.0, run_jitter=0.0)), loop, None)  # type: ignore[arg-type]
    limits = ModelLimits(wording=WORDING, served_name="m", max_model_len=1000, vocab=1000, needs_ids=False, seed=0)
    body = b'{"prompt": [5, 6, 7], "max_tokens": %d, "ignore_eos": true, "stream": true}' % max_tokens
    request = parse_request("completions", body, limits)
    answer = Answer(api="completions", id="x", created=0, model="m", prompt_tokens=3, prompt_ids=None)
    sent: list[bytes] = []
    stream = Stream(
        request, answer, truth_id="x", prefix_cache=False, write=sent.append, on_end=lambda body: sent.append(b"end")
    )
    engine.submit(stream)
    return engine


def test_a_step_that_ends_a_little_late_is_caught_up_by_the_next() -> None:
    loop = FakeLoop()
    engine = _engine_with_one_request(loop, 10)
    due = [loop.fire(late_s) for late_s in (0.0, 0.04, 0.03, 0.0)]
    assert due == pytest.approx([50.01, 50.02, 50.03, 50.04])
    assert engine.slip_s == 0.0 and engine.late_s == pytest.approx(0.07)
    assert engine.modelled_s == pytest.approx(0.04)


def test_a_step_that_ends_far_too_late_starts_the_clock_anew_and_counts_as_slip() -> None:
    loop = FakeLoop()
    engine = _engine_with_one_request(loop, 10)
    due = [loop.fire(late_s) for late_s in (0.0, 0.2, 0.0)]
    assert due == pytest.approx([50.01, 50.02, 50.23])
    assert engine.slip_s == pytest.approx(0.2)


def test_an_engine_without_requests_sets_no_timer_and_draws_idle_power() -> None:
    loop = FakeLoop()
    engine = _engine_with_one_request(loop, 3)
    for _ in range(3):
        loop.fire()
    assert not loop.timers and engine.num_steps == 3
    before = engine.meter.energy_true_j
    engine.meter.advance(loop.now_s + 10)
    assert engine.meter.energy_true_j - before == pytest.approx(10 * B200.power_idle_w)


def test_step_times_follow_the_seed_and_spread_as_asked() -> None:
    batch = Batch(decode_contexts=[1000] * 8)
    timers = [StepTimer(deploy(_config(seed=seed, jitter=0.05))) for seed in (1, 1, 2)]
    times = [[timer.next_step(batch).duration_s for _ in range(2000)] for timer in timers]
    assert times[0] == times[1] != times[2]
    spread = statistics.stdev(times[0]) / statistics.mean(times[0])
    assert spread == pytest.approx(0.05, rel=0.1)


def test_run_jitter_is_drawn_once_for_a_start() -> None:
    batch = Batch(decode_contexts=[1000])
    timers = [StepTimer(deploy(_config(seed=seed, jitter=0.0, run_jitter=0.01))) for seed in range(200)]
    factors = [timer.run_factor for timer in timers]
    assert statistics.stdev(factors) == pytest.approx(0.01, rel=0.25)
    assert timers[0].next_step(batch) == timers[0].next_step(batch)


def test_a_fixed_step_time_replaces_the_roofline() -> None:
    timer = StepTimer(deploy(_config(step_time_s=0.01, jitter=0.0, run_jitter=0.0)))
    assert timer.next_step(Batch(decode_contexts=[1000] * 64)).duration_s == 0.01


def test_power_lies_between_idle_and_limit_and_grows_with_use() -> None:
    assert step_power_w(B200, 1.0, 1.0) == B200.power_limit_w
    assert B200.power_idle_w < step_power_w(B200, 0.0, 0.0) < step_power_w(B200, 0.4, 0.0)
    decode = step_power_w(B200, 0.45, 0.01)
    assert 500 < decode < 700


def test_energy_is_integrated_exactly_and_the_counter_refreshes_every_100_ms() -> None:
    meter = PowerMeter(B200, 100.0)
    meter.set_power(100.25, 640.0)
    meter.set_power(100.45, None)
    meter.advance(100.98)
    idle, busy = B200.power_idle_w, 640.0
    assert meter.energy_true_j == pytest.approx(0.25 * idle + 0.2 * busy + 0.53 * idle)
    assert meter.counter_j == pytest.approx(0.25 * idle + 0.2 * busy + 0.45 * idle)
    assert meter.average_power_w == pytest.approx(idle)
    counter = meter.counter_j
    meter.advance(100.9999)
    assert meter.counter_j == counter


def test_the_exposed_power_and_utilization_are_means_of_the_last_refresh_period() -> None:
    meter = PowerMeter(B200, 5.0)
    meter.set_power(5.0, 640.0)
    meter.set_power(5.15, None)
    meter.advance(5.2001)
    assert meter.utilization_ratio == pytest.approx(0.5, abs=0.01)
    assert meter.average_power_w == pytest.approx((640 + B200.power_idle_w) / 2, rel=0.01)
    meter.advance(3605.0)
    assert meter.average_power_w == pytest.approx(B200.power_idle_w)
    assert meter.temperature_c < 60


@pytest.mark.parametrize(
    ("settings_", "text"),
    [
        ({"gpus": 8, "tensor": 4}, "does not add up"),
        ({"gpus": 1, "tensor": 1}, "leaves no room"),
        ({"kv_cache_dtype": "int4"}, "unknown kv_cache_dtype"),
        ({"max_num_seqs": 0}, "max_num_seqs must be at least 1"),
        ({"chunked_prefill": False, "max_num_batched_tokens": 100}, "without chunked prefill"),
        ({"step_time_s": 0.0}, "step time must be above 0"),
        ({"gpu": "b300x"}, "no GPU of this name"),
        ({"counter_jitter_ratio": 0.5}, "the jitter of the counters"),
        ({"gpu_read_min_s": 0.02, "gpu_read_max_s": 0.01}, "the shortest is not longer"),
        ({"counter_reset_s": -1.0}, "cannot start again before the start"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_with_the_cure(settings_: dict[str, object], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        deploy(_config(**settings_))


def test_v4_flash_has_an_fp8_cache_only() -> None:
    with pytest.raises(UsageError, match="no cache of this type"):
        deploy(EmulatorConfig(checkpoint="deepseek-v4-flash-nvfp4", kv_cache_dtype="bf16"))


def test_nvfp4_leaves_more_room_for_the_cache_and_the_memory_in_use_is_the_same() -> None:
    nvfp4, fp8 = deploy(_config()), deploy(EmulatorConfig(checkpoint="deepseek-v3.2-fp8"))
    assert nvfp4.kv_capacity_tokens > 1.4 * fp8.kv_capacity_tokens
    assert nvfp4.memory_used_bytes == pytest.approx(fp8.memory_used_bytes, rel=1e-6)
    assert nvfp4.memory_used_bytes < B200.memory_usable_bytes


def test_an_automatic_cache_type_is_the_checkpoints_own() -> None:
    assert deploy(EmulatorConfig(checkpoint="deepseek-r1-fp8")).kv_cache_dtype == "bf16"
    assert deploy(EmulatorConfig(checkpoint="nvidia/DeepSeek-R1-0528-NVFP4")).kv_cache_dtype == "fp8"
