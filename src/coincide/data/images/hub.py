"""What Hugging Face's `datasets` opens: saved folders, layouts that it alone knows, the hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa

from coincide.data.errors import SourceError, first_line
from coincide.data.formats import datasets_library
from coincide.data.images import decoding
from coincide.data.images.decoding import CHUNK
from coincide.data.images.listing import Listing, closest_source, missing_source
from coincide.data.images.tables import ImageTable, list_table
from coincide.data.splits import check_only_split, choose_part, describe_choice

# What `datasets` calls a set on the hub.
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_HUB_SECONDS = 5
_SUFFIXES = (
    ".arrow",
    ".csv",
    ".json",
    ".jsonl",
    ".npy",
    ".npz",
    ".parquet",
    ".tar",
    ".tsv",
    ".zip",
)


def list_saved(path: Path, split: str, label_column: str | None) -> Listing:
    """List what ``Dataset.save_to_disk`` wrote."""
    library = datasets_library(path)
    try:
        found = library.load_from_disk(str(path))
    except Exception as error:  # the library raises nearly anything of a damaged folder
        raise SourceError(f"{path} cannot be read by `datasets` ({first_line(error)}).") from error
    note = ""
    if isinstance(found, library.DatasetDict):
        chosen = choose_part(path, found, split)
        note = " ".join(describe_choice(path, chosen, found))
        found = found[chosen]
    else:
        check_only_split(path, split)
    return _list_dataset(found, path.resolve().name, label_column, note)


def list_loadable(path: Path, split: str, label_column: str | None) -> Listing:
    """List a folder of a layout that only ``datasets.load_dataset`` knows."""
    library = datasets_library(path)
    try:
        found = library.load_dataset(str(path.absolute()), split=split)
    except Exception as error:  # as above
        raise SourceError(f"{path} holds no images ({first_line(error)}).") from error
    return _list_dataset(found, path.resolve().name, label_column)


def list_hub(source: str | Path, split: str, label_column: str | None) -> Listing:
    """List a set on the Hugging Face hub, downloading it the first time.

    What looks like a path is refused without asking the hub; the hub has a few seconds to answer,
    and where it does not, what was downloaded before is read.
    """
    name = str(source)
    if isinstance(source, Path) or _is_path(name):
        raise missing_source(source)
    library = datasets_library(name)
    hub = import_module("huggingface_hub")
    refused: Exception | None = None
    try:
        hub.HfApi(endpoint=library.config.HF_ENDPOINT).dataset_info(name, timeout=_HUB_SECONDS)
    except hub.errors.RepositoryNotFoundError as error:
        nowhere = f"{name!r} is no file or folder here, and the Hugging Face hub has no such set."
        raise SourceError(f"{nowhere} {closest_source(name)}".rstrip()) from error
    except Exception as error:  # of several libraries: no network, no answer, an answer of errors
        refused = error
    try:
        with _offline(library, hub) if refused else nullcontext():
            found = library.load_dataset(name, split=split)
    except Exception as error:  # an unknown split, several configurations, damaged files
        if refused is None:
            raise SourceError(
                f"The set {name!r} cannot be loaded ({first_line(error)})."
            ) from error
        nowhere = (
            f"{name!r} is no file or folder here, and the Hugging Face hub cannot be reached"
            f" within {_HUB_SECONDS} seconds ({first_line(refused)})."
        )
        raise SourceError(f"{nowhere} {closest_source(name)}".rstrip()) from error
    return _list_dataset(found, name.rpartition("/")[2], label_column)


def _is_path(name: str) -> bool:
    """Whether a name is rather a path: of that form, of a file's suffix, or in a folder here."""
    if not _HUB_NAME.fullmatch(name):
        return True
    path = Path(name)
    suffixes = {*_SUFFIXES, *decoding.suffixes()}
    return path.suffix.lower() in suffixes or ("/" in name and path.parent.is_dir())


@contextmanager
def _offline(library: Any, hub: Any) -> Iterator[None]:
    """Within the block the hub is not asked: its libraries would try for half a minute."""
    modules = (library.config, hub.constants)
    before = [module.HF_HUB_OFFLINE for module in modules]
    for module in modules:
        module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, offline in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = offline


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
