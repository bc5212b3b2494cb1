"""What the columns of a source are: features, the labels, the id of a row, or left out.

One rule for tables, archives and arrays, by names first and by values where names say nothing:

- **labels**: the column called label, labels, class, target (in any case, blanks around it do not
  count), or y where there is no x; else one whose last word is label;
- **ids**: a column called id, or whose first or last word is id, an index that pandas wrote, and
  any that numbers the rows: whole numbers that rise, or all of those from the least to the largest;
  text that is different in every row;
- **features**: all others, which must be numbers.

What was taken for what is told, and every part of it can be asked for otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from coincide.data.errors import Array, SourceError, check_known, quoted

ENOUGH_ROWS = 10  # from which values can tell that a column numbers the rows

_LABELS = ("label", "labels", "class", "target")
_INDEX = re.compile(r"|index|idx|row|rowid|uid|#|unnamed: ?\d+|__index_level_\d+__")
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")


@dataclass(frozen=True)
class Roles:
    """What each column is taken for: ``left_out`` with the reason, ``asked`` if a user named them.

    ``id`` is the one that names the rows in what is written; others of its kind are left out.
    """

    features: list[str]
    label: str | None = None
    id: str | None = None
    left_out: dict[str, str] = field(default_factory=dict)
    asked: bool = False

    def said(self, where: str) -> list[str]:
        """Return in sentences what is no feature."""
        parts = []
        if self.id is not None:
            why = self.left_out.get(self.id, "")
            parts.append(f"{self.id!r} as the id of a row" + (f" ({why})" if why else ""))
        if self.label is not None:
            parts.append(f"{self.label!r} as the labels")
        told = [f"{where}: took {' and '.join(parts)}."] if parts else []
        for name, why in self.left_out.items():
            if name != self.id:
                told.append(f"{where}: left out {name!r}, which {why}. --columns takes it.")
        return told


@dataclass(frozen=True)
class Asked:
    """What a user said of the columns, or a model knows (``like``); None where nothing."""

    features: Sequence[str] | None = None
    label: str | None = None
    id: str | None = None
    like: Sequence[str] | None = None

    def columns(self, names: Sequence[str]) -> list[str] | None:
        """Return the columns asked for, among these names: by theirs, or by those of features.

        ``like`` are the names of features, those of a column of lists ``name[0]``, ``name[1]``, …
        """
        if self.features is not None or self.like is None:
            return None if self.features is None else list(self.features)
        found = [name if name in names else re.sub(r"\[\d+\]$", "", name) for name in self.like]
        return list(dict.fromkeys(found))


def choose_roles(
    names: Sequence[str], asked: Asked, where: str, look: Callable[[str], str | None]
) -> Roles:
    """Return the roles of columns of these names.

    ``look`` returns why the values of a column look like an id, or None; it is asked of columns
    whose name says nothing.
    """
    for name in (*(asked.features or ()), asked.label, asked.id):
        if name is not None:
            check_known([name], names, where, "column")
    label = asked.label or named_label(names, (*(asked.features or ()), asked.id), where)
    ids: dict[str, str] = {}
    labels: dict[str, str] = {}
    for name in names:
        if name == label or name in (asked.features or ()):
            continue
        if name == asked.id or named_as_id(name):
            ids[name] = "is called like an id" if name.strip() else "has no name, as an index"
        elif asked.features is None and named_as_label(name, names):
            labels[name] = "is called like labels"
        elif asked.features is None and (why := look(name)) is not None:
            ids[name] = why
    features = list(asked.features or [n for n in names if n not in {*ids, *labels, label}])
    if not features:  # a table of one column that counts, say
        features, ids = list(ids), {}
    found = asked.id or next(iter(ids), None)
    return Roles(features, label, found, ids | labels, asked.features is not None)


def named_as_label(name: str, names: Sequence[str]) -> bool:
    """Whether a column is called like labels, among columns of these names."""
    plain = _plain(name)
    if plain == "y":
        return "x" not in map(_plain, names)
    return plain in _LABELS or _words(name)[-1:] in (["label"], ["labels"])


def named_label(names: Sequence[str], taken: Sequence[str | None], where: str) -> str | None:
    """Return the column called like labels; refuse several that could as well be meant."""
    alike = [name for name in names if named_as_label(name, names) and name not in taken]
    whole = [name for name in alike if _plain(name) in (*_LABELS, "y")]
    found = whole or alike
    if len(found) > 1:
        raise SourceError(
            f"{where} has several columns that could be the labels, {quoted(found)}: name one with"
            " --label-column."
        )
    return found[0] if found else None


def named_as_id(name: str) -> bool:
    """Whether a column is called like an id or an index.

    Examples
    --------
    >>> from coincide.data.columns import named_as_id
    >>> [named_as_id(name) for name in ("PassengerId", "id", "Unnamed: 0", "acid", "mass index")]
    [True, True, True, False, False]
    """
    words = _words(name)
    by_word = "id" in (*words[:1], *words[-1:]) or words[-1:] in (["ids"], ["uuid"], ["guid"])
    return by_word or bool(_INDEX.fullmatch(_plain(name)))


def have_own_units(names: Sequence[str]) -> bool:
    """Whether features are called by more than numbers: then each has a unit of its own.

    Examples
    --------
    >>> from coincide.data.columns import have_own_units
    >>> have_own_units(["age", "income"]), have_own_units(["x0", "x1"])
    (True, False)
    """
    return len({re.sub(r"\d+", "", name) for name in names}) > 1


def numbers_rows(values: Array) -> bool:
    """Whether whole numbers number the rows: they rise, or none is missing and none twice."""
    if len(values) < ENOUGH_ROWS or values.dtype.kind not in "iuf":
        return False
    if values.dtype.kind == "f" and not (np.isfinite(values) & (values == np.round(values))).all():
        return False
    if bool((values[1:] > values[:-1]).all()):
        return True
    low, high = int(values.min()), int(values.max())
    return high - low == len(values) - 1 and len(np.unique(values)) == len(values)


def _plain(name: str) -> str:
    return name.strip().casefold()


def _words(name: str) -> list[str]:
    """Return the words of a name, as in ``passenger_id`` and ``PassengerId``."""
    return [word.lower() for word in _WORDS.findall(name)]
