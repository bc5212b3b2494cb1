"""What a user calls a thing: one name of several, or the place of a function of his own."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from coincide._checks import parameter_message


def closest(name: str, names: Iterable[str], what: str = "") -> str:
    """Return ``Did you mean 'x'?`` of the name most like the given one in any case, or nothing.

    ``what`` says what it is the name of, such as ``"the network "``.

    Examples
    --------
    >>> from coincide._names import closest
    >>> closest("SimCLS", ["simclr", "scan"])
    "Did you mean 'simclr'?"
    """
    written = {known.lower(): known for known in names}
    close = difflib.get_close_matches(name.lower(), written, n=1)
    return f"Did you mean {what}{written[close[0]]!r}?" if close else ""


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return the key by which people sort names: ``part-2`` before ``part-10``.

    Examples
    --------
    >>> from coincide._names import natural_key
    >>> sorted(["10", "2", "b1", "a"], key=natural_key)
    ['2', '10', 'a', 'b1']
    """
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return tuple((0, int(part), part) if part[0].isdigit() else (1, 0, part) for part in parts)


def load_function(
    place: str, name: str, owner: str, packages: Iterable[str] = ()
) -> Callable[..., Any]:
    """Return a function by its place, running the module or the file it stands in.

    The place is ``"module:function"`` of a module that can be imported, or ``"path.py:function"``;
    ``packages`` are what else may stand before the colon, for a hint. What the module itself raises
    comes through.
    """

    def refuse(expected: str, hint: str = "") -> ValueError:
        return ValueError(parameter_message(name, owner, expected, place, hint))

    source, _, function = place.rpartition(":")
    if source.endswith(".py"):
        if not Path(source).is_file():
            raise refuse("a function of a file that is there", f"There is no file {source}.")
        module = _run_file(Path(source))
    else:
        if not function or not all(part.isidentifier() for part in source.split(".")):
            raise refuse("a function's place, 'module:function' or 'path.py:function'")
        try:
            module = importlib.import_module(source)
        except ModuleNotFoundError as error:
            # A module that exists and fails to import another has its own story to tell.
            if error.name is None or not f"{source}.".startswith(f"{error.name}."):
                raise
            hint = f"No module is called {error.name!r}. {closest(source, packages)}"
            if Path(f"{source}.py").is_file():
                hint = f"For the file here write '{source}.py:{function}'."
            raise refuse("a function of a module that can be imported", hint) from error
    found = getattr(module, function, None)
    if not callable(found):
        functions = (known for known, value in vars(module).items() if callable(value))
        raise refuse(f"a function that {source} has", closest(function, functions))
    of_user: Callable[..., Any] = found
    return of_user


def _run_file(path: Path) -> ModuleType:
    """Run a file as a module of a name of its own: random.py must not become everybody's random."""
    spec = importlib.util.spec_from_file_location(f"coincide_user_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for their own module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module
