"""Tables of a benchmark: every tool in every workload, and perfsuite against its targets. Pure: values in, text out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from figures import Figures
from workloads import ONE, WORKLOADS, Workload

Results = Mapping[str, Mapping[str, Figures]]  # workload → tool → medians

_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("runs", "num_runs", "{:.0f}"),
    ("chunks/s", "delivered_per_s", "{:,.0f}"),
    ("of ideal", "delivered_ratio", "{:.1%}"),
    ("CPU µs/chunk", "cpu_us_per_chunk", "{:.1f}"),
    ("load only", "load_cpu_us_per_chunk", "{:.1f}"),
    ("TTFT true p50 ms", "ttft_p50_true_ms", "{:.2f}"),
    ("error p50", "ttft_p50_error_ms", "{:+.3f}"),
    ("error p99", "ttft_p99_error_ms", "{:+.3f}"),
    ("gap true p99 ms", "gap_p99_true_ms", "{:.2f}"),
    ("error p50", "gap_p50_error_ms", "{:+.3f}"),
    ("error p99", "gap_p99_error_ms", "{:+.3f}"),
    ("req/s", "rate_per_s", "{:,.0f}"),
    ("of asked", "rate_ratio", "{:.2%}"),
    ("gap CV", "arrival_cv", "{:.2f}"),
    ("first request s", "first_request_s", "{:.2f}"),
    ("wall s", "wall_s", "{:.2f}"),
    ("over ideal s", "over_ideal_s", "{:.2f}"),
    ("CPU s", "cpu_s", "{:.2f}"),
    ("peak MB", "peak_mb", "{:,.0f}"),
)

_OWN: tuple[tuple[str, str, str], ...] = (
    ("workers", "num_workers", "{:.0f}"),
    ("loop CPU µs/chunk", "loop_cpu_us_per_chunk", "{:.1f}"),
    ("loop busy", "loop_busy_ratio", "{:.0%}"),
    ("chunks/s incl. records", "trial_chunks_per_s", "{:,.0f}"),
    ("coalesced reads", "coalesced_reads_ratio", "{:.1%}"),
    ("chunks read alone", "alone_chunks_ratio", "{:.1%}"),
    ("stamp lag p50 µs", "stamp_lag_p50_us", "{:.1f}"),
    ("stamp lag p99 µs", "stamp_lag_p99_us", "{:.1f}"),
    ("alone gap error p99 µs", "alone_gap_error_p99_us", "{:.1f}"),
    ("user lag p99 µs", "user_lag_p99_us", "{:,.0f}"),
    ("send lag p99 ms", "send_lag_p99_ms", "{:.2f}"),
    ("host steal", "steal_ratio", "{:.1%}"),
    ("run queue", "run_queue_ratio", "{:.1%}"),
    ("mock CPU µs/chunk", "mock_cpu_us_per_chunk", "{:.1f}"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A goal of perfsuite's client. Met when low <= figure <= high."""

    what: str
    figure: Callable[[Results], float | None]
    low: float | None = None
    high: float | None = None
    form: str = "{:.2f}"


def _ours(workload: str, name: str) -> Callable[[Results], float | None]:
    return lambda results: results.get(workload, {}).get("perfsuite", {}).get(name)


def _ratio_to(tool: str, workload: str, name: str) -> Callable[[Results], float | None]:
    def ratio(results: Results) -> float | None:
        rows = results.get(workload, {})
        ours, theirs = rows.get("perfsuite", {}).get(name), rows.get(tool, {}).get(name)
        return None if ours is None or not theirs else ours / theirs

    return ratio


def _rate_off(results: Results) -> float | None:
    ratio = _ours("open-2000", "rate_ratio")(results)
    return None if ratio is None else abs(ratio - 1)


