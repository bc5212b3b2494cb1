"""Labels in a ``metadata.csv`` beside images, as in the `imagefolder` layout of Hugging Face.

A row names a file by its path from the folder that the table lies in, in a column ``file_name``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from coincide.data.errors import Array, SourceError, quoted
from coincide.data.formats import Table, open_table
from coincide.data.images.listing import find_label_column
from coincide.data.labels import encode_labels

NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_FILE_NAMES = ("file_name", "filename")  # in any case, with blanks around


@dataclass(frozen=True)
class Metadata:
    """What the tables say of images; ``missing`` are the files that they name in vain.

    ``labels`` are None where no class is known, ``column`` where none is of labels.
    """

    column: str | None
    labels: Array | None
    label_names: tuple[str, ...] | None
    note: str
    missing: list[Path]


def read_metadata(
    tables: Sequence[Path], images: Sequence[Path], label_column: str | None
) -> Metadata:
    """Return the labels that tables hold for images; where several do, the nearest table's."""
    told: dict[str, object] = {}
    notes: list[str] = []
    listed: set[str] = set()
    column = None
    for path in sorted(tables, key=lambda table: len(table.parts)):
        table = open_table(path, header=True)
        file_column = _file_column(table)
        if file_column is None:
            notes.append(
                f"{path.name} was not read: it has no column 'file_name', only"
                f" {quoted(table.schema.names)}."
            )
            continue
        files = [_place(path.parent / str(name or "")) for name in _values(table, file_column)]
        listed |= set(files)
        others = pa.schema([field for field in table.schema if field.name != file_column])
        label, note = find_label_column(others, label_column, path.name)
        notes += [said for said in (*table.said, note) if said and said not in notes]
        if label is not None:
            column = label
            values = _values(table, label)
            encode_labels(values, f"column {column!r} of {path}")  # refused by their rows
            told |= _rows(files, values, path)
    if label_column is not None and column is None:
        raise SourceError(f"There is no column {label_column!r} beside the images. {notes[0]}")
    places = [_place(image) for image in images]
    missing = [Path(file) for file in sorted(listed - set(places)) if not Path(file).exists()]
    if column is None:
        return Metadata(None, None, None, " ".join(notes), missing)
    where = f"column {column!r} of {' and '.join(sorted({path.name for path in tables}))}"
    codes, names = encode_labels([told.get(place) for place in places], where)
    unlisted = sum(place not in listed for place in places)
    if unlisted:
        notes.append(f"{unlisted} of {len(places)} images are not listed there, and have no class.")
    return Metadata(column, codes, names, " ".join(notes), missing)


def _file_column(table: Table) -> str | None:
    named = (name for name in table.schema.names if name.strip().lower() in _FILE_NAMES)
    return next(named, None)


def _values(table: Table, column: str) -> list[Any]:
    return [value for batch in table.batches([column]) for value in batch.column(0).to_pylist()]


def _place(file: Path) -> str:
    return os.path.normpath(file)


def _rows(files: list[str], values: list[object], path: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for file, value in zip(files, values, strict=True):
        if found.setdefault(file, value) != value:
            raise SourceError(f"{path} lists {Path(file).name!r} twice, of different classes.")
    return found
