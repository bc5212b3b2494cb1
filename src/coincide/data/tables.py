"""Tables with named columns, Parquet and CSV: which columns are features, and their matrix.

A table is read as a stream of record batches into one matrix that is allocated once. A Parquet
file takes the memory of its features and of a row group or two; a CSV file is held whole.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from coincide.data.errors import Array, SourceError, check_known, first_line, quoted

SUFFIXES = (".csv", ".tsv", ".parquet")
LABEL_COLUMN = "label"  # the Hugging Face name: never a feature unless asked for

_DAMAGED = (pa.ArrowException, OSError, UnicodeDecodeError)  # what PyArrow raises
_NULLS = ["", "NA", "N/A", "#N/A", "null", "NULL", "None"]  # "nan" stays a number


@dataclass(frozen=True)
class Table:
    """A table as a stream: its columns, its rows, and the record batches of some columns."""

    path: Path
    schema: pa.Schema
    rows: int
    batches: Callable[[list[str]], Iterator[pa.RecordBatch]]


@dataclass(frozen=True)
class TableContents:
    """The features of a table (M, D), the columns they came from, and the labels as stored."""

    features: Array
    columns: tuple[str, ...]
    labels: Array | None
    class_names: tuple[str, ...] | None


def read_table(path: Path, columns: list[str] | None, label_column: str | None) -> TableContents:
    """Read the features of a file or a folder of ``*.parquet`` parts, and the labels beside them.

    ``columns`` are those of the features, in order; None for all but the labels, whose column is by
    default ``label``, if there is one and ``columns`` does not name it.
    """
    table = open_table(path)
    label = _choose_label(table, columns, label_column)
    chosen = _choose_features(table, columns, label)
    _check_numeric(table, chosen, label)
    labels = None if label is None else label_values(table, label)
    names = described_columns(table.schema).get(label or "", {}).get("names")
    classes = tuple(map(str, names)) if isinstance(names, list) else None
    return TableContents(_stack(table, chosen), tuple(chosen), labels, classes)


def parquet_parts(folder: Path) -> list[Path]:
    """Return the Parquet files in a folder, by name."""
    return sorted(part for part in folder.glob("*.parquet") if not part.name.startswith("."))


# Opening


def open_table(path: Path) -> Table:
    """Open a table of at least one row."""
    parquet = path.is_dir() or path.suffix.lower() == ".parquet"
    table = _open_parquet(path) if parquet else _open_csv(path)
    if table.rows == 0:
        raise SourceError(f"{path} has no rows.")
    return table


def _open_parquet(path: Path) -> Table:
    rows, schema = 0, None
    parts = parquet_parts(path) if path.is_dir() else [path]
    for part in parts:
        with reading_parquet(part), pa.parquet.ParquetFile(part) as file:
            rows, here = rows + file.metadata.num_rows, file.schema_arrow
        if schema is not None and not here.equals(schema):
            raise SourceError(f"{part} has other columns or types than {parts[0].name} beside it.")
        schema = here

    def batches(names: list[str]) -> Iterator[pa.RecordBatch]:
        for part in parts:
            with reading_parquet(part), pa.parquet.ParquetFile(part) as file:
                yield from _counted(file.iter_batches(columns=names), file.metadata.num_rows)

    return Table(path, schema, rows, batches)


@contextmanager
def reading_parquet(part: Path) -> Iterator[None]:
    """Turn what PyArrow raises into a sentence about the file."""
    try:
        yield
    except _DAMAGED as error:
        raise SourceError(f"{part} cannot be read as Parquet ({first_line(error)}).") from error


def _counted(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """Yield the batches, which must hold as many rows as the file says it has."""
    left = rows
    for batch in batches:
        left -= len(batch)
        if left < 0:
            break
        yield batch
    if left != 0:
        raise pa.ArrowInvalid(f"it holds other than the {rows} rows it says")


def _open_csv(path: Path) -> Table:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else _comma_or_semicolon(path)
    header = _has_header(path, delimiter)
    table = _parse_csv(path, delimiter, header)

    def batches(names: list[str]) -> Iterator[pa.RecordBatch]:
        return iter(table.select(names).to_batches())

    return Table(path, table.schema, table.num_rows, batches)


def _comma_or_semicolon(path: Path) -> str:
    """Return the delimiter of a CSV: a semicolon where the first line holds no comma."""
    with path.open("rb") as file:
        line = file.readline(1 << 20)
    return ";" if b";" in line and b"," not in line else ","


def _parse_csv(path: Path, delimiter: str, header: bool) -> pa.Table:
    ragged: list[Any] = []

    def refuse(row: Any) -> str:
        ragged.append(row)
        return "error"

    try:
        return pa.csv.read_csv(
            path,
            # One thread: it alone knows the number of a ragged row, and pyarrow's others can
            # abort a process that ends soon after ("terminate called without an exception").
            pa.csv.ReadOptions(use_threads=False, autogenerate_column_names=not header),
            pa.csv.ParseOptions(
                delimiter=delimiter, newlines_in_values=True, invalid_row_handler=refuse
            ),
            # An empty or NA cell is missing, in a column of text as in one of numbers.
            pa.csv.ConvertOptions(
                null_values=_NULLS, strings_can_be_null=True, quoted_strings_can_be_null=False
            ),
        )
    except _DAMAGED as error:
        if not ragged:
            raise SourceError(_damaged_csv(path, error)) from error
        row = ragged[0]
        raise SourceError(
            f"Row {row.number} of {path} has {row.actual_columns} cells where"
            f" {row.expected_columns} are expected (rows count from 1, a header included)."
        ) from error


def _has_header(path: Path, delimiter: str) -> bool:
    """Whether the first row names the columns, judged by it and the row below.

    It does if no cell of it is a number, if text stands above a number, or if its numbers count
    0, 1, 2, … (the names that pandas gives to unnamed columns).
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            filled = (row for row in csv.reader(file, delimiter=delimiter) if row)
            first, second = [*islice(filled, 2), [], []][:2]
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} is not UTF-8 text: save it in that encoding.") from error
    except csv.Error as error:
        raise SourceError(_damaged_csv(path, error)) from error
    numbers = [cell for cell in first if _is_number(cell)]
    counting = len(numbers) >= 3 and numbers == [str(i) for i in range(len(numbers))]
    above = any(
        not _is_number(cell) and _is_number(below)
        for cell, below in zip(first, second, strict=False)
    )
    return not numbers or counting or above


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _damaged_csv(path: Path, error: Exception) -> str:
    return f"{path} cannot be read as CSV ({first_line(error)})."


