"""Tables with a column of images: Parquet in the layout of `datasets`, and any Arrow table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from coincide._names import natural_key
from coincide.data.columns import named_as_id
from coincide.data.errors import SourceError, quoted
from coincide.data.formats import PARQUET, parquet_parts, reading_parquet
from coincide.data.images.decoding import CHUNK, Item
from coincide.data.images.listing import Listing, find_label_column
from coincide.data.labels import encode_labels
from coincide.data.splits import check_only_split, parts_of_split
from coincide.data.tables import described_columns

_FILE_NAMES = ("file_name", "filename", "path", "image_path")  # in any case, with blanks around


@dataclass(frozen=True)
class ImageTable:
    """A table: its columns, its rows, and a way to go through a column, or a field of one."""

    name: str
    schema: pa.Schema
    rows: int
    batches: Callable[[str, str | None], Iterator[pa.Array]]
    folder: Path  # where paths in it begin
    files: tuple[Path, ...] | None
    note: str = ""

    def values(self, column: str, field: str | None = None) -> list[Any]:
        """Return a column, or a field of one, as Python's values."""
        return [value for batch in self.batches(column, field) for value in batch.to_pylist()]


# Parquet


def _parts_of_split(folder: Path, split: str) -> tuple[list[Path], str]:
    """Return the files of the split, and what was chosen."""
    parts, said = parts_of_split(folder, parquet_parts(folder), split)
    folders = sorted({part.parent.name for part in parts}, key=natural_key)
    if len(folders) > 1:
        raise SourceError(
            f"{folder} holds several sets, {quoted(folders)}: name the folder of one."
        )
    return parts, " ".join(said)


def has_images(folder: Path) -> bool:
    """Whether there is Parquet in a folder, and a column of images in it, if it can be read."""
    for part in parquet_parts(folder)[:1]:
        with suppress(SourceError), reading_parquet(part), pq.ParquetFile(part) as file:
            return any(_holds_images(field.type) for field in file.schema_arrow)
    return False


def list_parquet(path: Path, split: str, label_column: str | None) -> Listing:
    """List a Parquet file, or the parts of a split in a folder.

    A file is all ``train``; in a folder the paths of the parts say it, as in
    ``test-00000-of-00001.parquet``, and a part that says nothing is of ``train``. The labels are by
    default ``label``, or the first column that `datasets` describes as classes.
    """
    if path.is_dir():
        parts, note = _parts_of_split(path, split)
    elif path.suffix.lower() in PARQUET:
        check_only_split(path, split)
        parts, note = [path], ""
    else:
        raise SourceError(
            f"{path} is one file: a source of images is a folder, a .parquet, .npy or .npz file,"
            " 'digits', or a name on the Hugging Face hub."
        )
    rows, schema = 0, pa.schema([])
    for part in parts:
        with reading_parquet(part), pq.ParquetFile(part) as file:
            if rows and file.schema_arrow.names != schema.names:
                raise SourceError(f"{part} has other columns than {parts[0].name} beside it.")
            rows, schema = rows + file.metadata.num_rows, file.schema_arrow

    def batches(column: str, field: str | None) -> Iterator[pa.Array]:
        wanted = column if field is None else f"{column}.{field}"
        for part in parts:
            with reading_parquet(part), pq.ParquetFile(part) as file:
                # PyArrow's threads would only wait beside those that decode.
                for batch in file.iter_batches(CHUNK, columns=[wanted], use_threads=False):
                    values = batch.column(0)
                    yield values if field is None else values.field(field)

    folder = path if path.is_dir() else path.parent
    name = path.resolve().name if path.is_dir() else path.stem
    table = ImageTable(name, schema, rows, batches, folder, tuple(parts), note)
    return list_table(table, label_column)


# Any table


def list_table(table: ImageTable, label_column: str | None) -> Listing:
    """List the images of a table, and the labels of one of its columns."""
    kinds = described_columns(table.schema)
    column = _image_column(table, kinds)
    described = [name for name, kind in kinds.items() if kind.get("_type") == "ClassLabel"]
    others = pa.schema([field for field in table.schema if field.name != column])
    label, label_note = find_label_column(others, label_column, table.name, described)
    labels, label_names = None, None
    if label is not None:
        values = table.values(label)
        named = kinds.get(label, {}).get("names")
        labels, label_names = encode_labels(values, f"column {label!r} of {table.name}", named)

    def chunks() -> Iterator[list[Item]]:
        for batch in table.batches(column, None):
            yield _items(batch, table.folder)

    paths = _paths(table, column)
    files = table.files
    if files is not None:  # what a row names instead of holding it is part of the source
        named_files = (table.folder / path for path in paths if path)
        files += tuple(file for file in named_files if file.is_file())
    ids = _ids(table, paths)
    return Listing(
        table.name,
        ids,
        chunks,
        labels,
        label_names,
        files,
        note=table.note,
        label_note=label_note,
    )


def _paths(table: ImageTable, column: str) -> list[str | None]:
    """Return the paths in the records of images, where they have one."""
    kind = table.schema.field(column).type
    if not pa.types.is_struct(kind) or kind.get_field_index("path") < 0:
        return []
    return table.values(column, "path")


def _ids(table: ImageTable, paths: list[str | None]) -> list[str]:
    """Return what the images are called, if each is called differently; else their rows."""
    text = [f.name for f in table.schema if str(f.type) in ("string", "large_string")]
    files = [name for name in text if name.strip().lower() in _FILE_NAMES]
    named = files + [name for name in text if named_as_id(name)]
    stored = (table.values(name) for name in named)
    for found in (*stored, paths):
        if len(found) == table.rows and all(found) and len(set(found)) == len(found):
            return [str(name) for name in found]
    return [str(row) for row in range(table.rows)]


def _image_column(table: ImageTable, kinds: dict[str, dict[str, Any]]) -> str:
    """Return the column described as images, or else the first that holds encoded ones."""
    names: list[str] = table.schema.names
    stored = [name for name in names if _holds_images(table.schema.field(name).type)]
    described = [name for name in stored if kinds.get(name, {}).get("_type") == "Image"]
    if not stored:
        raise SourceError(
            f"{table.name} has no column of images. It has {quoted(names) or 'none'}."
        )
    return (described or stored)[0]


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _items(column: pa.Array, folder: Path) -> list[Item]:
    """Return the encoded images; where a record has no bytes, the file that it names."""
    if not pa.types.is_struct(column.type):
        return list(column.to_pylist())
    items: list[Item] = []
    for record in column.to_pylist():
        held = record or {}
        encoded, path = held.get("bytes"), held.get("path")
        items.append(folder / path if encoded is None and path else encoded)
    return items
