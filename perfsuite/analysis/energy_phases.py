"""Energy of prefill and of decode, where stretches of the window have decode alone. Pure.

What the client sees divides the window: at an instant some requests wait for their first token (sent, nothing received)
and some decode (first token received, last one not). Stretches are "decode" (some decode, none waits), "prefill" (some
wait, none decodes), "both" and "none". The window is cut into equal cells of CELL_PERIODS refresh periods; with T the
seconds of each stretch in a cell, the energy of the cells is fitted by least squares as

    E = P_decode T_decode + P_prefill T_prefill + P_both T_both + P_none T_none

    decode  = P_decode × seconds of decode alone × tokens decoded in the window / tokens decoded in decode alone
    idle    = P_none × seconds without a request
    prefill = energy of the window − decode − idle

So a token decoded beside a prefill is taken to cost as much as one decoded alone, and prefill is what comes on top.
Standard errors are those of the fit, together with the bound of the window's energy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from perfsuite.analysis.chunks import CHUNK_COLUMNS, CHUNKS_PER_SLICE, ChunkScan, chunk_slices, read_chunks
from perfsuite.analysis.energy import Energy
from perfsuite.analysis.gpu_samples import Telemetry
from perfsuite.analysis.request_columns import (
    COLUMNS,
    MISSING_NS,
    Floats,
    Ints,
    RequestColumns,
    Requests,
    request_columns,
)
from perfsuite.analysis.steady import Window

CELL_PERIODS = 5
MIN_CELLS = 20
MIN_ALONE_RATIO = 0.5  # of the decoded tokens, in stretches of decode alone
MIN_STANDARD_ERRORS = 2.0  # prefill and decode must be so far from 0
STRETCHES = ("decode", "prefill", "both", "none")

# Why the energy is not divided: code -> meaning.
PHASE_REASONS: dict[str, str] = {
    "no_energy": "the trial has no energy",
    "no_counter": "a GPU has no counter, or its counter started again in the window",
    "untold_tokens": "the tokens of the chunks are not known",
    "one_phase": "nothing was prefilled, or nothing decoded, in the window",
    "window_too_short": f"the window has fewer than {MIN_CELLS} cells of {CELL_PERIODS} refresh periods of the counter",
    "phases_overlap": (
        f"less than {MIN_ALONE_RATIO * 100:.0f} % of the tokens were decoded while no request waited for its first"
    ),
    "not_distinguished": (
        f"the prefill or the decode energy is within {MIN_STANDARD_ERRORS:g} of its standard errors of 0"
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseEnergy:
    """The energy of a window by phase, all GPUs, in joules; None where `reason`, a key of PHASE_REASONS, says why.

    idle_j           while no request was in flight
    prefill_se_j, decode_se_j  standard errors
    prefill_tokens   input tokens of the requests whose first token came in the window; None = not told
    decode_tokens    output tokens in the window without those of each first chunk
    alone_ratio      share of decode_tokens in stretches in which no request waited for its first token
    seconds          of each stretch, by STRETCHES
    """

    prefill_j: float | None = None
    decode_j: float | None = None
    idle_j: float | None = None
    prefill_se_j: float | None = None
    decode_se_j: float | None = None
    prefill_tokens: float | None = None
    decode_tokens: float | None = None
    alone_ratio: float | None = None
    seconds: Mapping[str, float] | None = None
    num_cells: int | None = None
    reason: str | None = "no_energy"

    def standard_error_ratio(self, phase: str) -> float | None:
        """Standard error / joules of "prefill" or "decode"."""
        joules, se_j = getattr(self, f"{phase}_j"), getattr(self, f"{phase}_se_j")
        return None if joules is None or se_j is None else float(se_j / joules)

    @property
    def j_per_prefill_token(self) -> float | None:
        """prefill_j / prefill_tokens."""
        return self.prefill_j / self.prefill_tokens if self.prefill_j is not None and self.prefill_tokens else None

    @property
    def j_per_decode_token(self) -> float | None:
        """decode_j / decode_tokens."""
        return self.decode_j / self.decode_tokens if self.decode_j is not None and self.decode_tokens else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretches:
    """Seconds of each stretch since the window's begin, as piecewise linear functions of time.

    t_ns     shape (num_steps,), from the begin of the window to its end
    since_s  by STRETCHES, shape (num_steps,)
    """

    t_ns: Ints
    since_s: Mapping[str, Floats]

    def until(self, name: str, t_ns: Ints | Floats) -> Floats:
        """Seconds of a stretch in the window up to t_ns."""
        values: Floats = np.interp(t_ns, self.t_ns, self.since_s[name])
        return values

    @property
    def seconds(self) -> dict[str, float]:
        return {name: float(values[-1]) for name, values in self.since_s.items()}


def stretches_of(columns: RequestColumns, window: Window) -> Stretches:
    """What the requests were doing in the window."""
    sent = columns.is_sent
    has_first = sent & (columns.t_first_ns != MISSING_NS)
    answered_ns = np.where(has_first, columns.t_first_ns, columns.t_end_ns)[sent]
    waits = _level(columns.t_send_ns[sent], answered_ns)
    decodes = _level(columns.t_first_ns[has_first], np.maximum(columns.t_last_ns, columns.t_first_ns)[has_first])
    inside = np.concatenate([t[(t > window.t0_ns) & (t < window.t1_ns)] for t, _ in (waits, decodes)])
    t_ns = np.unique(np.concatenate([inside, np.array([window.t0_ns, window.t1_ns])]))
    is_waiting, is_decoding = (_at(steps, t_ns[:-1]) > 0 for steps in (waits, decodes))
    spans_s = np.diff(t_ns) / 1e9
    flags = {
        "decode": is_decoding & ~is_waiting,
        "prefill": is_waiting & ~is_decoding,
        "both": is_waiting & is_decoding,
        "none": ~is_waiting & ~is_decoding,
    }
    since_s = {name: np.append(0.0, np.cumsum(np.where(flags[name], spans_s, 0.0))) for name in STRETCHES}
    return Stretches(t_ns=t_ns, since_s=since_s)


def _level(starts: Ints, ends: Ints) -> tuple[Ints, Ints]:
    """(times, how many spans are open from each on)."""
    t_ns = np.concatenate([starts, ends])
    change = np.repeat([1, -1], [len(starts), len(ends)])
    order = np.argsort(t_ns, kind="stable")
    return t_ns[order], np.cumsum(change[order])


def _at(steps: tuple[Ints, Ints], t_ns: Ints) -> Ints:
    index = np.searchsorted(steps[0], t_ns, side="right") - 1
    return np.where(index >= 0, np.append(steps[1], 0)[index], 0)


def phase_energy(
    requests: Requests,
    columns: RequestColumns,
    scan: ChunkScan,
    samples: Telemetry,
    window: Window | None,
    energy: Energy,
) -> PhaseEnergy:
    """The energy of the window by phase. requests: records.REQUEST_SCHEMA of the trial, columns and scan: theirs;
    samples: as for energy_over.
    """
    if window is None or energy.energy_j is None or energy.period_s is None:
        return PhaseEnergy()
    if {"integral", "reset_bridged"} & set(energy.doubts):
        return PhaseEnergy(reason="no_counter")
    stretches = stretches_of(columns, window)
    found = PhaseEnergy(
        reason=None,
        prefill_tokens=_prefill_tokens(columns, window),
        seconds=stretches.seconds,
        num_cells=int(window.duration_s / (CELL_PERIODS * energy.period_s)),
    )
    reason = _refused(found, scan)
    if reason is not None:
        return replace(found, reason=reason)
    decoded, alone = _decoded_tokens(requests, stretches, scan.tokens_per_chunk or 0.0)
    if not decoded:
        return replace(found, reason="one_phase")
    found = replace(found, decode_tokens=decoded, alone_ratio=alone / decoded)
    if alone < MIN_ALONE_RATIO * decoded:
        return replace(found, reason="phases_overlap")
    return _divided(found, energy, *_cells(samples, stretches, found.num_cells or 0))


def _prefill_tokens(columns: RequestColumns, window: Window) -> float | None:
    came = (columns.t_first_ns >= window.t0_ns) & (columns.t_first_ns <= window.t1_ns)
    is_untold = np.isnan(columns.n_in[came & columns.is_ok]).any()
    return None if is_untold else float(np.nansum(columns.n_in[came]))


def _refused(found: PhaseEnergy, scan: ChunkScan) -> str | None:
    """Why there is no division, as far as the requests' times tell."""
    assert found.seconds is not None
    decoding_s = found.seconds["decode"] + found.seconds["both"]
    if (found.num_cells or 0) < MIN_CELLS:
        return "window_too_short"
    if decoding_s == 0 or found.prefill_tokens == 0:
        return "one_phase"
    if found.seconds["decode"] < MIN_ALONE_RATIO / 4 * decoding_s:
        return "phases_overlap"
    return "untold_tokens" if scan.untold else None


