"""The command line: arguments in, calls out.

What a command does is in the file of its name, which brings PyTorch, NumPy and scikit-learn with it
and is imported only when the command runs: ``coincide --help`` must not wait for them.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TextIO

from coincide.cli.arguments import UsageError, build_parser

# The module of each command, which has a function of the command's name.
_HOME = {
    "cluster": "coincide.cli.cluster",
    "train": "coincide.cli.train",
    "predict": "coincide.cli.predict",
    "report": "coincide.cli.run",
    "info": "coincide.cli.console",
    "completion": "coincide.cli.completion",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, by default that of the process, and return its exit status.

    It is 0 if all went well; 2 for bad input, said in one line on stderr; 130 after Ctrl-C, or a
    training that SIGTERM stopped. With ``--json`` one object is printed on stdout, of an error,
    too, and nothing else.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    output, as_json = sys.stdout, "--json" in given
    try:
        arguments = build_parser().parse_args(given)
    except SystemExit as end:  # argparse has printed help or the version
        return int(end.code or 0)
    except UsageError as error:
        return _refuse(f"error: {error}", 2, output, as_json)
    arguments.argv = ["coincide", *given]
    try:
        _run(arguments, output)
        output.flush()
    except KeyboardInterrupt as stop:
        return _refuse(str(stop) or "stopped.", 130, output, as_json)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())
        return 0
    except (ValueError, TypeError, OSError, ImportError) as error:
        if "debug" in arguments:
            raise
        return _refuse(f"error: {_sentence(error)}", 2, output, as_json)
    return 0


def _run(arguments: Namespace, output: TextIO) -> None:
    """Run a command; where standard output is for a program, all it says goes to stderr."""
    arguments.output = output
    as_json = getattr(arguments, "json", False)
    streams = getattr(arguments, "out", None) == Path("-")
    if as_json and streams:
        raise ValueError("--json and --out - both write to standard output: leave one out.")
    with redirect_stdout(sys.stderr) if as_json or streams else nullcontext():
        command = getattr(importlib.import_module(_HOME[arguments.command]), arguments.command)
        told = command(arguments)
    if as_json and told is not None:
        print(json.dumps(told, indent=2, allow_nan=False), file=output)


def _refuse(sentence: str, status: int, output: TextIO, as_json: bool) -> int:
    """Say why a command ended, and return its exit status."""
    print(f"coincide: {sentence}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": sentence.removeprefix("error: ")}), file=output)
    return status


def _sentence(error: Exception) -> str:
    """Return what went wrong in one line."""
    if isinstance(error, OSError) and error.strerror:
        place = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{place}."
    return " ".join(str(error).split()) or type(error).__name__
