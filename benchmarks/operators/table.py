"""python -m benchmarks.operators.table FILE.json: the roofline table of a --benchmark-json, as Markdown."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HEAD = ("operator", "models", "format", "µs", "TFLOP/s", "GB/s", "of the roofline", "bound")


def table(benchmarks: Sequence[Mapping[str, Any]]) -> str:
    """A row for each benchmark: medians; "–" where the model library has no roofline for the device."""
    rows = [_row(each["extra_info"], each["stats"]["median"]) for each in benchmarks]
    lines = [HEAD, ("---",) * len(HEAD), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _row(info: Mapping[str, Any], median_s: float) -> tuple[str, ...]:
    sizes = [f"{info['num_groups']}×"] if info["num_groups"] > 1 else []
    sizes += [f"{name}={info[name]}" for name in ("rows", "n", "k", "heads", "entries") if info[name]]
    ratio = "–" if info["ratio"] is None else f"{info['ratio']:.1%}"
    return (f"{info['name']} {' '.join(sizes)}", ", ".join(info["models"]), info["format"], f"{median_s * 1e6:.1f}",
            f"{info['tflops_per_s']:.3g}", f"{info['gbytes_per_s']:.3g}", ratio, info["bound"] or "–")  # fmt: skip


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["benchmarks"]))
