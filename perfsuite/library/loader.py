"""Reads the YAML files of the model library into values, and refuses a number without a source."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from perfsuite.errors import PerfsuiteError
from perfsuite.library.facts import (
    PARTS,
    BackendRule,
    Checkpoint,
    CompressedAttention,
    EngineSupport,
    Figure,
    Gpu,
    Indexer,
    KvStream,
    Library,
    MlaAttention,
    ModelShape,
    WeightFormat,
)

_FOLDER = Path(__file__).parent
SUPPORT_STATUSES = ("card", "recipe", "inferred", "unsupported")
_BASES = ("stated", "computed", "inferred", "assumed")
_YAML_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def is_named(name: str) -> bool:
    """Whether the files know a model or checkpoint of this id or alias at all: far quicker than to read their YAML.

    False is certain; True may be of a name that only occurs in another.
    """
    return name.lower() in _names_text()


@cache
def _names_text() -> str:
    files = [_FOLDER / f"{file}.yaml" for file in ("models", "checkpoints")]
    return "\n".join(path.read_text(encoding="utf-8").lower() for path in files)


@cache
def load_library() -> Library:
    """The whole library, read once per process. Raises PerfsuiteError if a data file is not as promised."""
    figures: dict[str, Figure] = {}
    formats = {key: WeightFormat(id=key, **entry) for key, entry in _read("formats", "formats", figures).items()}
    models = {key: _shape(key, entry) for key, entry in _read("models", "models", figures).items()}
    checkpoints = {
        key: _checkpoint(key, entry, models, formats)
        for key, entry in _read("checkpoints", "checkpoints", figures).items()
    }
    gpus = {key: _gpu(key, entry) for key, entry in _read("gpus", "gpus", figures).items()}
    backends = [_backend_rule(name, entry, figures) for name, entry in _read("backends", "backends", figures).items()]
    return Library(
        formats=MappingProxyType(formats),
        models=MappingProxyType(models),
        checkpoints=MappingProxyType(checkpoints),
        gpus=MappingProxyType(gpus),
        backends=tuple(backends),
        figures=MappingProxyType(figures),
    )


def _read(file: str, section: str, figures: dict[str, Figure]) -> dict[str, Any]:
    """The section with every {value, source, basis} replaced by its value; `figures` gets the whole entries."""
    with (_FOLDER / f"{file}.yaml").open(encoding="utf-8") as stream:
        document = yaml.load(stream, Loader=_YAML_LOADER)
    values: dict[str, Any] = unwrap_figures(document[section], section, document["sources"], figures)
    return values


def unwrap_figures(node: Any, path: str, sources: Mapping[str, str], figures: dict[str, Figure]) -> Any:
    """`node` with figures replaced by their values, noted in `figures` under their dotted path.

    Raises PerfsuiteError for a number without a source, an unknown source key and an unknown basis.
    """
    if isinstance(node, dict) and "value" in node:
        figures[path] = _figure(node, path, sources)
        return node["value"]
    if isinstance(node, dict):
        return {key: unwrap_figures(child, f"{path}.{key}", sources, figures) for key, child in node.items()}
    if isinstance(node, list):
        return [unwrap_figures(child, f"{path}.{_name(child, i)}", sources, figures) for i, child in enumerate(node)]
    if isinstance(node, str):
        return node
    raise PerfsuiteError("a number of the model library has no source", where=path, found=repr(node))


def _name(child: Any, index: int) -> str:
    return str(child["name"]) if isinstance(child, dict) and isinstance(child.get("name"), str) else str(index)


def _figure(node: dict[str, Any], path: str, sources: Mapping[str, str]) -> Figure:
    basis = node.get("basis", "stated")
    unknown = set(node) - {"value", "source", "basis"}
    if unknown or basis not in _BASES or node.get("source") not in sources:
        raise PerfsuiteError("a figure of the model library is not as promised", where=path, found=repr(node))
    return Figure(value=node["value"], source=sources[node["source"]], basis=basis)


def _shape(key: str, entry: dict[str, Any]) -> ModelShape:
    attention = dict(entry.pop("attention"))
    kind = {"mla": MlaAttention, "compressed": CompressedAttention}[attention.pop("kind")]
    indexer = entry.pop("indexer", None)
    streams = entry.pop("kv_streams")
    return ModelShape(
        id=key,
        aliases=tuple(entry.pop("aliases")),
        attention=kind(**attention),
        indexer=Indexer(**indexer) if indexer else None,
        kv_streams=tuple(_stream(stream) for stream in streams),
        **entry,
    )


def _stream(entry: dict[str, Any]) -> KvStream:
    limits = {key: entry.pop(key, None) for key in ("entries_read_max", "entries_kept_max")}
    return KvStream(bytes_per_entry=MappingProxyType(entry.pop("bytes_per_entry")), **limits, **entry)


def _checkpoint(
    key: str, entry: dict[str, Any], models: Mapping[str, ModelShape], formats: Mapping[str, WeightFormat]
) -> Checkpoint:
    parts = {part: formats[entry["parts"][part]] for part in PARTS}
    return Checkpoint(
        id=key,
        aliases=tuple(entry["aliases"]),
        shape=models[entry["model"]],
        precision=entry["precision"],
        baseline=entry.get("baseline"),
        parts=MappingProxyType(parts),
        kv_cache_dtype_auto=entry["kv_cache_dtype_auto"],
        disk_bytes=entry["disk_bytes"],
        accuracy=MappingProxyType(entry.get("accuracy", {})),
        engines=MappingProxyType({name: _support(name, each) for name, each in entry["engines"].items()}),
        note=entry.get("note"),
    )


def _support(engine: str, entry: dict[str, Any]) -> EngineSupport:
    if entry["status"] not in SUPPORT_STATUSES:
        raise PerfsuiteError("an unknown status of support in the model library", found=repr(entry["status"]))
    return EngineSupport(engine=engine, status=entry["status"], since=entry.get("since"), seen=entry.get("seen"))


def _backend_rule(name: str, entry: dict[str, Any], figures: Mapping[str, Figure]) -> BackendRule:
    """`name` is "engine.key"; the allowed values are words with spaces between."""
    engine, _, key = name.partition(".")
    allowed = {kind: tuple(words.split()) for kind, words in entry.items()}
    sources = dict.fromkeys(figures[f"backends.{name}.{kind}"].source for kind in entry)
    return BackendRule(engine=engine, key=key, allowed=MappingProxyType(allowed), source="; ".join(sources))


def _gpu(key: str, entry: dict[str, Any]) -> Gpu:
    return Gpu(
        id=key,
        aliases=tuple(entry.pop("aliases")),
        peak_flops_per_s=MappingProxyType(entry.pop("peak_flops_per_s")),
        **entry,
    )
