"""How many token ids a model knows: prompts are drawn below it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import orjson

from perfsuite.library import is_named, load_library

ASSUMED_VOCAB_SIZE = 32_000  # a guess that is below the size of nearly every model in use


def find_vocab_size(checkpoint: str | None, model: str) -> tuple[int, str]:
    """Vocabulary size and its source: the checkpoint's config.json, the model library, or else an assumption."""
    for path in _config_files(checkpoint):
        size = _read_vocab_size(path)
        if size is not None:
            return size, str(path)
    if not any(is_named(name) for name in (checkpoint, model) if name):
        return ASSUMED_VOCAB_SIZE, "assumed"
    library = load_library()
    for key, entry in library.checkpoints.items():
        if checkpoint is not None and checkpoint.lower() in _names(key, entry.aliases):
            return entry.shape.vocab, "model library"
    for key, shape in library.models.items():
        if model.lower() in _names(key, shape.aliases):
            return shape.vocab, "model library"
    return ASSUMED_VOCAB_SIZE, "assumed"


def _names(key: str, aliases: tuple[str, ...]) -> set[str]:
    return {name.lower() for name in (key, *aliases)}


def _config_files(checkpoint: str | None) -> Iterator[Path]:
    """config.json of a checkpoint folder, or of a repository in the local Hugging Face cache."""
    if checkpoint is None:
        return
    yield Path(checkpoint).expanduser() / "config.json"
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    yield from sorted((hub / f"models--{checkpoint.replace('/', '--')}" / "snapshots").glob("*/config.json"))


def _read_vocab_size(path: Path) -> int | None:
    """`vocab_size` of a config.json, of its text_config in multi-modal models; None without."""
    try:
        config = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return None
    for part in (config, config.get("text_config") if isinstance(config, dict) else None):
        if isinstance(part, dict) and isinstance(part.get("vocab_size"), int):
            size: int = part["vocab_size"]
            return size
    return None
