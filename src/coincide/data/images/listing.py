"""What an image source holds before anything is decoded: names, classes, images, splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coincide.data.errors import Array, SourceError, quoted
from coincide.data.images.decoding import Chunks

_SPLIT_WORDS = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "validation": ("validation", "val", "valid", "dev"),
}


@dataclass(frozen=True)
class Listing:
    """The images of a source, still encoded.

    ``ids`` is what each image is called: its path within the folder, or its row. ``chunks`` starts
    over and yields the images in order, a list at a time. ``files`` are those that all of it comes
    from, None where that cannot be said; ``skipped`` what was passed over, and why.
    """

    name: str
    ids: Sequence[str]
    chunks: Chunks
    labels: Array | None = None
    label_names: tuple[str, ...] | None = None
    files: tuple[Path, ...] | None = None
    skipped: list[tuple[str, str]] = field(default_factory=list)


def canonical_split(word: str) -> str | None:
    """Return the split that a word names, if it names one."""
    found = [split for split, words in _SPLIT_WORDS.items() if word.lower() in words]
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
