"""Print the error rates of perfsuite's statistics beside their targets; exit 1 when one is missed."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.statistics.simulate import Rate, all_rates


def target(rate: Rate) -> str:
    """The target in words; "–" when the rate is printed only."""
    percent = [f"{bound * 100:g} %" for bound in (rate.low, rate.high) if bound is not None]
    if rate.low is not None and rate.high is not None:
        return " to ".join(percent)
    return "–" if not percent else f"{'≥' if rate.low is not None else '≤'} {percent[0]}"


def print_rates(rates: Sequence[Rate]) -> None:
    for rate in rates:
        met = "–" if rate.low is None and rate.high is None else "yes" if rate.is_met else "**no**"
        print(
            f"| {rate.name} | {rate.value * 100:.2f} ± {rate.error * 100:.2f} % | {target(rate)} | {met} |", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=40_000, help="without a difference; a quarter with one")
    parser.add_argument("--seed", type=int, default=2026)
    options = parser.parse_args()
    print("| simulated | rate ± standard error | target | met |\n|---|---|---|---|")
    began = time.monotonic()
    rates = all_rates(num=options.repeats, seed=options.seed, on_rates=print_rates)
    missed = [rate.name for rate in rates if not rate.is_met]
    print(
        f"\n{options.repeats:,} repetitions without a difference, seed {options.seed}, {time.monotonic() - began:.0f} s"
    )
    sys.exit(f"missed: {'; '.join(missed)}" if missed else 0)


if __name__ == "__main__":
    main()