TARGETS: tuple[Target, ...] = (
    Target(what="delivered of ideal, 256 × 10 ms", figure=_ours("paced-256", "delivered_ratio"), low=0.98,
           form="{:.1%}"),
    Target(what="chunks/s, 256 × 5 ms", figure=_ours("paced-256-5ms", "delivered_per_s"), low=45_000, form="{:,.0f}"),
    Target(what="ceiling, chunks/s", figure=_ours("ceiling", "delivered_per_s"), low=150_000, form="{:,.0f}"),
    Target(what="loop CPU µs/chunk, 256 × 10 ms", figure=_ours("paced-256", "loop_cpu_us_per_chunk"), high=20,
           form="{:.1f}"),
    Target(what="CPU/chunk ÷ aiperf's, 256 × 10 ms", figure=_ratio_to("aiperf", "paced-256", "cpu_us_per_chunk"),
           high=1 / 6, form="{:.3f}"),
    Target(what="CPU/chunk ÷ vllm bench's, 256 × 10 ms",
           figure=_ratio_to("vllm bench", "paced-256", "cpu_us_per_chunk"), high=1 / 2, form="{:.3f}"),
    Target(what="the same without the start, ÷ aiperf's",
           figure=_ratio_to("aiperf", "paced-256", "load_cpu_us_per_chunk"), high=1 / 6, form="{:.3f}"),
    Target(what="the same without the start, ÷ vllm bench's",
           figure=_ratio_to("vllm bench", "paced-256", "load_cpu_us_per_chunk"), high=1 / 2, form="{:.3f}"),
    Target(what="TTFT p50 error ms, 256 × 10 ms", figure=_ours("paced-256", "ttft_p50_error_ms"), low=-0.1, high=0.1,
           form="{:+.3f}"),
    Target(what="TTFT p99 error ms, 256 × 10 ms", figure=_ours("paced-256", "ttft_p99_error_ms"), low=-1, high=1,
           form="{:+.3f}"),
    Target(what="alone gaps, kernel stamp error p99 µs", figure=_ours("paced-256", "alone_gap_error_p99_us"),
           high=100, form="{:.1f}"),
    Target(what="alone reads, stamp lag p99 µs", figure=_ours("paced-256", "stamp_lag_p99_us"), high=50,
           form="{:.1f}"),
    Target(what="coalesced reads, 256 × 10 ms", figure=_ours("paced-256", "coalesced_reads_ratio"), high=0.01,
           form="{:.2%}"),
    Target(what="open loop 2,000 req/s, off its schedule by", figure=_rate_off, high=0.005, form="{:.3%}"),
    Target(what="arrival gaps, std ÷ mean (Poisson: 1)", figure=_ours("open-2000", "arrival_cv"), low=0.95, high=1.05),
    Target(what="send lag p99 ms, 2,000 req/s", figure=_ours("open-2000", "send_lag_p99_ms"), high=3),
    Target(what="ten requests, wall − ideal s", figure=_ours("ten", "over_ideal_s"), high=0.7),
    Target(what="perfsuite --help s", figure=_ours("help", "wall_s"), high=0.3),
    Target(what="a million requests, peak MB", figure=_ours("million", "peak_mb"), high=500, form="{:,.0f}"),
    Target(what="a million requests, records", figure=_ours("million", "num_ok"), low=1_000_000, form="{:,.0f}"),
)  # fmt: skip


def results_text(results: Results) -> str:
    """Every workload's table, then the targets."""
    parts = [_workload_text(WORKLOADS[name], rows) for name, rows in results.items() if name in WORKLOADS]
    return "\n\n".join([*parts, "### perfsuite against its targets\n\n" + targets_text(results)])


def _workload_text(workload: Workload, rows: Mapping[str, Figures]) -> str:
    text = f"### {workload.name}: {workload.title}\n\n{_table(rows, _COLUMNS)}"
    ours = {name: figures for name, figures in rows.items() if name == "perfsuite"}
    return text + f"\n\n{_table(ours, _OWN)}" if ours and workload is not ONE else text


def _table(rows: Mapping[str, Figures], columns: Sequence[tuple[str, str, str]]) -> str:
    """A row for each tool; columns that no tool has are left out."""
    used = [column for column in columns if any(figures.get(column[1]) is not None for figures in rows.values())]
    head = ["tool", *(title for title, _, _ in used)]
    body = [[name, *(_cell(figures.get(key), form) for _, key, form in used)] for name, figures in rows.items()]
    return _markdown([head, *body])


def _cell(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def targets_text(results: Results) -> str:
    """Each target beside its figure."""
    rows = [["target", "limit", "figure", "met"]]
    for target in TARGETS:
        value = target.figure(results)
        rows.append([target.what, _limit(target), _cell(value, target.form), _verdict(target, value)])
    return _markdown(rows)


def _limit(target: Target) -> str:
    low, high = (None if limit is None else target.form.format(limit) for limit in (target.low, target.high))
    if low is not None and high is not None:
        return f"{low} … {high}"
    return f"≥ {low}" if low is not None else f"≤ {high}"


def _verdict(target: Target, value: float | None) -> str:
    if value is None:
        return "not measured"
    is_met = (target.low is None or value >= target.low) and (target.high is None or value <= target.high)
    return "yes" if is_met else "NO"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]

    def line(cells: Sequence[str]) -> str:
        padded = [cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]
        return f"| {' | '.join(padded)} |"

    rule = "|" + "|".join("-" * (width + 1) + ("-" if place == 0 else ":") for place, width in enumerate(widths)) + "|"
    return "\n".join([line(rows[0]), rule, *(line(row) for row in rows[1:])])
