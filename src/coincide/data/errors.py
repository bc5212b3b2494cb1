"""The error that says why a source cannot be read, and the words for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from numpy.typing import NDArray

from coincide._names import closest

Array: TypeAlias = NDArray[Any]


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
