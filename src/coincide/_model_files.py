"""A fitted model on disk: tensors in safetensors, everything else in JSON, no pickle.

Loading reads numbers and text only; nothing in the files can run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

TENSORS = "model.safetensors"
DESCRIPTION = "model.json"
FORMAT = 1


class ModelError(ValueError):
    """A saved model that cannot be read."""


def as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what JSON can hold of the values; anything else, such as a module, becomes None."""
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Tensor):
        return value.detach().cpu().tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return as_json(value)
    return value if value is None or isinstance(value, str | int | float) else None


def save_model(folder: Path, tensors: dict[str, Tensor], description: dict[str, Any]) -> None:
    """Write both files, each under a temporary name first, so that none is ever half written."""
    # First, so that a description that is no JSON leaves both files as they were.
    text = json.dumps({"format": FORMAT, **description}, indent=2, allow_nan=False)
    folder.mkdir(parents=True, exist_ok=True)
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    temporary = folder / f".{TENSORS}.part"
    # Not save_file, whose files only their owner may read.
    temporary.write_bytes(save(held))
    temporary.replace(folder / TENSORS)
    temporary = folder / f".{DESCRIPTION}.part"
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(folder / DESCRIPTION)


def load_model(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the description.

    Raises
    ------
    ModelError
        If a file is missing, truncated, or of another format; the sentence names the file.
    """
    for name in (TENSORS, DESCRIPTION):
        if not (folder / name).is_file():
            raise ModelError(f"{folder} holds no saved model: {name} is missing.")
    try:
        tensors = load_file(folder / TENSORS)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{folder / TENSORS} is corrupt or cut short: {error}.") from error
    return tensors, load_description(folder)


def load_description(folder: Path) -> dict[str, Any]:
    """Return the description of a model alone.

    Raises
    ------
    ModelError
        If it is no JSON, or of another format.
    """
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
