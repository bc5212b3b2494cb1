"""Sets that Hugging Face's `datasets` opens: what it saved to disk, and the hub."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

from coincide.data.errors import SourceError, closest_source, first_line, missing_source
from coincide.data.splits import check_only_split, choose_part, describe_choice

_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")  # of a set on the hub
_SECONDS = 5


def is_saved(folder: Path) -> bool:
    """Whether ``save_to_disk`` wrote the folder."""
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def open_saved(path: Path, split: str | None = None) -> tuple[Any, list[str]]:
    """Return the set that ``save_to_disk`` wrote, and what was decided, in sentences."""
    library = datasets_library(path)
    try:
        found = library.load_from_disk(str(path))
    except Exception as error:  # the library raises nearly anything of a damaged folder
        raise SourceError(f"{path} cannot be read by `datasets` ({first_line(error)}).") from error
    if not isinstance(found, library.DatasetDict):
        if split is not None:
            check_only_split(path, split)
        return found, []
    only = next(iter(found)) if split is None and len(found) == 1 else None
    name = only or choose_part(path, found, split or "train")
    return found[name], describe_choice(path, name, found)


def open_hub(source: str | Path, split: str, suffixes: Collection[str]) -> Any:
    """Return a set on the Hugging Face hub, downloading it the first time.

    What looks like a path is refused without asking the hub; the hub has a few seconds to answer,
    and where it does not, what was downloaded before is read. ``suffixes`` are those of files.
    """
    name = str(source)
    if isinstance(source, Path) or _is_path(name, suffixes):
        raise missing_source(source)
    try:
        library = datasets_library(name)
    except SourceError as error:
        raise SourceError(f"{missing_source(name)} For the Hugging Face hub: {error}") from error
    hub = import_module("huggingface_hub")
    refused: Exception | None = None
    try:
        hub.HfApi(endpoint=library.config.HF_ENDPOINT).dataset_info(name, timeout=_SECONDS)
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
            f" within {_SECONDS} seconds ({first_line(refused)})."
        )
        raise SourceError(f"{nowhere} {closest_source(name)}".rstrip()) from error
    return found


def _is_path(name: str, suffixes: Collection[str]) -> bool:
    """Whether a name is rather a path: of that form, of a file's suffix, or in a folder here."""
    if not _NAME.fullmatch(name):
        return True
    path = Path(name)
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


def datasets_library(source: object) -> Any:
    """Return the package, or say how to get it."""
    try:
        return import_module("datasets")
    except ImportError as error:
        raise SourceError(
            f'Reading {str(source)!r} needs the package datasets: pip install "coincide[images]".'
        ) from error