def _decoded_tokens(requests: Requests, stretches: Stretches, unknown_tokens: float) -> tuple[float, float]:
    """Tokens decoded in the window, and those of them in stretches of decode alone.

    A chunk after the first was made between the chunk before it and itself: its tokens are spread evenly over that
    time. unknown_tokens: of a chunk of which nothing is known.
    """
    decoded = alone = 0.0
    window_ns = stretches.t_ns[[0, -1]]
    for _, part in chunk_slices(requests, CHUNKS_PER_SLICE, sorted({*COLUMNS, *CHUNK_COLUMNS})):
        chunks = read_chunks(part, request_columns(part))
        later = ~chunks.is_first
        end_ns = chunks.t_ns[later]
        begin_ns = end_ns - np.maximum(chunks.delta_us[later].astype(np.int64), 1) * 1000
        per_ns = np.nan_to_num(chunks.tokens[later], nan=unknown_tokens) / (end_ns - begin_ns)
        inside_ns = np.clip(end_ns, *window_ns) - np.clip(begin_ns, *window_ns)
        alone_s = stretches.until("decode", end_ns) - stretches.until("decode", begin_ns)
        decoded += float((per_ns * inside_ns).sum())
        alone += float((per_ns * alone_s * 1e9).sum())
    return decoded, alone


