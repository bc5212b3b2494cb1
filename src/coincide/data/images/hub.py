"""Images in sets that `datasets` opens: saved folders, layouts that it alone knows, the hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from coincide.data import formats
from coincide.data.errors import SourceError, first_line
from coincide.data.hub import datasets_library, open_hub, open_saved
from coincide.data.images import decoding
from coincide.data.images.decoding import CHUNK
from coincide.data.images.listing import Listing
from coincide.data.images.tables import ImageTable, list_table

_SUFFIXES = (".npy", ".npz", ".tar", ".zip", *formats.SUFFIXES)


def list_saved(path: Path, split: str, label_column: str | None) -> Listing:
    """List what ``Dataset.save_to_disk`` wrote."""
    found, said = open_saved(path, split)
    return _list_dataset(found, path.resolve().name, label_column, " ".join(said))


def list_loadable(path: Path, split: str, label_column: str | None) -> Listing:
    """List a folder of a layout that only ``datasets.load_dataset`` knows."""
    library = datasets_library(path)
    try:
        found = library.load_dataset(str(path.absolute()), split=split)
    except Exception as error:  # as above
        raise SourceError(f"{path} holds no images ({first_line(error)}).") from error
    return _list_dataset(found, path.resolve().name, label_column)


def list_hub(source: str | Path, split: str, label_column: str | None) -> Listing:
    """List a set on the Hugging Face hub, downloading it the first time."""
    found = open_hub(source, split, {*_SUFFIXES, *decoding.suffixes()})
    return _list_dataset(found, str(source).rpartition("/")[2], label_column)


def _list_dataset(found: Any, name: str, label_column: str | None, note: str = "") -> Listing:
    """List a set that `datasets` has opened, reading its Arrow columns without decoding them."""
    plain = found.with_format("arrow")

    def batches(column: str, field: str | None) -> Iterator[pa.Array]:
        for table in plain.select_columns([column]).iter(CHUNK):
            values = table[column].combine_chunks()
            yield values if field is None else values.field(field)

    files = tuple(Path(part["filename"]) for part in found.cache_files)
    schema = found.features.arrow_schema
    table = ImageTable(name, schema, len(found), batches, Path(), files or None, note)
    return list_table(table, label_column)
