"""What an image source holds before anything is decoded: names, classes, images."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from coincide._names import closest
from coincide.data.errors import Array, SourceError, check_known, quoted
from coincide.data.images.decoding import Chunks
from coincide.data.vectors import BUILT_IN

_LABEL_NAMES = ("label", "labels", "class", "target")  # in any case, with blanks around


@dataclass(frozen=True)
class Listing:
    """The images of a source, still encoded.

    ``ids`` is what each image is called: its path within the folder, or its row. ``chunks`` starts
    over and yields the images in order, a list at a time. ``files`` are those that all of it comes
    from, None where that cannot be said; ``skipped`` what was passed over, and why. ``note`` says
    what of the source was read, ``label_note`` where the labels are from.
    """

    name: str
    ids: Sequence[str]
    chunks: Chunks
    labels: Array | None = None
    label_names: tuple[str, ...] | None = None
    files: tuple[Path, ...] | None = None
    skipped: Sequence[tuple[str, str]] = ()
    note: str = ""
    label_note: str = ""


@dataclass(frozen=True)
class LabelColumn:
    """The column of labels, None if there is none, and how it was found."""

    name: str | None
    note: str = ""


def find_label_column(
    schema: pa.Schema, asked: str | None, where: str, described: Sequence[str] = ()
) -> LabelColumn:
    """Return the column asked for; else the one called ``label`` or the like, or of classes.

    ``described`` are the columns that the source itself says to be classes.
    """
    names: list[str] = schema.names
    if asked is not None:
        if asked not in names and [n.strip() for n in names].count(asked.strip()) == 1:
            return LabelColumn(next(n for n in names if n.strip() == asked.strip()))
        check_known([asked], names, where, "column")
        if names.count(asked) > 1:
            raise SourceError(f"{where} has several columns {asked!r}: rename all but one.")
        return LabelColumn(asked)
    plain = [field.name for field in schema if not pa.types.is_nested(field.type)]
    called = [name for name in plain if name.strip().lower() in _LABEL_NAMES]
    first = [name for name in called if name.strip().lower() == _LABEL_NAMES[0]]
    found = first or called or list(described)
    if len(found) > 1:
        raise SourceError(
            f"{where} has several columns that could be the labels, {quoted(found)}: name one with"
            " --label-column."
        )
    if found:
        return LabelColumn(found[0], f"The labels are the column {found[0]!r} of {where}.")
    others = f"No column of {where} was taken for labels. It has {quoted(names)}."
    return LabelColumn(None, others if names else "")


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
