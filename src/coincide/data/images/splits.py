"""The parts of a source, such as train and test, by what folders and files are called."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from coincide.data.errors import SourceError, quoted

WHOLE = "."  # the part that is all of a folder, whatever the folders in it are called

_WORDS = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "validation": ("validation", "val", "valid", "dev"),
}
# TestSet, seg_train, TRAIN, val2017: cut at what is no letter, and before capitals.
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def named_splits(name: str) -> list[str]:
    """Return the splits that the words of a name name, in their order.

    Examples
    --------
    >>> from coincide.data.images.splits import named_splits
    >>> named_splits("seg_train"), named_splits("Testing"), named_splits("val2017")
    (['train'], ['test'], ['validation'])
    >>> named_splits("trainer"), named_splits("train_val")
    ([], ['train', 'validation'])
    """
    words = [word.lower() for word in _WORD.findall(name)]
    return [split for word in words for split, known in _WORDS.items() if word in known]


def named_split(name: str) -> str | None:
    """Return the one split that a name names, if it does."""
    found = set(named_splits(name))
    return found.pop() if len(found) == 1 else None


def choose_part(where: object, names: Iterable[str], asked: str) -> str:
    """Return the part asked for: that of this very name, or the one that names the same split."""
    names = list(names)
    if asked in names:
        return asked
    split = named_split(asked)
    found = [name for name in names if split is not None and named_split(name) == split]
    if not found:
        raise SourceError(f"{where} has no split {asked!r}. It has {quoted(names)}.")
    if len(found) > 1:
        raise SourceError(
            f"{where} has several parts for the split {asked!r}, {quoted(found)}: say"
            f" --split {found[0]}, or another one."
        )
    return found[0]


def check_only_split(where: object, asked: str) -> None:
    """Refuse a split other than ``train`` of a source that has no parts."""
    if asked != WHOLE:
        choose_part(where, ["train"], asked)


def describe_choice(chosen: str, names: Sequence[str]) -> str:
    """Say which of several parts was read."""
    others = [name for name in names if name != chosen]
    return f"The part {chosen!r} was read, not {quoted(others)}." if others else ""
