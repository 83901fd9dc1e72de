"""InferenceX rows (`agg_*.json`): one object, or a list of them; in, and out of a run.

Fields and formulas: utils/process_result.py and utils/aggregate_power.py at 843c6254. Latencies are seconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from perfsuite.analysis.levels import levels
from perfsuite.analysis.summary import RunSummary, TrialSummary
from perfsuite.interop.imported import (
    ImportedResult,
    ImportedValue,
    Parsed,
    Translation,
    facts_of,
    is_number,
    value_of,
    values_of,
)
from perfsuite.interop.vllm_bench import LATENCIES
from perfsuite.scenario.arm import Arm

_FACTS = (
    "hw", "conc", "image", "model", "infmax_model_prefix", "framework", "precision", "spec_decoding", "disagg", "isl",
    "osl", "is_multinode", "tp", "pp", "ep", "dp_attention", "power_valid", "power_metric_schema_version",
)  # fmt: skip
_WHOLE = "perfsuite counts in the steady window, this is the whole run with ramp and drain"
_POWER = "sampled once a second over the whole run; perfsuite takes the energy counter over the steady window"

_RATES: dict[str, Translation] = {
    "tput_per_gpu": Translation(
        unit="tok/s/GPU",
        definition="(input + output tokens) / duration / GPUs",
        near={"run": "total_tps_per_gpu"},
        caveat=_WHOLE,
    ),
    "output_tput_per_gpu": Translation(
        unit="tok/s/GPU",
        definition="output tokens / duration / GPUs; disaggregated: decode GPUs only",
        near={"run": "output_tps_per_gpu"},
        caveat=_WHOLE,
    ),
    "input_tput_per_gpu": Translation(
        unit="tok/s/GPU", definition="input tokens / duration / GPUs; disaggregated: prefill GPUs only"
    ),
    "avg_total_gpu_power_w": Translation(
        unit="W", definition="mean power of all GPUs", near={"run": "mean_power_w"}, caveat=_POWER
    ),
    "total_gpu_energy_j": Translation(
        unit="J", definition="trapezoid over the power of all GPUs", near={"run": "energy_j"}, caveat=_POWER
    ),
    "joules_per_output_token": Translation(
        unit="J/tok",
        definition="total_gpu_energy_j / output tokens",
        near={"run": "j_per_output_token"},
        caveat=_POWER,
    ),
}
_INTERACTIVITY = Translation(
    unit="tok/s/user",
    definition="1 / the same statistic of tpot",
    same={"p50": "interactivity_p50_per_s"},
    caveat="1 / median and median of 1 / are the same for an odd number of requests, and close for an even one",
)
_SECONDS = {name: replace(translation, scale=1.0) for name, translation in LATENCIES.items()}
TRANSLATIONS = _RATES | _SECONDS | {"intvty": _INTERACTIVITY}
_STATISTICS = {
    "mean": "mean", "median": "p50", "std": "std", "p90": "p90", "p95": "p95", "p99": "p99", "p99.9": "p99.9",
}  # fmt: skip


def read_inferencex(text: str) -> Parsed:
    """The text of a file. Raises KeyError, TypeError, ValueError: not one."""
    document = json.loads(text)
    rows = document if isinstance(document, list) else [document]
    if not rows or any("output_tput_per_gpu" not in row or "conc" not in row for row in rows):
        raise ValueError("a row has no keys `output_tput_per_gpu` and `conc`")
    return Parsed(version=None, results=tuple(_result(row) for row in rows))


def _result(row: Mapping[str, Any]) -> ImportedResult:
    label = f"{row.get('hw')} {row.get('framework')} {row.get('precision')} conc {row['conc']}"
    return ImportedResult(label=label, facts=facts_of(row, _FACTS), values=tuple(_values(row)))


def _values(row: Mapping[str, Any]) -> Iterator[ImportedValue]:
    for name, translation in _RATES.items():
        is_power = translation.caveat == _POWER
        if is_number(row.get(name)) and (row.get("power_valid") or not is_power):
            yield value_of(name, "run", row[name], translation)
    for name, translation in _SECONDS.items():
        yield from _statistics(name, row, translation)
    known = {key: value for key, value in row.items() if key != "std_intvty"}  # 1 / the deviation of tpot
    yield from _statistics("intvty", known, _INTERACTIVITY)


def _statistics(name: str, row: Mapping[str, Any], translation: Translation) -> Iterator[ImportedValue]:
    return values_of(name, row, translation, {f"{key}_{name}": word for key, word in _STATISTICS.items()})


_PRECISIONS = {"nvfp4": "fp4", "mxfp4": "fp4", "fp8": "fp8", "bf16": "bf16"}
_OURS = {
    "median_ttft": "ttft_send_p50_s", "median_tpot": "tpot_p50_s", "p99_tpot": "tpot_p99_s",
    "median_itl": "chunk_gap_p50_s", "p99_itl": "chunk_gap_p99_s", "median_intvty": "interactivity_p50_per_s",
}  # fmt: skip


def inferencex_rows(summary: RunSummary, *, run_id: str) -> list[dict[str, Any]]:
    """A row for each arm at each load point with a concurrency: medians over the usable trials.

    Only fields whose formula is ours are filled, the throughputs among them over the whole run, and none about power:
    `perfsuite` has our own metrics under our names. A missing value has no key; `hw` of an emulated run begins with
    "emulated-".
    """
    rows, medians = [], {(level.arm, level.point, level.metric.name): level.median for level in levels(summary)}
    for number, point in enumerate(summary.load_points):
        for name, arm in summary.scenario.arms.items():
            trials = [t for t in summary.trials if t.arm == name and t.load_point == number and t.is_usable]
            if trials and point.concurrency is not None:
                ours = {metric: value for (of, at, metric), value in medians.items() if (of, at) == (name, number)}
                rows.append(_row(summary, name, arm, trials, ours) | {"conc": point.concurrency, "run_id": run_id})
    return rows


def _row(
    summary: RunSummary, name: str, arm: Arm, trials: Sequence[TrialSummary], ours: Mapping[str, float]
) -> dict[str, Any]:
    """ours: our metrics of the arm at the load point -> median over its usable trials."""
    facts, layout = summary.facts_of(name), arm.parallelism
    told = facts.gpu_name if facts is not None else None
    row = {
        "hw": ("emulated-" if summary.is_emulated else "") + (told or arm.gpu).lower(),
        "image": arm.container.image if arm.container is not None else None,
        "model": arm.checkpoint or summary.scenario.model,
        "framework": arm.engine,
        "precision": _PRECISIONS.get(arm.precision, arm.precision),
        "spec_decoding": "none" if arm.speculation is None else "mtp",
        "disagg": False,
        "isl": _rounded([trial.mean_input_tokens for trial in trials]),
        "osl": _rounded([trial.mean_output_tokens for trial in trials]),
        "tp": layout.tensor,
        "pp": layout.pipeline,
        "ep": (layout.expert_size or arm.gpus) if layout.expert else 1,
        "dp_attention": layout.attention_data,
        **_throughputs(ours.get("output_tps_run"), trials, max(1, arm.gpus)),
    }
    row |= {theirs: ours.get(metric) for theirs, metric in _OURS.items()}
    tool = {"arm": name, "num_trials": len(trials), "emulated": summary.is_emulated, "metrics": dict(ours)}
    return {key: value for key, value in row.items() if value is not None} | {"perfsuite": tool}


def _throughputs(output_tps: float | None, trials: Sequence[TrialSummary], gpus: int) -> dict[str, float | None]:
    """Tokens of the answered requests / time of the run / GPUs; input tokens in proportion to the output tokens."""
    shares = [
        t.mean_input_tokens / t.mean_output_tokens for t in trials if t.mean_input_tokens and t.mean_output_tokens
    ]
    output = None if output_tps is None else output_tps / gpus
    inputs = None if output is None or len(shares) < len(trials) else output * median(shares)
    total = None if output is None or inputs is None else output + inputs
    return {"tput_per_gpu": total, "output_tput_per_gpu": output, "input_tput_per_gpu": inputs}


def _rounded(values: Sequence[float | None]) -> int | None:
    found = [value for value in values if value is not None]
    return round(median(found)) if found else None
