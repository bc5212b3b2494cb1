"""Feature vectors from files: arrays (.npy, .npz), tables (Parquet, CSV, …) and ``digits``.

Everything ends in one :class:`Source`: a matrix of one row per point, in the dtype in which it
was stored, class codes where labels lie beside it, and an id of every row where it has one. Nothing
is filled in or dropped; what was taken for what is said, and what cannot be clustered as it stands
is refused in one sentence that says where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from coincide.data import formats, tables
from coincide.data.arrays import ArrayContents, open_npy, read_h5ad, read_npy, read_npz
from coincide.data.columns import Asked, named_as_label
from coincide.data.errors import BUILT_IN, Array, SourceError, missing_source, quoted
from coincide.data.hub import is_saved, open_hub
from coincide.data.labels import encode_labels

__all__ = ["BUILT_IN", "SUFFIXES", "Source", "SourceError", "is_table", "load_source"]

ARRAYS = (".npy", ".npz", ".h5ad")
SUFFIXES = (*ARRAYS, *formats.SUFFIXES)

_BLOCK_BYTES = 16 << 20  # of a memory-mapped file looked at together


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
        Class codes 0 … C-1, -1 where unknown, for evaluation only, and what they stand for.
    columns : tuple of str, or None
        The columns that the features came from, in order: their names in a table; their numbers
        in an array of which not all are features.
    feature_names : tuple of D str, or None
        What each feature is called: as its column, or ``embedding[0]``, ``embedding[1]``, …
    ids, id_name : ndarray of shape (M,) and str, or None
        What the source calls each row, and what it calls that.
    said : tuple of str
        What was taken for what, in sentences, where that is not plain.
    """

    name: str
    features: Array
    labels: Array | None = None
    label_names: tuple[str, ...] | None = None
    columns: tuple[str, ...] | None = None
    feature_names: tuple[str, ...] | None = None
    ids: Array | None = None
    id_name: str | None = None
    said: tuple[str, ...] = ()


def load_source(
    source: str | Path,
    *,
    columns: Sequence[str] | None = None,
    like: Sequence[str] | None = None,
    label_column: str | None = None,
    id_column: str | None = None,
    labels: str | Path | None = None,
    header: bool | None = None,
    split: str | None = None,
) -> Source:
    """Read feature vectors, and labels and ids where there are some.

    What cannot be clustered as it stands is refused in one sentence, with the first bad row (rows
    of data and columns of arrays count from 0). How columns are told apart is in
    :mod:`coincide.data.columns`.

    Parameters
    ----------
    source : str or Path
        ``"digits"`` (scikit-learn's handwritten digits; a file of that name is ``./digits``);
        an ``.npy`` with one 2-D array; an ``.npz`` with one 2-D array, or one named
        ``features``, ``X`` or ``x``, or a sparse matrix of SciPy's; an ``.h5ad``; a table as
        text, Parquet, Feather or lines of JSON; a folder that holds ``features.npy`` (and
        ``labels.npy``), parts of Parquet, or what ``Dataset.save_to_disk`` wrote; the name of a
        set on the Hugging Face hub.
    columns : sequence of str, optional
        The columns of the features, in this order; those of an array by their numbers. By default
        all but labels and ids. A column of equally long lists, such as ``embedding``, gives as
        many features. In an archive, the name of the array.
    like : sequence of str, optional
        The names of the features that a model was fitted on (``feature_names_in_``), in place of
        ``columns``: a table has them in whatever order. Names say nothing of an array.
    label_column, id_column : str, optional
        The column of a table, or the array of an ``.npz``, that holds the labels, or the ids.
    labels : str or Path, optional
        A file of labels, one per row: a 1-D ``.npy``, or a table with one column, or one that is
        called like labels.
    header : bool, optional
        Whether the first row of a text file names the columns; found out by default. A file
        without names has columns ``f0``, ``f1``, …
    split : str, optional
        The part to read of a folder that has several, by default ``train``.
    """
    if labels is not None and label_column is not None:
        raise SourceError("Give the labels either as a column or as a file of labels, not both.")
    asked = Asked(columns, label_column, id_column, like)
    found, stored, class_names = _read(source, asked, header, split)
    found = _as_numbers(found, str(source))
    _check_features(found, str(source))
    where = str(source)
    if labels is not None:
        where, class_names = str(labels), None
        stored, said = _read_label_file(Path(labels), len(found.features))
        found = replace(found, said=(*found.said, *said))
    if stored is None:
        return found
    try:
        codes, names = _encode_labels(stored, len(found.features), where, class_names)
    except SourceError as error:
        if labels is None and label_column is None and columns is None and is_table(source):
            raise SourceError(f"{error} Is it a feature? --columns names these.") from error
        raise
    unknown = len(found.features) if codes is None else int((codes < 0).sum())
    if unknown:
        sentence = f"{where}: {unknown} of {len(stored)} rows have no label."
        found = replace(found, said=(*found.said, sentence))
    return replace(found, labels=codes, label_names=names)


def is_table(source: str | Path) -> bool:
    """Whether ``source`` has named columns: a table, or a folder of Parquet parts."""
    path = Path(source)
    if source in BUILT_IN:
        return False
    if path.is_dir():
        return not (path / "features.npy").is_file()
    return formats.kind_of(path) in formats.SUFFIXES


