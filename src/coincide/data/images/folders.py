"""Folders of images: one folder per class, or flat, divided into splits or not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from coincide._checks import UNKNOWN
from coincide.data.errors import SourceError, quoted
from coincide.data.images import decoding
from coincide.data.images.decoding import CHUNK, Item
from coincide.data.images.listing import (
    Listing,
    canonical_split,
    check_only_split,
    choose_split,
)

_UNLABELED = ("unlabeled", "unlabelled")
# Of layouts that `datasets` reads.
_DATASETS_SUFFIXES = (".arrow", ".csv", ".json", ".jsonl", ".tar", ".zip")


def list_folder(root: Path, split: str, label_column: str | None) -> Listing | None:
    """List a folder of images; None if it holds none, but files that `datasets` may know.

    It holds images, or one folder of images per class, at any depth; or such folders named
    ``train``, ``test``, ``validation`` or the like, and no others, of which ``split`` names one.
    What lies in ``unlabeled/``, or beside the folders of classes, has no class; ``unlabeled/``
    beside splits belongs to ``train``.
    """
    skipped: list[tuple[str, str]] = []
    groups = _by_class(root, split, skipped)
    if not any(groups.values()):
        if any(Path(name).suffix.lower() in _DATASETS_SUFFIXES for name, _ in skipped):
            return None
        more = f", only {quoted([name for name, _ in skipped])}" if skipped else ""
        raise SourceError(f"{root} holds no images{more}.")
    if label_column is not None:
        raise SourceError(f"{root} is a folder of images: it has no column {label_column!r}.")
    names = tuple(name for name, files in groups.items() if name and files)
    files = [file for group in groups.values() for file in group]
    codes = {name: code for code, name in enumerate(names)}
    labels = [codes.get(name, UNKNOWN) for name, group in groups.items() for _ in group]
    # A single folder says nothing, unless it stands beside images that are not in it.
    labeled = len(names) > 1 or len(set(labels)) > 1

    def chunks() -> Iterator[list[Item]]:
        for start in range(0, len(files), CHUNK):
            yield list(files[start : start + CHUNK])

    return Listing(
        root.resolve().name,
        [_shown(file, root) for file in files],
        chunks,
        np.array(labels, np.int64) if labeled else None,
        names if labeled else None,
        tuple(files),
        skipped,
    )


def _by_class(root: Path, split: str, skipped: list[tuple[str, str]]) -> dict[str, list[Path]]:
    """Return the image files of each class, by name; "" stands for no class."""
    walk = _Walk(root, skipped)
    loose, folders = walk.entries(root)
    splits = {canonical_split(folder.name): folder for folder in folders}
    unlabeled = [folder for folder in folders if folder.name.lower() in _UNLABELED]
    splits.pop(None, None)
    if splits and len(splits) + len(unlabeled) == len(folders):
        base = choose_split(root, {str(name): folder for name, folder in splits.items()}, split)
        skipped += [(_shown(file, root), "outside the folders of splits") for file in loose]
        if canonical_split(split) != "train":
            unlabeled = []
    else:
        check_only_split(root, split)
        base, unlabeled = root, []
    loose, folders = walk.entries(base)
    groups: dict[str, list[Path]] = {"": loose}
    for folder in [*folders, *unlabeled]:
        name = "" if folder.name.lower() in _UNLABELED else folder.name
        groups.setdefault(name, []).extend(walk.images(folder))
    return groups


class _Walk:
    """Goes through folders by name, through each one once however it is linked."""

    def __init__(self, root: Path, skipped: list[tuple[str, str]]) -> None:
        self._root = root
        self._skipped = skipped
        self._visited = {self._identity(root)}
        self._listed: dict[Path, tuple[list[Path], list[Path]]] = {}

    def entries(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """Return the images in a folder and the folders in it that were not yet met."""
        if folder not in self._listed:
            self._listed[folder] = self._list(folder)
        return self._listed[folder]

    def images(self, folder: Path) -> list[Path]:
        """Return the images in a folder and below."""
        images, folders = self.entries(folder)
        return images + [file for below in folders for file in self.images(below)]

    def _list(self, folder: Path) -> tuple[list[Path], list[Path]]:
        images, folders = [], []
        try:
            for entry in sorted(folder.iterdir()):
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    if self._identity(entry) in self._visited:
                        self._skip(entry, "a link to a folder that is read elsewhere")
                    else:
                        self._visited.add(self._identity(entry))
                        folders.append(entry)
                elif entry.suffix.lower() not in decoding.suffixes():
                    self._skip(entry, "not an image")
                elif not entry.is_file():  # a pipe, or a link to nothing
                    self._skip(entry, "not a file")
                else:
                    images.append(entry)
        except OSError as error:
            self._skip(folder, error.strerror or str(error))
        return images, folders

    def _skip(self, entry: Path, reason: str) -> None:
        self._skipped.append((_shown(entry, self._root), reason))

    @staticmethod
    def _identity(folder: Path) -> tuple[int, int]:
        about = folder.stat()
        return about.st_dev, about.st_ino


def _shown(file: Path, root: Path) -> str:
    """Return the path within the root as text that can be written in UTF-8."""
    return os.fsencode(file.relative_to(root).as_posix()).decode("utf-8", "replace")
