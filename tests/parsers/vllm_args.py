# ruff: noqa: T201
"""Feed command lines to vLLM's own parser. Standard input: JSON list of argument lists, after `vllm serve`.

Standard output: JSON {"version": …, "errors": [null or what the parser says, for each], "options": [[names], …]}.
Run by vLLM's Python.
"""

import contextlib
import io
import json
import sys
from importlib.metadata import version

from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.utils.argparse_utils import FlexibleArgumentParser


def error_of(parser: FlexibleArgumentParser, arguments: list[str]) -> str | None:
    """What the parser refuses; None when it takes all of it."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            validate_parsed_serve_args(parser.parse_args(arguments))
    except (SystemExit, Exception) as error:
        return (said.getvalue() or f"{type(error).__name__}: {error}").strip()[-400:]
    return None


parser = make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))
errors = [error_of(parser, arguments) for arguments in json.load(sys.stdin)]
options = [action.option_strings for action in parser._actions if action.option_strings]
print(json.dumps({"version": version("vllm"), "errors": errors, "options": options}))