# Choosing columns


def _choose_label(table: Table, columns: list[str] | None, asked: str | None) -> str | None:
    names = table.schema.names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SourceError(f"{table.path} has several columns named {quoted(twice)}.")
    if asked is None:
        found = LABEL_COLUMN in names and LABEL_COLUMN not in (columns or ())
        return LABEL_COLUMN if found else None
    check_known([asked], names, str(table.path), "column")
    if asked in (columns or ()):
        raise SourceError(f"The column {asked!r} cannot be both a feature and the labels.")
    return asked


def _choose_features(table: Table, columns: list[str] | None, label: str | None) -> list[str]:
    if columns is not None:
        if not columns:
            raise SourceError(f"--columns names no columns of {table.path}.")
        check_known(columns, table.schema.names, str(table.path), "column")
        twice = sorted({name for name in columns if columns.count(name) > 1})
        if twice:
            raise SourceError(f"--columns names {quoted(twice)} more than once.")
        return columns
    chosen = [name for name in table.schema.names if name != label]
    if not chosen:
        raise SourceError(f"{table.path} has no columns of features.")
    if "" in chosen:
        raise SourceError(
            f"Column {table.schema.names.index('')} of {table.path} has no name (pandas writes its"
            " index so): leave it out by naming the others with --columns."
        )
    lists = [name for name in chosen if _is_list(table.schema.field(name).type)]
    if lists and len(lists) < len(chosen):
        others = [name for name in chosen if name not in lists]
        raise SourceError(
            f"{table.path} holds lists ({quoted(lists)}) beside single values ({quoted(others)}):"
            " name the features with --columns."
        )
    return chosen


