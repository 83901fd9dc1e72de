"""Which names a version of an engine has for its flags: one table for each engine, read by the launchers."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from perfsuite.errors import ScenarioError
from perfsuite.scenario.arm import Arm

_RELEASE = re.compile(r"\d+(?:\.\d+)*")
_PRE_RELEASE = re.compile(r"(?:a|b|rc)(\d+)")
_NO_PRE_RELEASE = 10**6


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagSpan:
    """When an engine has a flag.

    since   the first version that has it; None: as far back as anything here was read
    until   the first version that refuses it; None: the newest still has it
    cure    what to write instead outside of that span
    source  where since and until were read
    """

    flag: str
    since: str | None = None
    until: str | None = None
    cure: str
    source: str


def version_key(text: str) -> tuple[tuple[int, ...], int]:
    """A version as something to compare: "1.3.0rc14" is below "1.3.0"; local parts such as "+cpu" do not count."""
    public = text.removeprefix("v").partition("+")[0]
    release = _RELEASE.match(public)
    numbers = [int(part) for part in release.group().split(".")] if release else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    before = _PRE_RELEASE.search(public)
    return tuple(numbers), int(before.group(1)) if before else _NO_PRE_RELEASE


def is_at_least(version: str | None, wanted: str) -> bool:
    """Whether a version is `wanted` or newer. An unknown version counts as the newest."""
    return version is None or version_key(version) >= version_key(wanted)


def is_same_version(told: str, declared: str) -> bool:
    """Whether the version that a server tells is the declared one, as far as that is spelt out: 0.5 matches 0.5.23."""
    mine, theirs = _public(declared), _public(told)
    return theirs == mine or theirs.startswith((mine + ".", mine + "rc"))


def _public(version: str) -> str:
    return version.removeprefix("v").partition("+")[0]


def refuse_unknown_flags(
    words: Iterable[str], spans: Iterable[FlagSpan], version: str | None, *, engine: str, where: str
) -> None:
    """Raises ScenarioError for the first flag that the version lacks, with what it has instead.

    Flags in no span are left to the engine's own parser.
    """
    table = {span.flag: span for span in spans}
    for word in words:
        span = table.get(word.partition("=")[0])
        if span is not None and (reason := _absence(span, version)):
            raise ScenarioError(
                f"{engine} {version or 'of today'} has no flag {span.flag}: {reason}",
                where=where,
                found=word,
                cure=span.cure + ("" if version else ", or declare engine_version, if an older one is installed"),
            )


def _absence(span: FlagSpan, version: str | None) -> str | None:
    if span.since is not None and not is_at_least(version, span.since):
        return f"it came with {span.since}"
    if span.until is not None and is_at_least(version, span.until):
        return f"it was removed in {span.until}"
    return None


def find_version(arm: Arm, program: str, distributions: Iterable[str]) -> str | None:
    """The version that an arm's engine has: as declared, in the tag of its image, or as installed. None: unknown."""
    if arm.engine_version is not None:
        return arm.engine_version
    if arm.container is not None:
        return image_version(arm.container.image)
    return installed_version(program, distributions)


def image_version(image: str) -> str | None:
    """The version in an image's tag: "vllm/vllm-openai:v0.33.0-cu130" gives "0.33.0". None without one."""
    tag = image.rpartition("/")[2].partition("@")[0].partition(":")[2]
    match = re.match(r"v?(\d+\.\d+(?:\.\d+)?(?:(?:a|b|rc|\.post)\d+)?)(?:-|$)", tag)
    return match.group(1) if match else None


def installed_version(program: str, distributions: Iterable[str]) -> str | None:
    """The version of a distribution in the environment that holds a program, from its metadata folder's name.

    None where the program is not on PATH or its environment holds none of them. Nothing is executed.
    """
    found = shutil.which(program)
    if found is None:
        return None
    for folder in dict.fromkeys((Path(found).absolute().parent.parent, Path(found).resolve().parent.parent)):
        for name in distributions:
            pattern = f"lib/python3*/site-packages/{name.replace('-', '_')}-*.dist-info"
            versions = [path.name.removesuffix(".dist-info").rpartition("-")[2] for path in folder.glob(pattern)]
            if versions:
                return max(versions, key=version_key)
    return None
