"""Compiling _compiled.c, when perfsuite is installed and in its tests. Imports nothing of perfsuite."""

from __future__ import annotations

import sys
from pathlib import Path

SOURCE = Path(__file__).with_name("_compiled.c")


def source_digest() -> str:
    """SHA-256 of the source, in hexadecimal. Raises OSError."""
    import hashlib

    return hashlib.sha256(SOURCE.read_bytes()).hexdigest()


def c_compiler() -> list[str] | None:
    """The command of a C compiler: cc, gcc or clang, else PyPI's ziglang in this environment; None without any."""
    import importlib.util
    import shutil

    for name in ("cc", "gcc", "clang"):
        if path := shutil.which(name):
            return [path]
    return [sys.executable, "-m", "ziglang", "cc"] if importlib.util.find_spec("ziglang") else None


def compile_reads(folder: Path) -> Path | str:
    """The module _compiled, built into `folder`; or why it was not: no Linux, compiler or Python.h, or its errors."""
    try:
        return _compile(folder)
    except OSError as error:
        return str(error)


def _compile(folder: Path) -> Path | str:
    import subprocess
    import sysconfig
    import tempfile

    include = sysconfig.get_path("include")
    command = c_compiler()
    if sys.platform != "linux":
        return "kernel receive stamps are Linux's"
    if command is None:
        return "no C compiler: install cc, gcc or clang"
    if not Path(include, "Python.h").exists():
        return f"no Python.h in {include}: install the headers of this Python"
    target = folder / f"_compiled{sysconfig.get_config_var('EXT_SUFFIX')}"
    options = ["-O2", "-fPIC", "-shared", "-Wall", "-Wextra", f"-I{include}", f'-DSOURCE_DIGEST="{source_digest()}"']
    with tempfile.TemporaryDirectory(dir=folder) as unfinished:
        made = Path(unfinished, target.name)
        done = subprocess.run([*command, *options, str(SOURCE), "-o", str(made)], capture_output=True, text=True)
        if done.returncode:
            return f"{SOURCE.name} does not compile:\n{done.stderr}"
        made.replace(target)
    return target
