"""What reading a source gives, and the error that says why it cannot be read."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]


class SourceError(ValueError):
    """A source that cannot be read, or not clustered as it stands."""


@dataclass(frozen=True)
class Source:
    """Feature vectors, and the classes of the points where they are known.

    Attributes
    ----------
    name : str
        What the source is called: ``"digits"``, or the file's name without its suffix.
    features : ndarray of shape (M, D)
        Finite numbers in the dtype they were stored in; memory-mapped from an ``.npy``.
    labels : ndarray of shape (M,), int64, or None
        Class codes 0 … C-1, for evaluation only.
    label_names : tuple of C str, or None
        What the codes stand for.
    columns : tuple of str, or None
        The columns of a table that the features came from, in order (a column of lists is one
        name). None for arrays.
    """

    name: str
    features: Array
    labels: Array | None = None
    label_names: tuple[str, ...] | None = None
    columns: tuple[str, ...] | None = None


def quoted(names: Sequence[str]) -> str:
    """Return up to five names, quoted, and how many more there are.

    Examples
    --------
    >>> from coincide.data.source import quoted
    >>> quoted(list("abcdefg"))
    "'a', 'b', 'c', 'd', 'e' and 2 more"
    """
    listed = ", ".join(repr(name) for name in names[:5])
    return listed if len(names) <= 5 else f"{listed} and {len(names) - 5} more"


def check_known(asked: Sequence[str], names: Sequence[str], where: str, what: str) -> None:
    """Refuse a name that is not among ``names``, with the closest one that is."""
    for name in asked:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"Did you mean {close[0]!r}?" if close else f"It has {quoted(names) or 'none'}."
            raise SourceError(f"{where} has no {what} {name!r}. {hint}")
