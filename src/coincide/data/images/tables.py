"""Tables with a column of images: Parquet in the layout of `datasets`, and what that opens."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from coincide._names import closest
from coincide.data.errors import SourceError, check_known, first_line, quoted
from coincide.data.images.decoding import CHUNK, Item
from coincide.data.images.listing import (
    Listing,
    canonical_split,
    check_only_split,
    choose_split,
)
from coincide.data.labels import encode_labels
from coincide.data.tables import described_columns, reading_parquet
from coincide.data.vectors import BUILT_IN

# What `datasets` calls a set on the hub.
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


@dataclass(frozen=True)
class _Table:
    """A table: its columns, its rows, and a way to go through one column."""

    name: str
    schema: pa.Schema
    rows: int
    batches: Callable[[str], Iterator[pa.Array]]
    folder: Path  # where paths in it begin
    files: tuple[Path, ...] | None


# Parquet


def parquet_parts(folder: Path) -> list[Path]:
    """Return the Parquet files in a folder, or else in the folders in it, by name."""
    for pattern in ("*.parquet", "*/*.parquet"):
        parts = [part.relative_to(folder) for part in folder.glob(pattern) if part.is_file()]
        shown = sorted(part for part in parts if not str(part).startswith("."))
        if shown:
            return [folder / part for part in shown if not part.name.startswith(".")]
    return []


def _parts_of_split(folder: Path, parts: list[Path], split: str) -> list[Path]:
    """Return the parts whose path names the split; a path that names none is of ``train``."""
    splits: dict[str, list[Path]] = {}
    for part in parts:
        words = re.split(r"[^a-zA-Z]+", str(part.relative_to(folder).with_suffix("")))
        named = [name for name in map(canonical_split, words) if name is not None]
        splits.setdefault(named[-1] if named else "train", []).append(part)
    chosen: list[Path] = choose_split(folder, splits, split)
    folders = sorted({part.parent.name for part in chosen})
    if len(folders) > 1:
        raise SourceError(
            f"{folder} holds several sets, {quoted(folders)}: name the folder of one."
        )
    return chosen


def list_parquet(path: Path, split: str, label_column: str | None) -> Listing:
    """List a Parquet file, or the parts of a split in a folder.

    A file is all ``train``; in a folder the paths of the parts say it, as in
    ``test-00000-of-00001.parquet``, and a part that says nothing is of ``train``. The labels are by
    default ``label``, or the first column that `datasets` describes as classes.
    """
    if path.is_dir():
        parts = _parts_of_split(path, parquet_parts(path), split)
    elif path.suffix.lower() == ".parquet":
        check_only_split(path, split)
        parts = [path]
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

    def batches(column: str) -> Iterator[pa.Array]:
        for part in parts:
            with reading_parquet(part), pq.ParquetFile(part) as file:
                # PyArrow's threads would only wait beside those that decode.
                for batch in file.iter_batches(CHUNK, columns=[column], use_threads=False):
                    yield batch.column(0)

    folder = path if path.is_dir() else path.parent
    name = path.resolve().name if path.is_dir() else path.stem
    return _list_table(_Table(name, schema, rows, batches, folder, tuple(parts)), label_column)


# Any table


def _list_table(table: _Table, label_column: str | None) -> Listing:
    kinds = described_columns(table.schema)
    column = _image_column(table, kinds)
    label = _label_column(table, kinds, label_column)
    labels, label_names = None, None
    if label is not None:
        values = [value for batch in table.batches(label) for value in batch.to_pylist()]
        named = kinds.get(label, {}).get("names")
        labels, label_names = encode_labels(values, f"column {label!r} of {table.name}", named)

    def chunks() -> Iterator[list[Item]]:
        for batch in table.batches(column):
            yield _items(batch, table.folder)

    ids = [str(row) for row in range(table.rows)]
    return Listing(table.name, ids, chunks, labels, label_names, table.files)


def _image_column(table: _Table, kinds: dict[str, dict[str, Any]]) -> str:
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


def _label_column(table: _Table, kinds: dict[str, dict[str, Any]], asked: str | None) -> str | None:
    """Return the column asked for, or ``label``, or the first described as classes, if any."""
    names: list[str] = table.schema.names
    if asked is not None:
        check_known([asked], names, table.name, "column")
        return asked
    if "label" in names:
        return "label"
    classes = (name for name in names if kinds.get(name, {}).get("_type") == "ClassLabel")
    return next(classes, None)


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


# Hugging Face `datasets`


def is_saved(folder: Path) -> bool:
    """Whether ``save_to_disk`` wrote the folder."""
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def list_saved(path: Path, split: str, label_column: str | None) -> Listing:
    """List what ``Dataset.save_to_disk`` wrote."""
    library = _datasets_library(path)
    try:
        found = library.load_from_disk(str(path))
    except Exception as error:  # the library raises nearly anything of a damaged folder
        raise SourceError(f"{path} cannot be read by `datasets` ({first_line(error)}).") from error
    if isinstance(found, library.DatasetDict):
        found = choose_split(
            path, {canonical_split(s) or s: part for s, part in found.items()}, split
        )
    else:
        check_only_split(path, split)
    return _list_dataset(found, path.resolve().name, label_column)


def list_loadable(path: Path, split: str, label_column: str | None) -> Listing:
    """List a folder of a layout that only ``datasets.load_dataset`` knows."""
    library = _datasets_library(path)
    try:
        found = library.load_dataset(str(path.absolute()), split=split)
    except Exception as error:  # as above
        raise SourceError(f"{path} holds no images ({first_line(error)}).") from error
    return _list_dataset(found, path.resolve().name, label_column)


def list_hub(source: str | Path, split: str, label_column: str | None) -> Listing:
    """List a set on the Hugging Face hub, downloading it the first time."""
    name = str(source)
    if isinstance(source, Path) or not _HUB_NAME.fullmatch(name):
        raise SourceError(f"The source {name!r} does not exist.")
    library = _datasets_library(name)
    try:
        found = library.load_dataset(name, split=split)
    except (FileNotFoundError, ConnectionError) as error:
        reached = not isinstance(error, ConnectionError)
        hub = "has no such set" if reached else "cannot be reached"
        sentence = (
            f"{name!r} is no file or folder here, and the Hugging Face hub {hub}"
            f" ({first_line(error)}). {closest(name, BUILT_IN, 'the built-in source ')}"
        )
        raise SourceError(sentence.rstrip()) from error
    except Exception as error:  # an unknown split, several configurations, damaged files
        raise SourceError(f"The set {name!r} cannot be loaded ({first_line(error)}).") from error
    return _list_dataset(found, name.rpartition("/")[2], label_column)


def _list_dataset(found: Any, name: str, label_column: str | None) -> Listing:
    """List a set that `datasets` has opened, reading its Arrow columns without decoding them."""
    plain = found.with_format("arrow")

    def batches(column: str) -> Iterator[pa.Array]:
        for table in plain.select_columns([column]).iter(CHUNK):
            yield table[column].combine_chunks()

    files = tuple(Path(part["filename"]) for part in found.cache_files)
    schema = found.features.arrow_schema
    table = _Table(name, schema, len(found), batches, Path(), files or None)
    return _list_table(table, label_column)


def _datasets_library(source: object) -> Any:
    try:
        return import_module("datasets")
    except ImportError as error:
        raise SourceError(
            f'Reading {str(source)!r} needs the package datasets: pip install "coincide[images]".'
        ) from error