_Read = tuple[Source, Array | None, tuple[str, ...] | None]


def _read(source: str | Path, asked: Asked, header: bool | None, split: str | None) -> _Read:
    """Return the features unchecked, the labels as stored, and the names of their classes."""
    path = Path(source)
    on_hub = source not in BUILT_IN and not path.exists()
    if on_hub or is_table(source):
        opened = _open_hub(source, split) if on_hub else _open_table(path, header, split)
        table = tables.read_table(opened, asked)
        found = Source(
            name_of(path),
            table.features,
            columns=table.columns,
            feature_names=table.feature_names,
            ids=table.ids,
            id_name=table.roles.id,
            said=table.said,
        )
        return found, table.labels, table.class_names
    for what, given in (("--header", header), ("--split", split)):
        if given is not None:
            raise SourceError(f"{source} is no table as text or of parts, which {what} is for.")
    array = _read_array(source, asked)
    found = Source(
        name_of(path),
        array.features,
        columns=array.columns,
        feature_names=_feature_names(array),
        ids=array.ids,
        id_name=array.id_name,
        said=array.said,
    )
    return found, array.labels, None


def _open_table(path: Path, header: bool | None, split: str | None) -> formats.Table:
    _checked_kind(path)
    return formats.open_table(path, header=header, split=split)


def _open_hub(source: str | Path, split: str | None) -> formats.Table:
    """Return a set of vectors on the Hugging Face hub, whole."""
    found = open_hub(source, split or "train", SUFFIXES)
    return formats.in_memory(Path(source), found.with_format("arrow")[:])


def _feature_names(array: ArrayContents) -> tuple[str, ...] | None:
    """Return what the features of an array are called, if they have names."""
    width = array.features.shape[1] if array.features.ndim == 2 else 0
    if array.columns is None or len(array.columns) == width:
        return array.columns
    return tuple(f"{array.columns[0]}[{number}]" for number in range(width))


def _read_array(source: str | Path, asked: Asked) -> ArrayContents:
    """Return the features, and the labels if they lie beside them."""
    if source in BUILT_IN:
        if asked != Asked(like=asked.like):
            raise SourceError(f"{source} is built in: it has no columns to choose from.")
        digits = load_digits()
        return ArrayContents(digits.data, digits.target)
    path = Path(source)
    if path.is_dir():
        return read_npy(path / "features.npy", asked, path / "labels.npy")
    readers = {".npy": read_npy, ".npz": read_npz, ".h5ad": read_h5ad}
    return readers[_checked_kind(path)](path, asked)


def _checked_kind(path: Path) -> str:
    """Return the suffix that says how to read ``path`` (a folder of parts is Parquet)."""
    if not path.exists():
        raise missing_source(path)
    if path.is_dir():
        if is_saved(path) or formats.parquet_parts(path):
            return ".parquet"
        raise SourceError(
            f"The folder {path} holds neither features.npy nor *.parquet files. A folder of images"
            " is for coincide train."
        )
    kind = formats.kind_of(path)
    if kind not in SUFFIXES or (kind in ARRAYS and path.suffix.lower() != kind):
        got = f"the suffix {path.suffix!r}" if path.suffix else "no suffix"
        raise SourceError(
            f"{path} has {got}: a source must be {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]},"
            " or a folder. Save other tables as CSV or Parquet, other arrays as .npy."
        )
    if path.stat().st_size == 0:
        raise SourceError(f"{path} is empty.")
    return kind


def name_of(path: Path) -> str:
    """Return the name of a source at ``path``, also when that is ``.``."""
    resolved = path.resolve()
    if resolved.is_dir():
        return resolved.name
    compressed = resolved.suffix.lower() in formats.COMPRESSED
    return resolved.with_suffix("").stem if compressed else resolved.stem


# Labels


def _read_label_file(path: Path, rows: int) -> tuple[Array, list[str]]:
    """Return the labels of a file for so many rows, and what was decided, in sentences."""
    kind = _checked_kind(path)
    if kind == ".npy":
        return open_npy(path), []
    if kind in ARRAYS:
        raise SourceError(f"A file of labels must be .npy or a table. Got {path} instead.")
    table = formats.open_table(path)
    said = list(table.said)
    if kind in formats.TEXT and abs(table.rows - rows) == 1:
        header = table.rows > rows
        table = formats.open_table(path, header=header)  # the first row is a name after all, or not
        what = "a name" if header else "a label"
        said = [f"{path}: the first row was taken as {what}, for there are {rows} rows."]
    names = table.schema.names
    alike = [name for name in names if named_as_label(name, names)]
    if len(alike) != 1 and len(names) > 1:
        raise SourceError(
            f"{path} must have one column, or one named 'label'. It has {quoted(names)}."
        )
    return tables.values(table, alike[0] if len(names) > 1 else names[0]), said


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


def _as_numbers(found: Source, where: str) -> Source:
    """Return truth values as 0 and 1, and numbers in the order of bytes that PyTorch reads."""
    features = found.features
    if features.dtype == bool:
        sentence = f"{where}: truth values were taken as 0 and 1."
        return replace(found, features=features.view(np.uint8), said=(*found.said, sentence))
    if not features.dtype.isnative and features.dtype.kind in "iuf":
        native = features.dtype.newbyteorder("=")
        return replace(found, features=features.astype(native))
    return found


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