def _check_numeric(table: Table, chosen: list[str], label: str | None) -> None:
    """Refuse columns that hold neither numbers nor lists of numbers."""
    unfit: dict[str, str] = {}
    for name in chosen:
        kind = table.schema.field(name).type
        if pa.types.is_null(kind):
            raise SourceError(f"Column {name!r} of {table.path} is empty.")
        inner = kind.value_type if _is_list(kind) else kind
        if not (pa.types.is_integer(inner) or pa.types.is_floating(inner)):
            unfit[name] = _described(kind)
    if not unfit:
        return
    way_out = "name the numeric ones with --columns"
    if len(unfit) == len(chosen):
        way_out = "compute feature vectors first"
    elif label is None:
        way_out += ", or mark the labels with --label-column"
    subject, verb = ("Column", "holds") if len(unfit) == 1 else ("Columns", "hold")
    raise SourceError(
        f"{subject} {quoted(list(unfit))} of {table.path} {verb}"
        f" {', '.join(sorted(set(unfit.values())))}, not numbers: {way_out}."
    )


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _described(kind: pa.DataType) -> str:
    """Return what a column holds, in a word or two."""
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "text"
    if pa.types.is_struct(kind):  # an image or a record; its fields would fill the screen
        return "records"
    return f"{kind} values"


# Values


def _stack(table: Table, chosen: list[str]) -> Array:
    """Return the chosen columns side by side, (M, D), in the smallest dtype that holds all."""
    features: Array = np.empty((0, 0))
    widths: list[int] = []
    row = 0
    for batch in table.batches(chosen):
        if len(batch) == 0:
            continue
        blocks = [_block(batch.column(name), name, row, table.path) for name in chosen]
        if not widths:
            widths = [block.shape[1] for block in blocks]
            dtype = np.result_type(*(block.dtype for block in blocks))
            features = np.empty((table.rows, sum(widths)), dtype)
        for name, block, width in zip(chosen, blocks, widths, strict=True):
            if block.shape[1] != width:
                raise SourceError(_uneven(name, table.path, row, block.shape[1], width))
        np.concatenate(blocks, axis=1, out=features[row : row + len(batch)])
        row += len(batch)
    return features


def _block(values: pa.Array, name: str, start: int, path: Path) -> Array:
    """Return one column of a batch as (rows, width); ``start`` is the number of its first row."""
    rows, width = len(values), 1
    _check_no_nulls(values, f"Column {name!r} of {path}", start)
    if _is_list(values.type):
        lengths = np.asarray(values.value_lengths())
        width = int(lengths[0])
        odd = np.flatnonzero(lengths != width)
        if len(odd):
            raise SourceError(_uneven(name, path, start + int(odd[0]), lengths[odd[0]], width))
        values = values.flatten()
        if values.null_count:
            row = start + values.is_null().index(True).as_py() // width
            raise SourceError(f"The list of row {row} in column {name!r} of {path} has a gap.")
    return np.asarray(values.to_numpy(zero_copy_only=False)).reshape(rows, width)


def _uneven(name: str, path: Path, row: int, found: int, width: int) -> str:
    return (
        f"The lists in column {name!r} of {path} must be equally long."
        f" Row {row} has {found} entries, the rows before it {width}."
    )


def _check_no_nulls(values: pa.Array, where: str, start: int) -> None:
    if values.null_count:
        row = start + values.is_null().index(True).as_py()
        raise SourceError(f"{where} has no value in row {row} (rows of data count from 0).")


def label_values(table: Table, name: str) -> Array:
    """Return a column of labels as it is stored, text as objects."""
    parts: list[Array] = []
    row = 0
    for batch in table.batches([name]):
        values = batch.column(name)
        _check_no_nulls(values, f"The column of labels {name!r} in {table.path}", row)
        try:
            parts.append(np.asarray(values.to_numpy(zero_copy_only=False)))
        except _DAMAGED as error:
            raise SourceError(f"The labels {name!r} of {table.path} are not UTF-8 text.") from error
        row += len(values)
    return np.concatenate(parts)


def described_columns(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """Return the description of the columns that Hugging Face's ``datasets`` wrote beside them."""
    try:
        described = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: kind for name, kind in described.items() if isinstance(kind, dict)}
    except (KeyError, TypeError, AttributeError, ValueError):  # absent, or of another shape
        return {}
