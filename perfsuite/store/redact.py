"""Secrets stay out of bundles: by the name of the key or flag they follow, and by their value wherever it turns up."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import yaml

REDACTED = "REDACTED"

_ENV_KEY = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
_ANY_KEY = re.compile(
    r"api[_-]?key$|secret|password|passwd|credential|authorization|(auth|access|bearer|hf)[_-]?token$", re.IGNORECASE
)
_FLAG = re.compile(
    r"^--?[\w-]*?(api-?key|secret|password|passwd|(auth|access|bearer|hf)-?token)(?P<value>=.*)?$", re.I | re.S
)
_ANCHOR = re.compile(r"^&\S+\s+")


class Redactor:
    """Takes secrets out of values and texts before they are written.

    `secrets` are values that must not appear anywhere. Values found under secret-looking names in `known` join them
    when they cannot be mistaken for a word.
    """

    def __init__(self, known: Any = None, secrets: Iterable[str] = ()) -> None:
        found = {value for value in _named_secrets(known, in_env=False) if _is_unmistakable(value)}
        self._values = sorted(found | {value for value in secrets if value}, key=len, reverse=True)

    def text(self, text: str) -> str:
        """The text without the known values."""
        for value in self._values:
            text = text.replace(value, REDACTED)
        return text

    def plain(self, value: Any) -> Any:
        """A JSON-ready copy without secrets. Dataclasses become objects, paths text, non-finite numbers null."""
        return self._plain(value, in_env=False)

    def yaml(self, text: str) -> str:
        """A YAML text without secrets, otherwise as it was: comments and layout stay."""
        for start, end, shown in sorted(set(_yaml_spans(text)), reverse=True):
            old = text[start:end]
            anchor = _ANCHOR.match(old)
            tail = old[len(old.rstrip()) :]
            text = text[:start] + (anchor.group() if anchor else "") + json.dumps(shown) + tail + text[end:]
        return self.text(text)

    def _plain(self, value: Any, *, in_env: bool) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        if isinstance(value, Mapping):
            return {
                str(key): REDACTED if _hides(str(key), item, in_env) else self._plain(item, in_env=key == "env")
                for key, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [self._plain(item, in_env=False) for item in _without_flag_values(value)]
        if isinstance(value, float):
            return value if math.isfinite(value) else None
        if value is None or isinstance(value, bool | int):
            return value
        return self.text(str(value))


def _hides(key: str, value: Any, in_env: bool) -> bool:
    """True for a text under a secret-looking key. A reference such as ${NAME} is no secret."""
    if not isinstance(value, str) or re.fullmatch(r"\$\{\w+\}", value):
        return False
    return bool((_ENV_KEY if in_env else _ANY_KEY).search(key))


def _without_flag_values(items: Iterable[Any]) -> Iterator[Any]:
    """Command-line words with the values of secret-looking flags replaced."""
    is_value = False
    for item in items:
        match = _FLAG.match(item) if isinstance(item, str) else None
        if match and match["value"]:
            yield item[: match.start("value")] + "=" + REDACTED
        else:
            yield REDACTED if is_value and isinstance(item, str) else item
        is_value = bool(match and not match["value"])


def _named_secrets(value: Any, *, in_env: bool) -> Iterator[str]:
    """Every text under a secret-looking key or after a secret-looking flag."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if _hides(str(key), item, in_env):
                yield item
            else:
                yield from _named_secrets(item, in_env=key == "env")
    elif isinstance(value, list | tuple):
        for item, shown in zip(value, _without_flag_values(value), strict=True):
            if item != shown:
                yield item.partition("=")[2] if item.startswith("-") else item
            yield from _named_secrets(item, in_env=False)


def _is_unmistakable(value: str) -> bool:
    """Long enough, or mixed enough, that replacing it everywhere harms no ordinary word."""
    return len(value) >= 20 or (
        len(value) >= 8 and bool(re.search(r"\d", value)) and bool(re.search(r"[A-Za-z]", value))
    )


def _yaml_spans(text: str) -> Iterator[tuple[int, int, str]]:
    """(start, end, what to show instead) of each scalar of a YAML text that holds a secret."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    yield from _node_spans(root, in_env=False, seen=set()) if root is not None else ()


def _node_spans(node: yaml.Node, *, in_env: bool, seen: set[tuple[int, bool]]) -> Iterator[tuple[int, int, str]]:
    if (id(node), in_env) in seen:
        return
    seen.add((id(node), in_env))
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(value, yaml.ScalarNode) and _hides(str(key.value), value.value, in_env):
                yield value.start_mark.index, value.end_mark.index, REDACTED
            else:
                merged = key.value == "<<" and in_env
                yield from _node_spans(value, in_env=key.value == "env" or merged, seen=seen)
    elif isinstance(node, yaml.SequenceNode):
        words = [item.value if isinstance(item, yaml.ScalarNode) else None for item in node.value]
        for item, word, shown in zip(node.value, words, _without_flag_values(words), strict=True):
            if word != shown:
                yield item.start_mark.index, item.end_mark.index, str(shown)
            yield from _node_spans(item, in_env=in_env, seen=seen)
