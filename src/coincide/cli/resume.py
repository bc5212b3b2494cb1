"""What a training is taken up from, and all that it and the training to go on must share."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from coincide._files import as_json
from coincide.cli.console import print_notes
from coincide.cli.folder import CHECKPOINTS, LOG, finished_run, is_unfinished
from coincide.data.errors import Array
from coincide.training.checkpoint import CheckpointError, Checkpoints, checksum
from coincide.training.images import ImageTraining

Shared = dict[str, Any]

_BLOCK_BYTES = 16 << 20  # of an array hashed together, which may be a memory map
_CONTENTS = {
    "images": "other images (their pixels or their order differ)",
    "labels": "other labels",
    "label_names": "other names of the classes",
    "ids": "other names of the images",
    "start_from": "other weights to start from (--start-from)",
    "code": "other code of its own network or view",
}


def what_is_shared(
    training: ImageTraining,
    initial: Mapping[str, Tensor] | None,
    candidates: list[dict[str, Any]],
) -> Shared:
    """Return all that the result of a training depends on.

    ``"training"`` has the settings, ``"fingerprint"`` what stands for the contents: every byte of
    the images counts. The ``candidates`` for the number of clusters are kept beside them, if any.
    """
    source = training.source
    chosen = {"candidates": candidates} if candidates else {}
    return {
        **chosen,
        "training": as_json(asdict(training.config)),
        "fingerprint": {
            "images": digest(source.images),
            "shape of images": list(source.images.shape),
            "labels": None if source.labels is None else digest(source.labels),
            "label_names": _digest_names(source.label_names),
            "ids": _digest_names(source.ids),
            "start_from": None if initial is None else checksum(initial).hex(),
            "code": _digest_code(training.config.network, training.config.view),
            "processes": training.ranks.size,
        },
    }


def digest(array: Array) -> str:
    """Return a name for the dtype, the shape and every byte of an array; a map is read in blocks.

    Two arrays of the same name are the same, but for those made to deceive.
    """
    total = hashlib.sha1(f"{array.dtype.str} {array.shape}".encode(), usedforsecurity=False)
    rows = max(1, _BLOCK_BYTES * len(array) // max(1, array.nbytes))
    for start in range(0, len(array), rows):
        block = np.ascontiguousarray(array[start : start + rows])
        total.update(block.reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def _digest_names(names: tuple[str, ...] | None) -> str | None:
    if names is None:
        return None
    return hashlib.sha1(json.dumps(names).encode(), usedforsecurity=False).hexdigest()


def _digest_code(*places: str) -> list[str]:
    """Return what stands for the files in which the user's own functions are."""
    files = [_file_of(place.rpartition(":")[0]) for place in places]
    return [
        hashlib.sha1(file.read_bytes(), usedforsecurity=False).hexdigest()
        for file in files
        if file is not None and file.is_file()
    ]


def _file_of(source: str) -> Path | None:
    """Return the file of a module, or None where there is none: the name is of something else."""
    if source.endswith(".py"):
        return Path(source)
    if not all(part.isidentifier() for part in source.split(".")):
        return None
    try:
        found = importlib.util.find_spec(source)
    except (ModuleNotFoundError, ValueError):  # the training says so
        return None
    return None if found is None or found.origin is None else Path(found.origin)


def _differences(before: Mapping[str, Any], now: Shared) -> str:
    """Return what an earlier training did otherwise, in words; nothing if all is the same."""
    if not (before.get("training") and before.get("fingerprint")):
        return "no record of its settings and images, as of another version"
    now = json.loads(json.dumps(now))  # as it comes back from a file
    told = [
        f"{name} = {before['training'].get(name)!r}, not {value!r}"
        for name, value in now["training"].items()
        if before["training"].get(name) != value
    ]
    for name, value in now["fingerprint"].items():
        found = before["fingerprint"].get(name)
        if found != value:
            told.append(_CONTENTS.get(name, f"{name} = {found!r}, not {value!r}"))
    return "; ".join(told)


def chosen_before(
    folder: Path, numbers: tuple[int, ...]
) -> tuple[int, list[dict[str, Any]]] | None:
    """Return what the training in a folder chose of some numbers of clusters, and what it met.

    None where none was begun, or a choice of other numbers: that is refused when it is taken up.
    """
    if is_unfinished(folder):
        found = Checkpoints(folder / CHECKPOINTS).latest()
        before = {} if found is None else found[1].get("settings", {})
    else:
        before = finished_run(folder) or {}
    candidates = before.get("candidates", [])
    if [candidate["n_clusters"] for candidate in candidates] != list(numbers):
        return None
    return before["training"]["n_clusters"], candidates


def take_up(folder: Path, training: ImageTraining, shared: Shared) -> bool:
    """Restore the newest checkpoint in a folder; whether there is one.

    A training whose settings or contents are others is refused, with each of them named.
    """
    found = Checkpoints(folder / CHECKPOINTS).latest()
    if found is None:
        return False
    tensors, about = found
    if other := _differences(about.get("settings", {}), shared):
        raise ValueError(
            f"The training to resume in {folder} has {other}: give the same options and images, or"
            " begin anew with --overwrite instead of --resume."
        )
    try:
        training.restore((tensors, about["state"]))
    except (KeyError, RuntimeError) as error:
        raise ValueError(
            f"The checkpoint in {folder / CHECKPOINTS} is of another version: begin anew with"
            " --overwrite instead of --resume."
        ) from error
    log = folder / LOG
    if training.ranks.index == 0 and log.exists() and log.stat().st_size > about["logged"]:
        os.truncate(log, about["logged"])  # epochs that will be trained again
    return True


def is_done(folder: Path, shared: Shared, *, replace: bool) -> bool:
    """Whether the folder holds this training, finished; another one is refused or replaced."""
    found = finished_run(folder)
    if found is None:
        return False
    other = _differences(found, shared)
    if other and not replace:
        raise ValueError(
            f"The finished training in {folder} has {other}: give the same options and images,"
            " replace it with --overwrite, or name another folder with --out."
        )
    return not other


class Saver:
    """Saves a training, and knows how long ago it did."""

    def __init__(self, folder: Path, training: ImageTraining, shared: Shared) -> None:
        self.folder = folder
        self._checkpoints = Checkpoints(folder / CHECKPOINTS)
        self._training = training
        self._shared = shared
        self._number = self._checkpoints.last_number()
        self._saved = time.monotonic()

    def save(self) -> None:
        """Write a checkpoint; a full disk is said, and does not end the training."""
        self._saved = time.monotonic()
        if self._training.ranks.index > 0:
            return
        self._number += 1
        tensors, about = self._training.state()
        log = self.folder / LOG
        logged = log.stat().st_size if log.exists() else 0
        told = {"state": about, "settings": self._shared, "logged": logged}
        try:
            self._checkpoints.save(self._number, tensors, told)
        except CheckpointError as error:
            print_notes([f"No checkpoint was written: {error}"])

    def age(self) -> float:
        """Return the seconds since the last save."""
        return time.monotonic() - self._saved
