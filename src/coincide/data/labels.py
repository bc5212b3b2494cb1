"""Labels as people store them to class codes: one meaning for every source.

Integers, whole numbers, booleans or text, one per row; -1, NaN, None and blanks are unknown. The
classes are sorted as people count: 2 before 10, also in text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coincide._checks import UNKNOWN
from coincide._names import natural_key
from coincide.data.errors import Array, SourceError

Codes = NDArray[np.int64]


def encode_labels(
    values: Array | Iterable[object], where: str, names: Sequence[str] | None = None
) -> tuple[Codes | None, tuple[str, ...] | None]:
    """Return class codes, -1 where unknown, and what they stand for; None for both if none is told.

    Parameters
    ----------
    values : array of shape (M,) or iterable of M
        Integers >= 0, whole numbers, booleans or text; -1, None, NaN and blanks are unknown.
    where : str
        Where they come from, for sentences.
    names : sequence of C str, optional
        Those of the classes 0 … C-1, if the values are numbers. Without them the values found,
        sorted, are the classes.

    Raises
    ------
    SourceError
        For other kinds of values, text beside numbers, and codes outside of ``names``.

    Examples
    --------
    >>> from coincide.data.labels import encode_labels
    >>> encode_labels(["10", "", "2", None], "the column")
    (array([ 1, -1,  0, -1]), ('2', '10'))
    """
    stored = isinstance(values, np.ndarray) and values.dtype.kind != "O"
    array = np.asarray(values) if stored else _as_array(list(values), where)
    if array.dtype.kind in "OSU":
        return _of_text(array, where)
    if array.dtype.kind == "b":
        return _of_text(array.astype(str), where)
    if array.dtype.kind not in "iuf":
        raise SourceError(f"{_expected(where)} Got {array.dtype} instead.")
    return _of_numbers(array, where, names)


def _expected(where: str) -> str:
    return f"The labels in {where} must be integers >= 0 or text, and -1 or nothing where unknown."


def _as_array(values: list[object], where: str) -> Array:
    """Return numbers as numbers, gaps as NaN; anything else as objects."""
    told = [value for value in values if value is not None]
    if told and all(isinstance(value, int | float | np.number) for value in told):
        if all(isinstance(value, bool) for value in told):
            return np.array([None if v is None else str(v) for v in values], object)
        if any(isinstance(value, bool) for value in told):
            raise SourceError(f"The labels in {where} must be either all numbers or all text.")
        if len(told) == len(values) and not any(isinstance(value, float) for value in told):
            return np.array(values)
        return np.array([np.nan if value is None else value for value in values], np.float64)
    array = np.empty(len(values), object)
    array[:] = values
    return array


def _of_numbers(
    array: Array, where: str, names: Sequence[str] | None
) -> tuple[Codes | None, tuple[str, ...] | None]:
    unknown = np.isnan(array) if array.dtype.kind == "f" else np.zeros(len(array), bool)
    fit = unknown | ((array >= UNKNOWN) & (array == np.round(array)) & np.isfinite(array))
    if not fit.all():
        row = int(np.argmin(fit))
        odd = len(array) - int(fit.sum())
        more = f" ({odd} such rows)" if odd > 1 else ""
        raise SourceError(f"{_expected(where)} Row {row} has {array[row]}{more}.")
    unknown = unknown | (array == UNKNOWN)
    known = array[~unknown].astype(np.int64)
    if len(known) == 0:
        return None, None
    codes = np.full(len(array), UNKNOWN, np.int64)
    if names is None:
        classes, codes[~unknown] = np.unique(known, return_inverse=True)
        return codes, tuple(str(value) for value in classes)
    if known.max() >= len(names):
        row = int(np.flatnonzero(~unknown)[known.argmax()])
        raise SourceError(
            f"The labels in {where} must lie below {len(names)}, the number of its classes."
            f" Row {row} has {known.max()}."
        )
    codes[~unknown] = known
    return codes, tuple(str(name) for name in names)


def _of_text(array: Array, where: str) -> tuple[Codes | None, tuple[str, ...] | None]:
    cleaned = [_text_of(value, row, where) for row, value in enumerate(array.tolist())]
    if None in cleaned:
        raise SourceError(f"The labels in {where} must be either all numbers or all text.")
    classes = sorted({value for value in cleaned if value}, key=natural_key)
    if not classes:
        return None, None
    codes: dict[str, int] = {value: code for code, value in enumerate(classes)}
    return np.array([codes.get(value or "", UNKNOWN) for value in cleaned], np.int64), tuple(
        classes
    )


def _text_of(value: Any, row: int, where: str) -> str | None:
    """Return a label without the blanks around it; "" where it is unknown, None for a number."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, int | float):
        return None
    if not isinstance(value, str):
        raise SourceError(f"{_expected(where)} Row {row} has {value!r}.")
    text = value.strip()
    return "" if text == str(UNKNOWN) else text
