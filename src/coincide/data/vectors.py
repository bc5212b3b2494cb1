"""Feature vectors from files: arrays (.npy, .npz), tables (Parquet, CSV) and ``digits``.

Everything ends in one :class:`Source`: a matrix of one row per point, in the dtype in which it
was stored, and class codes where labels lie beside it. Nothing is cast, filled in or dropped;
what cannot be clustered as it stands is refused in one sentence that says where it is.
"""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from coincide._names import closest
from coincide.data import tables
from coincide.data.errors import Array, SourceError, check_known, first_line, quoted
from coincide.data.labels import encode_labels

__all__ = ["BUILT_IN", "SUFFIXES", "Source", "SourceError", "is_table", "load_source"]

BUILT_IN = ("digits",)
SUFFIXES = (".npy", ".npz", *tables.SUFFIXES)

_FEATURE_ARRAYS = ("features", "X", "x")  # their names in an .npz
_LABEL_ARRAYS = ("labels", "label", "y")
_BLOCK_BYTES = 16 << 20  # of a memory-mapped file looked at together
# What NumPy raises, by fuzzing, when the header of an array is damaged.
_DAMAGED_ARRAY = (ValueError, SyntaxError, OverflowError, EOFError, tokenize.TokenError)
_DAMAGED_ARCHIVE = (*_DAMAGED_ARRAY, OSError, KeyError, NotImplementedError, RuntimeError)


@dataclass(frozen=True)
class Source:
    """Feature vectors, and the classes of the points where they are known.

    Attributes
    ----------
    name : str
        What the source is called: ``"digits"``, or the file's name without its suffix.
    features : ndarray of shape (M, D)
        Finite numbers in the dtype they were stored in; memory-mapped from an ``.npy``.
    labels, label_names : ndarray of shape (M,) and tuple of C str, or None
        Class codes 0 … C-1, for evaluation only, and what they stand for.
    columns : tuple of str, or None
        The columns of a table that the features came from, in order.
    """

    name: str
    features: Array
    labels: Array | None = None
    label_names: tuple[str, ...] | None = None
    columns: tuple[str, ...] | None = None


def load_source(
    source: str | Path,
    *,
    columns: Sequence[str] | None = None,
    label_column: str | None = None,
    labels: str | Path | None = None,
) -> Source:
    """Read feature vectors, and labels where there are some.

    What cannot be clustered as it stands is refused in one sentence, with the first bad row (rows
    of data and columns of arrays count from 0).

    Parameters
    ----------
    source : str or Path
        ``"digits"`` (scikit-learn's handwritten digits; a file of that name is ``./digits``);
        an ``.npy`` with one 2-D array; an ``.npz`` with one 2-D array, or one named
        ``features``, ``X`` or ``x``; a ``.csv``, ``.tsv`` or ``.parquet`` table; a folder that
        holds ``features.npy`` (and ``labels.npy``), or parts ``*.parquet``, read in the order
        of their names. A text file without a header row gets the names ``f0``, ``f1``, …
    columns : sequence of str, optional
        The columns of a table to use, in this order. By default all but the labels. A column
        of equally long lists, such as ``embedding``, gives as many features.
    label_column : str, optional
        The column of a table, or the array of an ``.npz``, that holds the labels. By default
        the column ``label``, or the array ``labels``, ``label`` or ``y``, if there is one.
    labels : str or Path, optional
        A file of labels, one per row: a 1-D ``.npy``, or a table with one column or a column
        ``label``.
    """
    if labels is not None and label_column is not None:
        raise SourceError("Give the labels either as a column or as a file of labels, not both.")
    found, stored_labels, class_names = _read(
        source, None if columns is None else list(columns), label_column
    )
    _check_features(found, str(source))
    where = str(source)
    if labels is not None:
        where, stored_labels, class_names = str(labels), _read_label_file(Path(labels)), None
    if not found.features.dtype.isnative:  # the same values in the order that PyTorch can read
        native = found.features.dtype.newbyteorder("=")
        found = replace(found, features=found.features.astype(native))
    if stored_labels is None:
        return found
    codes, names = _encode_labels(stored_labels, len(found.features), where, class_names)
    return replace(found, labels=codes, label_names=names)


