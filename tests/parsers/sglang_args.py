# ruff: noqa: T201
"""Feed command lines to SGLang's own parser. Standard input: JSON list of argument lists, after the program.

Standard output: JSON {"version": …, "errors": [null or what the parser says, for each], "options": [[names], …]}.
Run by SGLang's Python. A deprecated flag counts as refused.
"""

import argparse
import contextlib
import io
import json
import sys
from importlib.metadata import version

from sglang.srt.server_args import ServerArgs


def error_of(parser: argparse.ArgumentParser, arguments: list[str]) -> str | None:
    """What the parser refuses or calls deprecated; None when it takes all of it."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            ServerArgs.from_cli_args(parser.parse_args(arguments))
    except (SystemExit, Exception) as error:
        return (said.getvalue() or f"{type(error).__name__}: {error}").strip()[-400:]
    return said.getvalue() if "deprecated" in said.getvalue().lower() else None


parser = argparse.ArgumentParser(prog="sglang")
ServerArgs.add_cli_args(parser)
errors = [error_of(parser, arguments) for arguments in json.load(sys.stdin)]
options = [action.option_strings for action in parser._actions if action.option_strings]
print(json.dumps({"version": version("sglang"), "errors": errors, "options": options}))
