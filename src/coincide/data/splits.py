"""The parts of a source, such as train and test: how they are called, and which is read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

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
    >>> from coincide.data.splits import named_splits
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


def describe_choice(where: object, chosen: str, names: Iterable[str]) -> list[str]:
    """Say which of several parts is read."""
    others = [name for name in names if name != chosen]
    if not others:
        return []
    return [f"{where}: read the split {chosen!r}; --split takes {quoted(others)}."]


def parts_of_split(
    folder: Path, parts: Sequence[Path], split: str | None
) -> tuple[list[Path], list[str]]:
    """Return the parts whose path names the split, and what was decided, in sentences.

    A part that names none is of ``train``. Without a split all parts are taken if they are of one,
    else those of ``train``.
    """
    splits: dict[str, list[Path]] = {}
    for part in parts:
        named = named_splits(str(part.relative_to(folder).with_suffix("")))
        splits.setdefault(named[-1] if named else "train", []).append(part)
    if split is None and len(splits) == 1:
        return list(parts), []
    chosen = choose_part(folder, splits, split or "train")
    return splits[chosen], describe_choice(folder, chosen, splits)
