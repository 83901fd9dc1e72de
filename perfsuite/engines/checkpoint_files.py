"""The small JSON files of a checkpoint that lies in a local folder: what they say is quantized, and how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from perfsuite.analysis.manifest import QuantizationManifest, read_manifest

CONFIG, QUANT_CONFIG, INDEX = "config.json", "hf_quant_config.json", "model.safetensors.index.json"
MAX_FILE_BYTES = 256_000_000


def local_manifest(checkpoint: str | None) -> QuantizationManifest | None:
    """The manifest of a checkpoint in a local folder; None for a repository name, or a folder without config.json."""
    folder = Path(checkpoint).expanduser() if checkpoint else None
    if folder is None or not folder.is_dir():
        return None
    config = _read(folder / CONFIG)
    return None if config is None else read_manifest(config, _read(folder / QUANT_CONFIG), _read(folder / INDEX))


def _read(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None where there is none that can be read."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            return None
        told = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return None
    return told if isinstance(told, dict) else None
