"""Profiles as one HTML file: stacked step bars, an icicle of each arm and phase, and tables. No network is needed.

Every text that comes from a trace, a scenario or a file's name is escaped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape

from perfsuite.analysis.kernel_difference import KernelDifference
from perfsuite.analysis.kernels import PhaseProfile
from perfsuite.analysis.kernels_report import ArmProfile, ProfileReport
from perfsuite.analysis.kernels_rules import CATEGORIES, category_label
from perfsuite.analysis.kernels_timeline import Timeline
from perfsuite.report.profile import difference_sentence, idle_label, phase_title, profile_text, row_label

WIDTH, ROW_HEIGHT, LABEL_WIDTH = 1000, 26, 190
MIN_SAVED_S = 5e-7  # what a table in ms shows as 0.000
MIN_WIDTH = 0.6  # narrower kernels are drawn together
IDLE_COLOUR = "#d9d9d9"
# Okabe and Ito's palette with tints, so that neighbours differ for colour-blind readers; names stand in the bars too.
COLOURS = dict(
    zip(
        CATEGORIES,
        ("#5b9bd5", "#9fd3f5", "#b59ad0", "#009e73", "#3fbf97", "#66c2a5", "#d55e00", "#e69f00", "#cc79a7",
         "#b8b34a", "#c9a66b", "#f0e442", "#999999", "#bfb8c9", "#8f86a3", "#666666"),
        strict=True,
    )
)  # fmt: skip
STAGES = {"queue": "#999999", "to the first token": "#e69f00", "prefill": "#e69f00", "decode": "#0072b2"}
_STYLE = """
body{font:14px/1.45 system-ui,sans-serif;margin:24px auto;max-width:1040px;padding:0 12px;color:#1a1a1a;background:#fff}
h1{font-size:20px}h2{font-size:16px;margin-top:28px}h3{font-size:14px;margin:18px 0 6px}
svg{display:block;width:100%;height:auto}svg text{font:11px system-ui,sans-serif;fill:#1a1a1a}
pre{background:#f6f6f6;padding:12px;overflow:auto;font-size:12px}
.mark{background:#ffe3a8;padding:6px 10px;font-weight:600}.legend span{display:inline-block;margin:0 12px 4px 0}
.legend i{display:inline-block;width:11px;height:11px;margin-right:4px;border:1px solid #777}
"""
# Perfetto takes a trace from another window: the file is read in this browser and sent nowhere else.
_SCRIPT = """
document.getElementById('trace').addEventListener('change', async event => {
  const file = event.target.files[0];
  if (!file) return;
  const buffer = await file.arrayBuffer();
  const origin = 'https://ui.perfetto.dev';
  const other = window.open(origin);
  const timer = setInterval(() => other.postMessage('PING', origin), 100);
  window.addEventListener('message', answer => {
    if (answer.origin !== origin || answer.data !== 'PONG') return;
    clearInterval(timer);
    other.postMessage({perfetto: {buffer, title: file.name}}, origin);
  });
});
"""


def profile_html(report: ProfileReport) -> str:
    """The whole page."""
    title = f"Profile of {report.title}" + (f" at {report.load_point}" if report.load_point else "")
    body = f"<h1>{escape(title)}</h1>\n{profile_body(report)}\n" + "\n".join(_links(report)) + _tables(report)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>\n{body}\n"
        f"<script>{_SCRIPT}</script></body></html>\n"
    )


def profile_body(report: ProfileReport) -> str:
    """The pictures alone, for a page with a head of its own: no script, no tables, colours in attributes."""
    return "\n".join(_pictures(report))


def _tables(report: ProfileReport) -> str:
    return f"<h2>Tables</h2><pre>{escape(profile_text(report, width=120))}</pre>"


def _pictures(report: ProfileReport) -> Iterator[str]:
    if report.is_emulated:
        yield '<p class="mark">EMULATED: these numbers come from a model of the hardware.</p>'
    for comparison in report.comparisons:
        for difference in comparison.differences:
            names = f"{comparison.candidate} against {comparison.baseline}, {difference.phase}"
            yield f"<h2>{escape(names)}</h2><p>{escape(difference_sentence(difference))}</p>"
            yield _difference_bars(difference)
    yield "<h2>Where a step's time goes</h2>"
    yield _legend(report)
    for name in dict.fromkeys(phase for arm in report.arms for phase in arm.phases):
        yield f"<h3>{escape(name)} step</h3>"
        yield _step_bars([(arm, arm.phases[name]) for arm in report.arms if name in arm.phases])
    for arm in report.arms:
        yield f"<h2>{escape(arm.arm)}</h2>"
        for phase in arm.phases.values():
            yield f"<h3>{escape(phase_title(phase))}</h3>{_icicle(arm, phase)}"
        if arm.timeline is not None:
            yield from _request_pictures(arm.timeline)


def _links(report: ProfileReport) -> Iterator[str]:
    yield (
        '<h2>The traces themselves</h2><p><a href="https://ui.perfetto.dev" rel="noopener">Perfetto</a> shows a trace '
        "on a time line; choose one here to open it there (it stays in the browser): "
        '<label>trace <input type="file" id="trace" accept=".json,.gz"></label></p>'
    )
    files = [f"{arm.arm}/{file}" for arm in report.arms for file in arm.files]
    if files:
        items = "".join(f"<li>{escape(file)}</li>" for file in files)
        yield f"<ul>{items}</ul>"


def _legend(report: ProfileReport) -> str:
    used = {category for arm in report.arms for phase in arm.phases.values() for category in phase.category_s()}
    names = [(COLOURS[name], label) for name, label in CATEGORIES.items() if name in used]
    names.append((IDLE_COLOUR, "idle gap, or no operator"))
    spans = "".join(f'<span><i style="background:{colour}"></i>{escape(label)}</span>' for colour, label in names)
    return f'<p class="legend">{spans}</p>'


def _svg(height: float, parts: Sequence[str], label: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def _rect(x: float, y: float, width: float, colour: str, text: str, tip: str) -> str:
    """A bar with its tip, and its text where there is room for it."""
    fits = int(width / 6.5)
    shown = text if len(text) <= fits else (text[: fits - 1] + "…" if fits > 3 else "")
    inside = f'<text x="{x + 4:.1f}" y="{y + 16:.1f}">{escape(shown)}</text>' if shown else ""
    return (
        f'<g><title>{escape(tip)}</title><rect x="{x:.2f}" y="{y:.1f}" width="{max(0.0, width):.2f}" '
        f'height="{ROW_HEIGHT - 3}" fill="{colour}" stroke="#fff" stroke-width="0.5"/>{inside}</g>'
    )


def _step_bars(rows: Sequence[tuple[ArmProfile, PhaseProfile]]) -> str:
    """One stacked bar for each arm, on one scale."""
    longest = max((phase.step_s for _, phase in rows), default=0.0) or 1.0
    scale = (WIDTH - LABEL_WIDTH - 90) / longest
    parts = []
    for number, (arm, phase) in enumerate(rows):
        y, x = number * ROW_HEIGHT, float(LABEL_WIDTH)
        parts.append(f'<text x="0" y="{y + 16}">{escape(arm.arm[:24])}</text>')
        for label, seconds, colour in _segments(arm, phase):
            tip = f"{label}: {seconds * 1e3:.3f} ms, {phase.share(seconds):.1%}"
            parts.append(_rect(x, y, seconds * scale, colour, label, tip))
            x += seconds * scale
        parts.append(f'<text x="{x + 6:.1f}" y="{y + 16}">{phase.step_s * 1e3:.2f} ms</text>')
    return _svg(len(rows) * ROW_HEIGHT, parts, "time of a step by category, one bar for each arm")


def _segments(arm: ArmProfile, phase: PhaseProfile) -> Iterator[tuple[str, float, str]]:
    for category, seconds in phase.category_s().items():
        yield category_label(category, phase.format_of(category)), seconds, COLOURS[category]
    if phase.idle_s > 0:
        yield idle_label(arm), phase.idle_s, IDLE_COLOUR


def _icicle(arm: ArmProfile, phase: PhaseProfile) -> str:
    """Three rows: the step, its categories, their kernels; width is time."""
    if phase.step_s <= 0:
        return ""
    scale = WIDTH / phase.step_s
    step = f"step {phase.step_s * 1e3:.3f} ms"
    parts = [_rect(0, 0, WIDTH, "#eeeeee", step, f"{step}, mean of {phase.num_steps}")]
    x = 0.0
    for category, seconds in phase.category_s().items():
        label = category_label(category, phase.format_of(category))
        tip = f"{label}: {seconds * 1e3:.3f} ms, {phase.share(seconds):.1%}"
        parts.append(_rect(x, ROW_HEIGHT, seconds * scale, COLOURS[category], label, tip))
        parts += _kernel_bars(phase, category, x, scale)
        x += seconds * scale
    if phase.idle_s > 0:
        tip = f"{idle_label(arm)}: {phase.idle_s * 1e3:.3f} ms, {phase.share(phase.idle_s):.1%}"
        parts.append(_rect(x, ROW_HEIGHT, phase.idle_s * scale, IDLE_COLOUR, idle_label(arm), tip))
    return _svg(3 * ROW_HEIGHT, parts, f"icicle of the {phase.phase} step of {arm.arm}")


def _kernel_bars(phase: PhaseProfile, category: str, x: float, scale: float) -> Iterator[str]:
    rest_s, num_rest = 0.0, 0
    for row in phase.rows:
        if row.category != category:
            continue
        seconds = row.time_s / phase.num_steps
        if seconds * scale < MIN_WIDTH:
            rest_s, num_rest = rest_s + seconds, num_rest + 1
            continue
        tip = f"{row.name} {row.shape}: {seconds * 1e3:.3f} ms per step in {row.count / phase.num_steps:.1f} calls"
        yield _rect(x, 2 * ROW_HEIGHT, seconds * scale, COLOURS[category], row.name, tip)
        x += seconds * scale
    if num_rest:
        tip = f"{num_rest} shorter kernels: {rest_s * 1e3:.3f} ms"
        yield _rect(x, 2 * ROW_HEIGHT, rest_s * scale, COLOURS[category], "", tip)


def _difference_bars(difference: KernelDifference) -> str:
    """What each category saves (right) or costs (left) per step."""
    rows = [row for row in difference.rows if abs(row.saved_s) >= MIN_SAVED_S]
    longest = max((abs(row.saved_s) for row in rows), default=0.0) or 1.0
    half = (WIDTH - LABEL_WIDTH - 100) / 2
    middle = LABEL_WIDTH + half
    parts = []
    for number, row in enumerate(rows):
        y, width = number * ROW_HEIGHT, abs(row.saved_s) / longest * half
        label = row_label(row)
        word = "saved" if row.saved_s >= 0 else "lost"
        tip = f"{label}: {abs(row.saved_s) * 1e3:.3f} ms per step {word}"
        x = middle if row.saved_s >= 0 else middle - width
        parts.append(f'<text x="0" y="{y + 16}">{escape(label[:32])}</text>')
        parts.append(_rect(x, y, width, COLOURS.get(row.category, IDLE_COLOUR), "", tip))
        parts.append(f'<text x="{WIDTH - 95}" y="{y + 16}">{abs(row.saved_s) * 1e3:.3f} ms {word}</text>')
    return _svg(len(rows) * ROW_HEIGHT, parts, "milliseconds saved or lost per step, by category")


def _request_pictures(found: Timeline) -> Iterator[str]:
    """The client's lanes, and those of the server where it keeps a record of each request."""
    if found.requests:
        lanes = [
            (span.start_s, {"to the first token": span.ttft_s, "decode": span.decode_s}) for span in found.requests
        ]
        yield f"<h3>Requests in the window, as the client saw them</h3>{_lanes(lanes)}"
    if found.server_requests:
        lanes = [
            (span.start_s, {"queue": span.queue_s, "prefill": span.prefill_s, "decode": span.decode_s})
            for span in found.server_requests
        ]
        yield f"<h3>The same time, as the server recorded its requests</h3>{_lanes(lanes)}"


def _lanes(lanes: Sequence[tuple[float, Mapping[str, float]]]) -> str:
    """A line for each request: its stages one after another. lanes: (start, seconds of each stage)."""
    end = max(start_s + sum(stages.values()) for start_s, stages in lanes) or 1.0
    scale, height = WIDTH / end, 9
    parts = []
    for number, (start_s, stages) in enumerate(lanes):
        y, x = number * height, start_s * scale
        told = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in stages.items())
        bars = []
        for name, seconds in stages.items():
            width = seconds * scale
            bars.append(f'<rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="{height - 2}" fill="{STAGES[name]}"/>')
            x += width
        parts.append(f"<g><title>{escape(f'from {start_s:.3f} s: {told}')}</title>{''.join(bars)}</g>")
    names = list(lanes[0][1])
    legend = "".join(f'<span><i style="background:{STAGES[name]}"></i>{escape(name)}</span>' for name in names)
    label = f"a line for each request: {', then '.join(names)}; {end:.2f} s"
    return f'<p class="legend">{legend} {end:.2f} s in all</p>{_svg(len(lanes) * height, parts, label)}'