def _cells(samples: Telemetry, stretches: Stretches, num_cells: int) -> tuple[Floats, Floats]:
    """Joules of each cell over all GPUs, shape (num_cells,), and seconds of each of STRETCHES, (num_cells, 4)."""
    refreshes = [_refreshes(samples.select(samples.gpu == gpu), stretches.t_ns[0]) for gpu in samples.gpus]
    begin = max(float(stretches.t_ns[0]), *(float(t_ns[0]) for t_ns, _ in refreshes))
    end = min(float(stretches.t_ns[-1]), *(float(t_ns[-1]) for t_ns, _ in refreshes))
    edges_ns = np.linspace(begin, end, num_cells + 1)
    joules = sum((np.diff(np.interp(edges_ns, t_ns, value_j)) for t_ns, value_j in refreshes), np.zeros(num_cells))
    seconds = np.stack([np.diff(stretches.until(name, edges_ns)) for name in STRETCHES], axis=1)
    return joules, seconds


def _refreshes(samples: Telemetry, t0_ns: int) -> tuple[Floats, Floats]:
    """(when, joules) of each refresh that was seen, of the start of the counter that t0_ns is in.

    A refresh came between the last reading without it and the first with it: half-way is taken.
    """
    known = np.isfinite(samples.energy_j)
    t_ns, value_j = samples.t_ns[known], samples.energy_j[known]
    starts = np.concatenate([[0], np.flatnonzero(np.diff(value_j) < 0) + 1, [len(value_j)]])
    number = int(np.searchsorted(t_ns[starts[1:-1]], t0_ns, side="right"))
    t_ns, value_j = t_ns[starts[number] : starts[number + 1]], value_j[starts[number] : starts[number + 1]]
    changed = np.flatnonzero(np.diff(value_j))
    return (t_ns[changed] + t_ns[changed + 1]) / 2, value_j[changed + 1]


def _divided(found: PhaseEnergy, energy: Energy, joules: Floats, seconds: Floats) -> PhaseEnergy:
    """The fit, and what follows from it. Stretches shorter in all than a cell are counted as "both"."""
    assert energy.energy_j is not None and energy.bound_j is not None and found.seconds is not None
    kept = [name for name in ("decode", "prefill", "none") if found.seconds[name] >= seconds[0].sum()]
    if "decode" not in kept:
        return replace(found, reason="phases_overlap")
    times = np.stack([seconds[:, STRETCHES.index(name)] for name in kept], axis=1)
    rest = seconds.sum(axis=1) - times.sum(axis=1)
    times = np.column_stack([times, rest]) if rest.sum() > 1e-6 else times
    power_w, covariance = _least_squares(times, joules)
    in_decode, in_none = np.zeros((2, times.shape[1]))
    in_decode[0] = found.seconds["decode"] / (found.alone_ratio or 1.0)
    if "none" in kept:
        in_none[kept.index("none")] = found.seconds["none"]
    decode_j, idle_j = float(in_decode @ power_w), float(in_none @ power_w)
    prefill_j = energy.energy_j - decode_j - idle_j
    both = in_decode + in_none
    prefill_se_j = float(np.sqrt(both @ covariance @ both + energy.bound_j**2 / 3))
    decode_se_j = float(np.sqrt(in_decode @ covariance @ in_decode))
    if not (prefill_j > MIN_STANDARD_ERRORS * prefill_se_j and decode_j > MIN_STANDARD_ERRORS * decode_se_j):
        return replace(found, reason="not_distinguished")
    return replace(
        found,
        prefill_j=prefill_j,
        decode_j=decode_j,
        idle_j=idle_j,
        prefill_se_j=prefill_se_j,
        decode_se_j=decode_se_j,
    )


def _least_squares(times: Floats, joules: Floats) -> tuple[Floats, Floats]:
    """Coefficients and their covariance: residual variance × inverse of the normal matrix; NaN where it is singular."""
    num, width = times.shape
    if num <= width or np.linalg.matrix_rank(times) < width:
        return np.full(width, np.nan), np.full((width, width), np.nan)
    inverse: Floats = np.asarray(np.linalg.inv(times.T @ times), dtype=np.float64)
    coefficients = np.asarray(inverse @ (times.T @ joules), dtype=np.float64)
    residuals = joules - times @ coefficients
    return coefficients, inverse * (float(residuals @ residuals) / (num - width))
