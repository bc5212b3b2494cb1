"""Splits, such as ``train`` and ``test``: how they are called, and which parts are of one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coincide.data.errors import SourceError, quoted

_WORDS = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "validation": ("validation", "val", "valid", "dev"),
}


def canonical_split(word: str) -> str | None:
    """Return the split that a word names, if it names one."""
    found = [split for split, words in _WORDS.items() if word.lower() in words]
    return found[0] if found else None


def choose_split(where: object, splits: dict[str, Any], asked: str) -> Any:
    """Return the split asked for, whichever of its names is used."""
    wanted = canonical_split(asked) or asked
    if wanted not in splits:
        raise SourceError(f"{where} has no split {asked!r}. It has {quoted(list(splits))}.")
    return splits[wanted]


def check_only_split(where: object, split: str) -> None:
    """Refuse a split other than ``train`` of a source that has no parts."""
    choose_split(where, {"train": None}, split)


def parts_of_split(
    folder: Path, parts: Sequence[Path], split: str | None
) -> tuple[list[Path], list[str]]:
    """Return the parts whose path names the split, and what was decided, in sentences.

    A part that names none is of ``train``. Without a split all parts are taken if they are of one,
    else those of ``train``.
    """
    splits: dict[str, list[Path]] = {}
    for part in parts:
        words = re.split(r"[^a-zA-Z]+", str(part.relative_to(folder).with_suffix("")))
        named = [name for name in map(canonical_split, words) if name is not None]
        splits.setdefault(named[-1] if named else "train", []).append(part)
    if split is None and len(splits) == 1:
        return list(parts), []
    chosen: list[Path] = choose_split(folder, splits, split or "train")
    if len(splits) == 1:
        return chosen, []
    name = canonical_split(split or "train") or split
    others = sorted(other for other in splits if other != name)
    return chosen, [f"{folder}: read the split {name!r}; --split takes {quoted(others)}."]