def is_table(source: str | Path) -> bool:
    """Whether ``source`` has named columns: a table, or a folder of ``*.parquet`` parts."""
    path = Path(source)
    if source in BUILT_IN:
        return False
    if path.is_dir():
        return not (path / "features.npy").is_file() and bool(tables.parquet_parts(path))
    return path.suffix.lower() in tables.SUFFIXES


_Read = tuple[Source, Array | None, tuple[str, ...] | None]


def _read(source: str | Path, columns: list[str] | None, label_column: str | None) -> _Read:
    """Return the features unchecked, the labels as stored, and the names of their classes."""
    path = Path(source)
    if not is_table(source):
        features, labels = _read_arrays(source, label_column)
        by_name = path.suffix.lower() == ".npz"
        _refuse_columns(str(source), columns, None if by_name else label_column)
        return Source(_name(path), features), labels, None
    _checked_suffix(path)
    table = tables.read_table(path, columns, label_column)
    found = Source(_name(path), table.features, columns=table.columns)
    return found, table.labels, table.class_names


def _read_arrays(source: str | Path, label_column: str | None) -> tuple[Array, Array | None]:
    """Return the features, and the labels if they lie beside them."""
    if source in BUILT_IN:
        digits = load_digits()
        return digits.data, digits.target
    path = Path(source)
    if path.is_dir() and (path / "features.npy").is_file():
        labels = path / "labels.npy"
        return open_npy(path / "features.npy"), open_npy(labels) if labels.is_file() else None
    if _checked_suffix(path) == ".npz":
        return _read_npz(path, label_column)
    return open_npy(path), None


def _checked_suffix(path: Path) -> str:
    """Return the suffix that says how to read ``path`` (a folder of parts is Parquet)."""
    if not path.exists():
        hint = closest(str(path), BUILT_IN, "the built-in source ")
        raise SourceError(f"The source {str(path)!r} does not exist. {hint}".rstrip())
    if path.is_dir():
        if tables.parquet_parts(path):
            return ".parquet"
        raise SourceError(f"The folder {path} holds neither features.npy nor *.parquet files.")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        got = f"the suffix {path.suffix!r}" if path.suffix else "no suffix"
        raise SourceError(
            f"{path} has {got}: a source must be {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]},"
            " or a folder."
        )
    if path.stat().st_size == 0:
        raise SourceError(f"{path} is empty.")
    return suffix


def _refuse_columns(where: str, columns: list[str] | None, label_column: str | None) -> None:
    if columns is not None:
        raise SourceError(f"{where} has no named columns to choose from with --columns.")
    if label_column is not None:
        raise SourceError(
            f"{where} has no named columns: give a file of labels with --labels instead of"
            " --label-column."
        )


def _name(path: Path) -> str:
    """Return the name of a source at ``path``, also when that is ``.``."""
    resolved = path.resolve()
    return resolved.name if resolved.is_dir() else resolved.stem


# Arrays


def open_npy(path: Path) -> Array:
    """Memory-map the array in ``path``; pickles are never opened."""
    if path.stat().st_size == 0:
        raise SourceError(f"{path} is empty.")
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except _DAMAGED_ARRAY as error:
        if "Python objects" in str(error):
            raise SourceError(_pickled(path)) from error
        raise SourceError(_damaged(path, error)) from error


def _read_npz(path: Path, label_column: str | None) -> tuple[Array, Array | None]:
    """Return the features of an archive, and the labels if there are some."""
    arrays = open_npz(path)
    matrices = [name for name, array in arrays.items() if array.ndim == 2]
    named = [name for name in _FEATURE_ARRAYS if name in arrays]
    if not named and len(matrices) != 1:
        held = ", ".join(f"{name!r} {array.shape}" for name, array in arrays.items()) or "nothing"
        raise SourceError(
            f"{path} must hold one 2-D array, or one named 'features', 'X' or 'x'. It holds {held}."
        )
    if label_column is not None:
        check_known([label_column], list(arrays), str(path), "array")
        return arrays[(named or matrices)[0]], arrays[label_column]
    labels = next((arrays[name] for name in _LABEL_ARRAYS if name in arrays), None)
    return arrays[(named or matrices)[0]], labels


