"""The error that says why a source cannot be read, and the words for it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

from numpy.typing import NDArray

from coincide._names import closest

Array: TypeAlias = NDArray[Any]


BUILT_IN = ("digits",)  # sources without a file


class SourceError(ValueError):
    """A source that cannot be read, or not clustered as it stands."""


def first_line(error: BaseException) -> str:
    """Return what an error of another library says, in a line."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    lines = text.strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def quoted(names: Sequence[str]) -> str:
    """Return up to five names, quoted, and how many more there are.

    Examples
    --------
    >>> from coincide.data.errors import quoted
    >>> quoted(list("abcdefg"))
    "'a', 'b', 'c', 'd', 'e' and 2 more"
    """
    listed = ", ".join(repr(name) for name in names[:5])
    return listed if len(names) <= 5 else f"{listed} and {len(names) - 5} more"


def check_known(asked: Sequence[str], names: Sequence[str], where: str, what: str) -> None:
    """Refuse a name that is not among ``names``, with the closest one that is."""
    for name in asked:
        if name not in names:
            hint = closest(name, names) or f"It has {quoted(names) or 'none'}."
            raise SourceError(f"{where} has no {what} {name!r}. {hint}")


def missing_source(source: str | Path) -> SourceError:
    """Return the error of a path that leads nowhere, which says where it ends."""
    lost = _lost(source)
    told = f"The source {str(source)!r} does not exist"
    told += "." if lost == Path(source).expanduser() else f": there is no {str(lost)!r}."
    return SourceError(f"{told} {closest_source(source)}".rstrip())


def closest_source(source: str | Path) -> str:
    """Return ``Did you mean 'x'?`` of what is built in, or lies where a path ends, or nothing."""
    lost = _lost(source)
    beside: list[str] = []
    with suppress(OSError):  # what cannot be looked into has no names to offer
        beside = sorted(entry.name for entry in lost.parent.iterdir() if entry.name[0] != ".")
    built_in = closest(str(source), BUILT_IN, "the built-in source ")
    return built_in or closest(lost.name, beside)


def _lost(source: str | Path) -> Path:
    """Return the first part of a path that is not there."""
    lost = Path(source).expanduser()
    while str(lost.parent) != str(lost) and not lost.parent.exists():
        lost = lost.parent
    return lost
