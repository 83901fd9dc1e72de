"""The tables of docs/support.md: what the model library knows of each checkpoint on each engine, and the commands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from perfsuite.engines import ENGINES, launch_command
from perfsuite.library import Checkpoint, EngineSupport, Figure, find_checkpoint, load_library
from perfsuite.scenario.files import load_scenario
from perfsuite.scenario.schema import Scenario

SCENARIOS = Path(__file__).parent.parent / "scenarios"
FILES = (
    "deepseek-r1",
    "deepseek-v3.1",
    "deepseek-v3.2",
    "deepseek-v4-flash",
    "deepseek-v4-flash-native",
    "inferencex-8k1k",
)
NAMES = {"vllm": "vLLM", "sglang": "SGLang", "trtllm": "TensorRT-LLM"}
NEWEST = {"vllm": "0.33.0", "sglang": "0.5.23", "trtllm": "1.3.0rc24"}  # the versions that the commands are written for
WORDS = {
    "card": "yes: named by the model card",
    "recipe": "yes: official recipe or published script",
    "inferred": "likely: same architecture and format, nothing published",
    "unsupported": "no release is known to",
}

Rows = list[tuple[str, ...]]


def support_rows() -> tuple[tuple[str, ...], Rows]:
    """(head, rows) of the support table."""
    arms = _arms_by_checkpoint()
    head = ("model", "checkpoint", "precision", "engine", "served", "since", "seen with", "command", "source")
    rows = [
        (
            checkpoint.model, checkpoint.id, checkpoint.precision, NAMES[engine], WORDS[support.status],
            _version(support.since, _figure(checkpoint, engine, "since")), support.seen or "–",
            arms.get((checkpoint.id, engine), "–"), _figure(checkpoint, engine, "status").source,
        )
        for checkpoint in load_library().checkpoints.values()
        for engine, support in _in_order(checkpoint)
    ]  # fmt: skip
    return head, rows


def _in_order(checkpoint: Checkpoint) -> Iterator[tuple[str, EngineSupport]]:
    return ((engine, checkpoint.engines[engine]) for engine in NAMES)


def _figure(checkpoint: Checkpoint, engine: str, key: str) -> Figure:
    figures = load_library().figures
    path = f"checkpoints.{checkpoint.id}.engines.{engine}"
    return figures.get(f"{path}.{key}") or figures[f"{path}.status"]


def _version(since: str | None, figure: Figure) -> str:
    return "not known" if since is None else since + ("" if figure.basis == "stated" else " (inferred)")


def _scenarios() -> list[tuple[str, Scenario]]:
    return [(name, load_scenario(SCENARIOS / f"{name}.yaml")[0]) for name in FILES]


def _arms_by_checkpoint() -> dict[tuple[str, str], str]:
    """(checkpoint, engine) → where its command is."""
    return {
        (find_checkpoint(arm.checkpoint or "").id, arm.engine): f"[{name}](../scenarios/{name}.yaml), arm `{key}`"
        for name, scenario in reversed(_scenarios())
        for key, arm in scenario.arms.items()
    }


def commands_text() -> str:
    """Every arm's command as a shell would take it, for the versions of NEWEST."""
    parts = []
    for name, scenario in _scenarios():
        lines = [f"### {name}\n", "```sh"]
        for key, arm in scenario.arms.items():
            assert ENGINES[arm.engine].launch is not None
            version = arm.engine_version or NEWEST[arm.engine]
            pinned = arm.model_copy(update={"engine_version": version})
            command = launch_command(pinned, name=key, model=scenario.model, seed=scenario.seed, port=None)
            lines.append(f"# {key}, {NAMES[arm.engine]} {version}")
            lines += [f"# {path}: {' '.join(text.split())}" for path, text in command.files.items()]
            lines.append(" ".join(command.argv))
        parts.append("\n".join([*lines, "```\n"]))
    return "\n".join(parts)
