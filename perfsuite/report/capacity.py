"""Memory and capacity of the arms as a table: text for show and compare, and values for --json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from perfsuite.analysis.capacity import GPU_COUNTS, OTHER_BYTES_PER_GPU, Capacity, SizeRatio
from perfsuite.analysis.run_capacity import capacities, size_ratios
from perfsuite.analysis.summary import RunSummary
from perfsuite.report.columns import cut, wrap
from perfsuite.units import format_bytes

DASH = "–"
_LABEL_WIDTH = 26


def capacity_lines(summary: RunSummary, width: int) -> list[str]:
    """A table with a column for each arm; none when no arm has GPUs or nothing is known."""
    known = capacities(summary)
    rows = [row for row in _rows(known) if any(cell != DASH for cell in row[1])]
    if not rows:
        return []
    mark = "EMULATED  " if summary.is_emulated else ""
    lines = wrap(f"{mark}memory and capacity, over all GPUs of an arm", width)
    room = min(14, max(9, (width - _LABEL_WIDTH) // max(1, len(known)) - 1))
    num = max(1, (width - _LABEL_WIDTH) // (room + 1))
    names = list(known)
    for first in range(0, len(names), num):
        part = range(first, min(first + num, len(names)))
        lines.append(" " * _LABEL_WIDTH + "".join(f" {cut(names[k], room):>{room}}" for k in part))
        lines += [f"{label:<{_LABEL_WIDTH}}" + "".join(f" {cells[k]:>{room}}" for k in part) for label, cells in rows]
    for note in dict.fromkeys(_fewest_note(arm) for arm in known.values()):
        lines += wrap(note, width)
    for pair, ratio in size_ratios(summary).items():
        lines += wrap(_ratio_text(pair, ratio), width)
    return lines


def _rows(known: Mapping[str, Capacity]) -> Iterator[tuple[str, list[str]]]:
    """(label, a cell for each arm)."""
    arms = list(known.values())
    yield "GPUs", [str(arm.num_gpus) for arm in arms]
    for label, name in (
        ("memory used", "used"), ("  weights", "weights"), ("  KV cache", "kv_cache"),
        ("  activations, graphs", "other"), ("reserved by the driver", "reserved"), ("of", "total"),
    ):  # fmt: skip
        yield label, [_bytes(arm, name) for arm in arms]
    yield "KV bytes per token", [_computed(arm.kv_bytes_per_token) for arm in arms]
    yield "KV capacity, tokens", [_number(arm.kv_capacity_tokens) for arm in arms]
    for length in sorted({length for arm in arms for length in (*arm.fits, *arm.fewest_gpus)}):
        yield f"fit at {length:,} tokens", [_number(arm.fits.get(length)) for arm in arms]
    for length in sorted({length for arm in arms for length in arm.fewest_gpus}):
        yield f"fewest GPUs, {length:,}", [_fewest(arm, length) for arm in arms]


def _bytes(arm: Capacity, name: str) -> str:
    value = getattr(arm.memory, name)
    text = format_bytes(value) if value is not None else DASH
    return f"~{text}" if value is not None and arm.memory.basis.get(name) == "computed" else text


def _number(value: float | None) -> str:
    return DASH if value is None else f"{value:,.0f}"


def _computed(value: float | None) -> str:
    return DASH if value is None else f"~{value:,.0f}"


def _fewest(arm: Capacity, length: int) -> str:
    if length not in arm.fewest_gpus:
        return DASH
    return f"~{arm.fewest_gpus[length] or f'>{GPU_COUNTS[-1]}'}"


def _fewest_note(arm: Capacity) -> str:
    """What the fewest GPUs are computed for, or why there is no such number."""
    if arm.gpu is None:
        return "fewest GPUs: withheld, the GPU is neither told nor named (arms.ARM.gpu)"
    if not arm.gpu.is_known:
        return f"fewest GPUs: withheld, the model library has no {arm.gpu.name}"
    if not arm.fewest_gpus:
        return "fewest GPUs: withheld, the model library does not know the checkpoint or its cache"
    whose = "as told" if arm.gpu.basis == "told" else "named by the scenario, not told"
    share = f"{arm.memory_ratio * 100:g} % of the memory"
    return (
        f"fewest GPUs (~ computed): {arm.gpu.name}, {whose}; assumed {share} and "
        f"{format_bytes(OTHER_BYTES_PER_GPU)} a GPU beside weights and cache"
    )


def _ratio_text(pair: tuple[str, str], ratio: SizeRatio) -> str:
    parts = [f"files {ratio.disk:.2f}" if ratio.disk else "", f"memory {ratio.memory:.2f}" if ratio.memory else ""]
    claim = f"; the card claims about {ratio.claimed:g}" if ratio.claimed else ""
    return f"weights of {pair[0]} / {pair[1]}: {', '.join(part for part in parts if part)}{claim} (~ computed)"


def capacity_json(summary: RunSummary) -> dict[str, Any]:
    """The same as values: `arms` by name, `size_ratios` as a list."""
    return {
        "arms": {name: asdict(capacity) for name, capacity in capacities(summary).items()},
        "size_ratios": [
            {"baseline": pair[0], "candidate": pair[1], **asdict(ratio)} for pair, ratio in size_ratios(summary).items()
        ],
    }
