"""Files that are whole or not there, values that JSON can hold, and models made of both.

Every file is first written under a temporary name beside its own and then put in place with
``os.replace``: whoever looks sees the old file or the new one, never half of one. A fitted model is
tensors in safetensors and everything else in JSON, no pickle: loading reads numbers and text only.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

TENSORS = "model.safetensors"
DESCRIPTION = "model.json"
FORMAT = 1


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, and put it in place if the block ends well.

    The folder is made if it is not there. On an error the temporary file is removed and whatever
    was at ``path`` stays as it was. If ``durable``, file and name are on the disk afterwards.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        if durable:
            sync(temporary)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    if durable:
        with contextlib.suppress(OSError):  # of a folder, Windows and some network disks cannot
            sync(path.parent)


def sync(path: Path) -> None:
    """Return when a file, or the names in a folder, are on the disk."""
    number = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def write_text(path: Path, text: str) -> Path:
    r"""Write ``text`` as UTF-8, whole or not at all.

    File names with undecodable bytes reach Python as lone surrogates, which UTF-8 has no place
    for. They become ``\udcXX``, which in JSON is the very escape that means them.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))
    return path


def to_json(value: object, where: str, leaf: Callable[[object, str], object]) -> object:
    """Return ``value`` in JSON's own types.

    Lists, tuples and string-keyed mappings are taken apart, nested at will; ``leaf``, given
    anything else and what it is called, returns what JSON can hold, or refuses it.
    """
    if isinstance(value, list | tuple):
        return [to_json(item, f"{where}[{index}]", leaf) for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"The keys of {where} must be strings. Got {key!r} instead.")
        return {key: to_json(item, f"{where}[{key!r}]", leaf) for key, item in value.items()}
    return leaf(value, where)


# Models


class ModelError(ValueError):
    """A saved model that cannot be read."""


def as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what JSON can hold of the values; anything else, such as a module, becomes None."""
    return {name: to_json(value, name, _plain_or_none) for name, value in values.items()}


def _plain_or_none(value: object, where: str) -> object:
    """Return an array as a list, and None for what has no place in JSON."""
    del where
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Tensor):
        return value.detach().cpu().tolist()
    return value if value is None or isinstance(value, str | int | float) else None


def save_model(folder: Path, tensors: dict[str, Tensor], description: dict[str, Any]) -> None:
    """Write both files."""
    # First, so that a description that is no JSON leaves both files as they were.
    text = json.dumps({"format": FORMAT, **description}, indent=2, allow_nan=False)
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(folder / TENSORS) as temporary:
        temporary.write_bytes(save(held))  # not save_file, whose files only their owner may read
    write_text(folder / DESCRIPTION, text + "\n")


def load_model(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the description; a file that is unfit is refused by its name."""
    for name in (TENSORS, DESCRIPTION):
        if not (folder / name).is_file():
            raise ModelError(f"{folder} holds no saved model: {name} is missing.")
    try:
        tensors = load_file(folder / TENSORS)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{folder / TENSORS} is corrupt or cut short: {error}.") from error
    return tensors, load_description(folder)


def load_description(folder: Path) -> dict[str, Any]:
    """Return the description of a model alone."""
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"{folder / DESCRIPTION} is not readable JSON: {error}.") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ModelError(
            f"{folder / DESCRIPTION} is not of model format {FORMAT}; save the model again"
            " with this version."
        )
    return description