def open_npz(path: Path) -> dict[str, Array]:
    """Return the arrays of an archive by name; pickles are never opened."""
    try:
        if not zipfile.is_zipfile(path):  # of such a file np.load would say that it is pickled
            raise zipfile.BadZipFile("it is no zip archive")
        with np.load(path, allow_pickle=False) as arrays:
            # A member that is no array comes as bytes, which become an array of kind S.
            return {name: np.asarray(arrays[name]) for name in arrays.files}
    except (*_DAMAGED_ARCHIVE, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error):
            raise SourceError(_pickled(path)) from error
        raise SourceError(_damaged(path, error)) from error


def _pickled(path: Path) -> str:
    return f"{path} holds pickled Python objects, which are not opened: save arrays of numbers."


def _damaged(path: Path, error: Exception) -> str:
    return f"{path} cannot be read as {path.suffix} ({first_line(error)})."


# Labels


def _read_label_file(path: Path) -> Array:
    suffix = _checked_suffix(path)
    if suffix == ".npy":
        return open_npy(path)
    if suffix == ".npz":
        raise SourceError(f"A file of labels must be .npy or a table. Got {path} instead.")
    table = tables.open_table(path)
    names = table.schema.names
    label = tables.LABEL_COLUMN
    if label not in names and len(names) > 1:
        raise SourceError(
            f"{path} must have one column, or one named {label!r}. It has {quoted(names)}."
        )
    return tables.label_values(table, label if label in names else names[0])


def _encode_labels(
    values: Array, rows: int, where: str, class_names: tuple[str, ...] | None
) -> tuple[Array | None, tuple[str, ...] | None]:
    """Return class codes, and what they stand for, of one label a row."""
    if values.ndim != 1:
        raise SourceError(f"The labels in {where} must be 1-D. Got shape {values.shape} instead.")
    if len(values) != rows:
        raise SourceError(f"There are {rows} rows of features but {len(values)} labels in {where}.")
    return encode_labels(values, where, class_names)


# Checks


def _check_features(found: Source, where: str) -> None:
    """Refuse what is no matrix of finite numbers."""
    features = found.features
    if features.dtype.kind not in "iuf" or features.dtype.itemsize > 8:
        raise SourceError(
            f"{where} must hold integers or floating-point numbers of at most 64 bits."
            f" Got {features.dtype} instead."
        )
    if features.ndim != 2:
        way_out = (
            "for one feature per point save array.reshape(-1, 1)"
            if features.ndim < 2
            else "flatten each point with array.reshape(len(array), -1)"
        )
        raise SourceError(
            f"{where} must hold a 2-D array, one row per point. Got a {features.ndim}-D array of"
            f" shape {features.shape} instead: {way_out}."
        )
    if 0 in features.shape:
        missing = "rows" if len(features) == 0 else "columns"
        raise SourceError(f"{where} has no {missing}: its shape is {features.shape}.")
    if features.dtype.kind == "f":
        _check_finite(found, where)


def _check_finite(found: Source, where: str) -> None:
    """Refuse NaN and infinite values, reading a block of rows at a time."""
    features = found.features
    step = max(1, _BLOCK_BYTES // (features.shape[1] * features.itemsize))
    bad, first = 0, None
    for start in range(0, len(features), step):
        finite = np.isfinite(features[start : start + step])
        rows = np.flatnonzero(~finite.all(axis=1))
        bad += len(rows)
        if first is None and len(rows):
            first = start + int(rows[0]), int(np.argmin(finite[rows[0]]))
    if first is None:
        return
    row, column = first
    named = found.columns is not None and len(found.columns) == features.shape[1]
    label = repr(found.columns[column]) if named and found.columns else str(column)
    raise SourceError(
        f"{where} must hold finite numbers. {bad} of {len(features)} rows have NaN or infinite"
        f" entries, the first at row {row}, column {label} ({features[row, column]})."
    )
