"""The shell commands that would start the engines of a scenario, to be read and to be run by hand."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

from perfsuite.engines.place import kind_of_place
from perfsuite.engines.server import LaunchCommand
from perfsuite.scenario.arm import Arm

PORT, FOLDER, NODE = "$PORT", "$PWD", "$(hostname -s)"
_VARIABLE = re.compile(r"\$PORT|\$PWD|\$\(hostname -s\)")
_STOP = {"docker": "docker rm --force {name}", "srun": "scancel --name={name}"}


def script_lines(name: str, arm: Arm, command: LaunchCommand, start_name: str) -> Iterator[str]:
    """The lines of one arm: its files as here-documents, its variables, its command, and what stops it."""
    yield f"\n# arm {name}"
    if not command.argv:
        yield f"# attached: {arm.url} must be up already"
        return
    for path, text in command.files.items():
        yield f"cat > {shell_word(path)} <<'END_OF_FILE'"
        yield f"{text.rstrip()}\nEND_OF_FILE"
    settings = "".join(f"{key}={shlex.quote(value)} " for key, value in command.env.items())
    yield settings + " ".join(map(shell_word, command.argv))
    if stop := _STOP.get(kind_of_place(arm)):
        yield f"# stop it: {stop.format(name=start_name)}"


def shell_word(word: str) -> str:
    """A word quoted for a POSIX shell; the variables of this module stay variables."""
    if not _VARIABLE.search(word):
        return shlex.quote(word)
    out, end = "", 0
    for match in _VARIABLE.finditer(word):
        text = word[end : match.start()]
        out += (shlex.quote(text) if text else "") + (PORT if match.group() == PORT else f'"{match.group()}"')
        end = match.end()
    return out + (shlex.quote(word[end:]) if word[end:] else "")
