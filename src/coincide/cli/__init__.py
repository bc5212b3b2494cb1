"""The command line: arguments in, calls out.

What a command does is in the file of its name, which brings PyTorch, NumPy and scikit-learn with it
and is imported only when the command runs: ``coincide --help`` must not wait for them.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from coincide.cli.arguments import build_parser

# The module of each command, which has a function of the command's name.
_HOME = {
    "cluster": "coincide.cli.cluster",
    "train": "coincide.cli.train",
    "predict": "coincide.cli.predict",
    "report": "coincide.cli.run",
    "info": "coincide.cli.console",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, by default that of the process, and return its exit status.

    It is 0 if all went well; 2 for bad input, said in one line on stderr; 130 after Ctrl-C, or a
    training that SIGTERM stopped.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments = build_parser().parse_args(given)
    except SystemExit as end:  # argparse has printed help, the version or an error
        return int(end.code or 0)
    arguments.argv = ["coincide", *given]
    try:
        getattr(importlib.import_module(_HOME[arguments.command]), arguments.command)(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt as stop:
        print(f"coincide: {str(stop) or 'stopped.'}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, TypeError, OSError, ImportError) as error:
        if "debug" in arguments:
            raise
        print(f"coincide: error: {_sentence(error)}", file=sys.stderr)
        return 2
    return 0


def _sentence(error: Exception) -> str:
    """Return what went wrong in one line."""
    if isinstance(error, OSError) and error.strerror:
        place = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{place}."
    return " ".join(str(error).split()) or type(error).__name__
