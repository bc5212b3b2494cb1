"""Tables from files: Parquet and folders of it, Feather, text, JSON lines, and `datasets`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.json
import pyarrow.parquet

from coincide._names import natural_key
from coincide.data import delimited
from coincide.data.delimited import DAMAGED, read_delimited
from coincide.data.errors import SourceError, first_line, quoted
from coincide.data.hub import is_saved, open_saved
from coincide.data.splits import (
    parts_of_split,
)

PARQUET = (".parquet", ".parq", ".pq")
FEATHER = (".feather", ".arrow", ".ipc")
JSON = (".jsonl", ".ndjson", ".json")
COMPRESSED = (".gz", ".bz2", ".zst")
TEXT = delimited.SUFFIXES
_BATCH_ROWS, _BATCH_ENTRIES = 1 << 16, 1 << 22
SUFFIXES = (*delimited.SUFFIXES, *PARQUET, *FEATHER, *JSON)


@dataclass(frozen=True)
class Table:
    """A table as a stream: its columns, its rows, and the record batches of some columns.

    ``said`` is what was decided when it was opened, in sentences.
    """

    path: Path
    schema: pa.Schema
    rows: int
    batches: Callable[[list[str]], Iterator[pa.RecordBatch]]
    said: tuple[str, ...] = ()

    @cached_property
    def head(self) -> pa.RecordBatch:
        """The first rows of all columns but of lists, records and bytes, read at once."""
        plain = [
            field.name
            for field in self.schema
            if not (pa.types.is_nested(field.type) or pa.types.is_binary(field.type))
        ]
        return next(batch for batch in self.batches(plain) if len(batch))


def kind_of(path: Path) -> str:
    """Return the suffix that says what a file is, in lower case, before that of a compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def open_table(path: Path, *, header: bool | None = None, split: str | None = None) -> Table:
    """Open a table of at least one row; ``split`` is that of a folder of parts."""
    kind = kind_of(path)
    if path.is_dir() and is_saved(path):
        found, said = open_saved(path, split)
        table = in_memory(path, found.with_format("arrow")[:], tuple(said))
    elif path.is_dir():
        table = _open_parts(path, split)
    elif kind in PARQUET:
        table = _open_parquet(path, [path], ())
    elif kind in FEATHER:
        table = in_memory(path, _read_feather(path))
    elif kind in JSON:
        table = in_memory(path, _read_json(path))
    else:
        found, layout = read_delimited(path, header)
        table = in_memory(path, found, layout.said)
    if table.rows == 0:
        raise SourceError(f"{path} has no rows.")
    return table


def in_memory(path: Path, table: pa.Table, said: tuple[str, ...] = ()) -> Table:
    """Return a table of which all is there."""

    def batches(names: list[str]) -> Iterator[pa.RecordBatch]:
        return iter(table.select(names).to_batches())

    return Table(path, table.schema, table.num_rows, batches, said)


# Parquet


def parquet_parts(folder: Path) -> list[Path]:
    """Return the Parquet files in a folder and below, as people count: part 2 before part 10."""
    found = []
    for part in folder.rglob("*"):
        below = part.relative_to(folder)
        hidden = any(name.startswith((".", "_")) for name in below.parts)
        if part.suffix.lower() in PARQUET and part.is_file() and not hidden:
            found.append(below)
    return [folder / part for part in sorted(found, key=lambda part: natural_key(part.as_posix()))]


def _open_parts(folder: Path, split: str | None) -> Table:
    parts = parquet_parts(folder)
    keyed = [name for part in parts for name in part.relative_to(folder).parts[:-1] if "=" in name]
    if keyed:
        raise SourceError(
            f"{folder} is partitioned: its folders hold values of a column ({keyed[0]}), which are"
            " not read. Save it as one Parquet file."
        )
    chosen, said = parts_of_split(folder, parts, split)
    others = [
        path.name
        for path in sorted(folder.iterdir())
        if path.is_file() and path.suffix.lower() not in PARQUET and not path.name.startswith(".")
        and not re.fullmatch(r"README.*|LICENSE.*|_SUCCESS|dataset_infos?\.json", path.name)
    ]  # fmt: skip
    if others:
        said = [*said, f"{folder}: not read, for they are no Parquet: {quoted(others)}."]
    if len({part.parent for part in chosen}) > 1:
        order = quoted([part.relative_to(folder).as_posix() for part in chosen])
        said = [*said, f"{folder}: read the parts of several folders, in the order {order}."]
    return _open_parquet(folder, chosen, tuple(said))


def _open_parquet(path: Path, parts: list[Path], said: tuple[str, ...]) -> Table:
    rows, schema = 0, None
    for part in parts:
        with reading_parquet(part), pa.parquet.ParquetFile(part) as file:
            rows, here = rows + file.metadata.num_rows, file.schema_arrow
        if schema is not None and not here.equals(schema):
            raise SourceError(f"{part} has other columns or types than {parts[0].name} beside it.")
        schema = here

    def batches(names: list[str]) -> Iterator[pa.RecordBatch]:
        for part in parts:
            with reading_parquet(part), pa.parquet.ParquetFile(part) as file:
                size = min(_BATCH_ROWS, max(1, _BATCH_ENTRIES // max(1, len(names))))
                found = file.iter_batches(size, columns=names)
                yield from _counted(found, file.metadata.num_rows)

    return Table(path, schema, rows, batches, said)


@contextmanager
def reading_parquet(part: Path) -> Iterator[None]:
    """Turn what PyArrow raises into a sentence about the file."""
    try:
        yield
    except DAMAGED as error:
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


# Other files


def _read_feather(path: Path) -> pa.Table:
    try:
        return pa.feather.read_table(path, memory_map=True)
    except DAMAGED as error:
        try:  # a stream, as `datasets` writes it
            with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as reader:
                return reader.read_all()
        except DAMAGED:
            raise SourceError(f"{path} cannot be read as Feather ({first_line(error)}).") from error


def _read_json(path: Path) -> pa.Table:
    """Return the records of lines of JSON, or of one list."""
    try:
        with pa.input_stream(str(path)) as stream:
            if stream.read(1) != b"[":
                with pa.input_stream(str(path)) as lines:
                    table = pa.json.read_json(lines)
                if kind_of(path) == ".json" and table.num_rows == 1:
                    raise ValueError("it is one object, not a list of records, one a row")
                return table
            return pa.Table.from_pylist(json.loads(b"[" + stream.read()))
    except (*DAMAGED, ValueError, TypeError, AttributeError, EOFError) as error:
        raise SourceError(f"{path} cannot be read as JSON ({first_line(error)}).") from error
