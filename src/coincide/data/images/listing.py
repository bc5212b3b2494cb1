"""What an image source holds before anything is decoded: names, classes, images, splits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from coincide._checks import UNKNOWN
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


def encode_labels(
    values: Iterable[object], where: str, names: Sequence[str] | None = None
) -> tuple[Array | None, tuple[str, ...] | None]:
    """Return class codes, -1 where unknown, and what they stand for, or None for both.

    Values are integers, whole numbers, or text, one per image; None, NaN, blanks and -1 are
    unknown. ``names`` are those of the classes 0 … C-1; without them the values found, sorted, are
    the classes. Other kinds of values, text beside numbers, and codes outside of ``names`` are
    refused; ``where`` says where they come from.

    Examples
    --------
    >>> from coincide.data.images.listing import encode_labels
    >>> encode_labels(["dog", "", "cat", None], "the column")
    (array([ 1, -1,  0, -1]), ('cat', 'dog'))
    """
    cleaned = [_class_of(value, row, where) for row, value in enumerate(values)]
    known = {value for value in cleaned if value is not None}
    if not known:
        return None, None
    if len({type(value) for value in known}) > 1:
        raise SourceError(f"The labels in {where} must be either all numbers or all text.")
    classes: list[Any] = sorted(known)
    if names is not None and isinstance(classes[0], int):
        if classes[-1] >= len(names):
            row = cleaned.index(classes[-1])
            raise SourceError(
                f"The labels in {where} must lie below {len(names)}, the number of its classes."
                f" Row {row} has {classes[-1]}."
            )
        classes, label_names = list(range(len(names))), tuple(str(name) for name in names)
    else:
        label_names = tuple(str(value) for value in classes)
    codes = {value: code for code, value in enumerate(classes)}
    labels = [UNKNOWN if value is None else codes[value] for value in cleaned]
    return np.array(labels, np.int64), label_names


def _class_of(value: object, row: int, where: str) -> int | str | None:
    """Return a label as an integer or text, None where it is unknown."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, str):
        return value if value.strip() else None
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if whole and int(value) >= UNKNOWN:  # type: ignore[call-overload]
        code = int(value)  # type: ignore[call-overload]
        return None if code == UNKNOWN else code
    raise SourceError(
        f"The labels in {where} must be integers >= 0 or text, and -1 or nothing where unknown."
        f" Row {row} has {value!r}."
    )
