"""Folders of images: one folder per class, or flat, divided into parts such as train or not.

Which folders hold images is looked up before anything is decided: others do not count.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from coincide._checks import UNKNOWN
from coincide._names import natural_key
from coincide.data import splits
from coincide.data.errors import Array, SourceError, quoted
from coincide.data.images import decoding, metadata
from coincide.data.images.decoding import CHUNK, Item
from coincide.data.images.listing import Listing

_UNLABELED = ("unlabeled", "unlabelled", str(UNKNOWN))
# Of layouts that `datasets` reads.
_DATASETS_SUFFIXES = (".arrow", ".csv", ".json", ".jsonl", ".tar", ".zip")
_NOT_AN_IMAGE = "not an image"


def list_folder(root: Path, split: str, label_column: str | None) -> Listing | None:
    """List a folder of images; None if it holds none, but files that `datasets` may know.

    It holds images, or one folder of images per class, at any depth; or parts of that kind, whose
    names have words such as ``train`` and ``test`` in them, of which ``split`` names one. What lies
    in ``unlabeled/`` or ``-1/``, or beside the folders of classes, has no class; ``unlabeled/``
    beside parts belongs to ``train``. A ``metadata.csv`` beside images says their classes instead.
    """
    part = _choose_part(root, split)
    walk = _Walk(root)
    groups = _by_class(walk, part)
    files = [file for group in groups.values() for file in group]
    if not files:
        _refuse_no_images(root, walk)
        return None
    if label_column is not None and not walk.tables:
        raise SourceError(
            f"{root} is a folder of images, without a metadata.csv: it has no column"
            f" {label_column!r}."
        )
    labels, names = _classes(groups)
    note = ""
    if walk.tables:
        told = metadata.read_metadata(walk.tables, files, label_column)
        note = told.note
        if told.column is not None:
            labels, names = told.labels, told.label_names
        for file in told.missing:
            walk.skip(file, "listed in the metadata, but not there")

    def chunks() -> Iterator[list[Item]]:
        for start in range(0, len(files), CHUNK):
            yield list(files[start : start + CHUNK])

    return Listing(
        root.resolve().name,
        [_shown(file, root) for file in files],
        chunks,
        labels,
        names,
        tuple(files),
        _summed_up(walk),
        part.note,
        note,
    )


def _refuse_no_images(root: Path, walk: _Walk) -> None:
    """Refuse a folder without images, unless there are files that `datasets` may know."""
    held = [*(place for place, _ in walk.skipped), *walk.tables]
    if any(place.suffix.lower() in _DATASETS_SUFFIXES for place in held):
        return
    more = f", only {quoted([_shown(place, root) for place in held])}" if held else ""
    raise SourceError(f"{root} holds no images{more}.")


def _classes(groups: dict[str, list[Path]]) -> tuple[Array | None, tuple[str, ...] | None]:
    """Return the codes and the names of the classes that folders say; "" stands for none."""
    names = tuple(name for name, files in groups.items() if name and files)
    codes = {name: code for code, name in enumerate(names)}
    labels = [codes.get(name, UNKNOWN) for name, group in groups.items() for _ in group]
    # A single folder says nothing, unless it stands beside images that are not in it.
    if len(names) > 1 or len(set(labels)) > 1:
        return np.array(labels, np.int64), names
    return None, None


# Which part


@dataclass(frozen=True)
class _Part:
    """The folder to read: its folders are the classes. ``way`` leads to it from the root.

    ``beside`` are folders of images beside the parts that are of none, ``unlabeled`` those that
    belong to this one.
    """

    folder: Path
    way: Sequence[Path] = ()
    beside: Sequence[Path] = ()
    unlabeled: Sequence[Path] = ()
    note: str = ""


def _choose_part(root: Path, split: str) -> _Part:
    """Find the part that ``split`` names, going through folders that hold but one."""
    whole = split == splits.WHOLE
    way = _through(root, stop_at_parts=not whole)
    base = way[-1]
    names = {folder.name: folder for folder in _look(base).holding()}
    classes = [name for name in names if name.lower() not in _UNLABELED]
    parts = _parts(classes)
    if whole or not (parts or (split != "train" and split in names)):
        if not whole:
            _refuse_unusual_parts(base, [names[name] for name in classes])
        splits.check_only_split(base, split)
        return _Part(base, way[:-1])
    chosen = split if split in names else splits.choose_part(base, parts, split)
    beside = [name for name in classes if parts and name not in (*parts, chosen)]
    unlabeled = [name for name in names if name not in classes]
    below = _through(names[chosen], stop_at_parts=False)
    return _Part(
        below[-1],
        [*way, *below[:-1]],
        [names[name] for name in beside],
        [names[name] for name in unlabeled if splits.named_split(chosen) == "train"],
        " ".join(splits.describe_choice(base, chosen, parts or names)),
    )


def _parts(names: list[str]) -> list[str]:
    """Return the folders that are parts, if they are: at least two kinds, or nothing else.

    Where most folders are called otherwise, ``train`` is the class beside bus and car.
    """
    named = {name: split for name in names if (split := splits.named_split(name))}
    several = len(set(named.values())) > 1 and 2 * len(named) >= len(names)
    return list(named) if several or len(named) == len(names) else []


def _refuse_unusual_parts(base: Path, folders: list[Path]) -> None:
    """Refuse folders that hold nothing but folders of the same names: they may be parts."""
    looks = [_look(folder) for folder in folders]
    inner = {tuple(each.name for each in look.holding()) for look in looks}
    if any(look.loose for look in looks) or len(looks) < 2 or len(inner) > 1:
        return
    if len(inner.pop()) > 1:
        names = [folder.name for folder in folders]
        raise SourceError(
            f"{quoted(names)} in {base} hold folders of the same names: if these are parts, say"
            f" --split {names[0]}, or another one; if they are the classes, --split {splits.WHOLE}"
        )


def _through(folder: Path, *, stop_at_parts: bool) -> list[Path]:
    """Return the folders from one to the first that holds more than one folder of images."""
    way = [folder]
    while True:
        look = _look(way[-1])
        holding = look.holding()
        if look.loose or len(holding) != 1 or holding[0].name.lower() in _UNLABELED:
            return way
        name = holding[0].name
        if stop_at_parts and splits.named_split(name) and name != way[-1].name:
            return way
        way.append(holding[0])


@dataclass(frozen=True)
class _Look:
    """Whether images lie in a folder itself, and the folders in it as people sort them."""

    loose: bool
    folders: list[Path]

    def holding(self) -> list[Path]:
        """Return the folders that hold images."""
        return [folder for folder in self.folders if holds_images(folder)]


def _look(folder: Path) -> _Look:
    loose, inner = False, []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name[0] == ".":
                continue
            if _is_folder(entry):
                inner.append(folder / entry.name)
            else:
                loose = loose or _is_image(entry.name)
    return _Look(loose, sorted(inner, key=lambda path: natural_key(path.name)))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def holds_images(folder: Path) -> bool:
    """Whether there is an image in a folder or below."""
    met: set[tuple[int, int]] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        here = _identity(Path(place))
        if here in met:
            folders.clear()
            continue
        met.add(here)
        folders[:] = [name for name in folders if name[0] != "."]
        if any(_is_image(name) for name in files):
            return True
    return False


def _is_image(name: str) -> bool:
    return name[0] != "." and Path(name).suffix.lower() in decoding.suffixes()


def _identity(folder: Path) -> tuple[int, int]:
    about = folder.stat()
    return about.st_dev, about.st_ino


# Which files


def _by_class(walk: _Walk, part: _Part) -> dict[str, list[Path]]:
    """Return the image files of each class, by name; "" stands for no class."""
    for folder in part.way:
        loose, folders = walk.entries(folder)
        for file in loose:
            walk.skip(file, "outside the folders of splits")
        for empty in folders:
            if not holds_images(empty):
                walk.images(empty)  # for what it holds instead
    for folder in part.beside:
        walk.skip(folder, "beside the folders of splits")
    loose, folders = walk.entries(part.folder)
    groups: dict[str, list[Path]] = {"": loose}
    for folder in [*folders, *part.unlabeled]:
        name = "" if folder.name.lower() in _UNLABELED else folder.name
        groups.setdefault(name, []).extend(walk.images(folder))
    return groups


@dataclass
class _Walk:
    """Goes through folders by name, through each one once however it is linked."""

    root: Path
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    tables: list[Path] = field(default_factory=list)
    empty: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._visited = {_identity(self.root)}

    def skip(self, entry: Path, reason: str) -> None:
        """Note what is passed over."""
        self.skipped.append((entry, reason))

    def entries(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """Return the images in a folder and the folders in it that were not yet met."""
        images, folders = [], []
        try:
            for entry in sorted(folder.iterdir(), key=lambda entry: natural_key(entry.name)):
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    if _identity(entry) in self._visited:
                        self.skip(entry, "a link to a folder that is read elsewhere")
                    else:
                        self._visited.add(_identity(entry))
                        folders.append(entry)
                elif entry.name in metadata.NAMES:
                    self.tables.append(entry)
                elif not _is_image(entry.name):
                    self.skip(entry, _NOT_AN_IMAGE)
                elif not entry.is_file():  # a pipe, or a link to nothing
                    self.skip(entry, "not a file")
                else:
                    images.append(entry)
        except OSError as error:
            self.skip(folder, error.strerror or str(error))
        return images, folders

    def images(self, folder: Path) -> list[Path]:
        """Return the images in a folder and below."""
        images, folders = self.entries(folder)
        found = images + [file for below in folders for file in self.images(below)]
        if not found:
            self.empty.append(folder)
            for table in [table for table in self.tables if folder in table.parents]:
                self.tables.remove(table)
                self.skip(table, _NOT_AN_IMAGE)
        return found


def _summed_up(walk: _Walk) -> list[tuple[str, str]]:
    """Return what was passed over, a folder without images as one entry."""
    counts: dict[Path, int] = {}
    shown: list[tuple[str, str]] = []
    empty = set(walk.empty)
    for place, reason in walk.skipped:
        outer = [folder for folder in place.parents if folder in empty]
        if outer and reason == _NOT_AN_IMAGE:
            counts[outer[-1]] = counts.get(outer[-1], 0) + 1
        else:
            shown.append((_shown(place, walk.root), reason))
    for folder, count in counts.items():
        held = "another file" if count == 1 else f"{count} other files"
        shown.append((_shown(folder, walk.root), f"it holds no images, but {held}"))
    return shown


def _shown(file: Path, root: Path) -> str:
    """Return the path within the root as text that can be written in UTF-8."""
    return os.fsencode(os.path.relpath(file, root)).decode("utf-8", "replace").replace(os.sep, "/")
