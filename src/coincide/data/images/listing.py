"""What an image source holds before anything is decoded: names, classes, images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from coincide.data.columns import named_label
from coincide.data.errors import Array, SourceError, check_known, quoted
from coincide.data.images.decoding import Chunks


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


def find_label_column(
    schema: pa.Schema, asked: str | None, where: str, described: Sequence[str] = ()
) -> tuple[str | None, str]:
    """Return the column asked for, or the one of labels, if any; and how it was found.

    ``described`` are the columns that the source itself says to be classes.
    """
    names: list[str] = schema.names
    if asked is not None:
        stripped = [name for name in names if name.strip() == asked.strip()]
        if asked in names or len(stripped) != 1:
            check_known([asked], names, where, "column")
            if names.count(asked) > 1:
                raise SourceError(f"{where} has several columns {asked!r}: rename all but one.")
            return asked, ""
        return stripped[0], ""
    plain = [field.name for field in schema if not pa.types.is_nested(field.type)]
    found = named_label(plain, (), where)
    if found is None and len(described) > 1:
        raise SourceError(
            f"{where} has several columns of classes, {quoted(described)}: name one with"
            " --label-column."
        )
    found = found or next(iter(described), None)
    if found is not None:
        return found, f"The labels are the column {found!r} of {where}."
    others = f"No column of {where} was taken for labels. It has {quoted(names)}."
    return None, others if names else ""
