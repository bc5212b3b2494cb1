"""Feature vectors that are arrays already: ``.npy``, ``.npz`` (SciPy's sparse ones too), ``.h5ad``.

What is read is what is stored; pickles are never opened. Which columns are features is decided as
for tables, the columns being called by their numbers.
"""

from __future__ import annotations

import importlib
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from coincide.data.columns import Asked, choose_roles, named_as_id, named_as_label, numbers_rows
from coincide.data.errors import Array, SourceError, check_known, first_line, quoted

_FEATURES = ("features", "X", "x")  # their names in an .npz
_SPARSE = {"format", "shape", "data"}
_DENSE_BYTES = 8 << 30  # of a sparse matrix written out
_HEAD = 100  # rows that a column which numbers them is looked for in first
# What NumPy raises, by fuzzing, when the header of an array is damaged.
_DAMAGED_ARRAY = (ValueError, SyntaxError, OverflowError, EOFError, tokenize.TokenError)
_DAMAGED_ARCHIVE = (*_DAMAGED_ARRAY, OSError, KeyError, NotImplementedError, RuntimeError)


@dataclass(frozen=True)
class ArrayContents:
    """Features as stored, and what lies beside them; ``said`` is what was decided, in sentences."""

    features: Array
    labels: Array | None = None
    ids: Array | None = None
    id_name: str | None = None
    columns: tuple[str, ...] | None = None
    said: tuple[str, ...] = ()


def read_npy(path: Path, asked: Asked, labels: Path | None = None) -> ArrayContents:
    """Read a matrix, memory-mapped, and the labels that another array holds."""
    _refuse_names(path, asked)
    found = open_npy(path)
    stored = open_npy(labels) if labels is not None and labels.is_file() else None
    return _with_roles(ArrayContents(found, stored), asked, path)


def read_npz(path: Path, asked: Asked) -> ArrayContents:
    """Read the matrix of an archive, and the labels and ids beside it."""
    arrays = open_npz(path)
    if set(arrays) >= _SPARSE:
        _refuse_names(path, asked)
        return _with_roles(ArrayContents(_written_out(path)), asked, path)
    chosen, asked = _features_of(path, arrays, asked)
    for name in (asked.label, asked.id):
        if name is not None:
            check_known([name], list(arrays), str(path), "array")
    beside = [name for name in arrays if name != chosen]
    label = asked.label or next((name for name in beside if named_as_label(name, beside)), None)
    rows = arrays[chosen].shape[:1]
    an_id = asked.id or next(
        (name for name in beside if named_as_id(name) and arrays[name].shape == rows), None
    )
    said = [f"{path}: took {chosen!r} as the features."] if beside else []
    if label is not None:
        said.append(f"{path}: took {label!r} as the labels.")
    if an_id is not None:
        said.append(f"{path}: took {an_id!r} as the ids of the rows.")
    others = [name for name in beside if name not in (label, an_id)]
    if others:
        said.append(f"{path}: not used: {quoted(others)}. --columns takes another array.")
    found = ArrayContents(
        arrays[chosen],
        None if label is None else arrays[label],
        None if an_id is None else arrays[an_id],
        an_id,
        said=tuple(said),
    )
    return _with_roles(found, Asked(asked.features, like=asked.like), path)


def read_h5ad(path: Path, asked: Asked) -> ArrayContents:
    """Read the matrix X of cells, or some of its genes, or the embedding that was asked for."""
    try:
        library: Any = importlib.import_module("anndata")
    except ImportError as error:
        raise SourceError(
            f"Reading {str(path)!r} needs the package anndata: pip install anndata."
        ) from error
    try:
        data = library.read_h5ad(path)
    except Exception as error:  # the library raises nearly anything of a damaged file
        raise SourceError(f"{path} cannot be read as .h5ad ({first_line(error)}).") from error
    genes = [str(name) for name in data.var_names]
    names = asked.columns(["X", *data.obsm, *genes])
    check_known(names or (), ["X", *data.obsm, *genes], str(path), "matrix or gene")
    name = names[0] if names and names[0] in data.obsm else "X"
    matrix, columns = (data.X, tuple(genes)) if name == "X" else (data.obsm[name], (name,))
    if name == "X" and names and names != ["X"]:
        matrix, columns = matrix[:, [genes.index(gene) for gene in names]], tuple(names)
    others = [each for each in ("X", *data.obsm) if each != name]
    held = quoted(others) or "nothing else"
    said = [f"{path}: took the matrix {name!r} (there is {held}; --columns takes another)."]
    about = list(data.obs)
    label = asked.label or next((each for each in about if named_as_label(each, about)), None)
    if label is not None:
        check_known([label], about, str(path), "column of cells")
        said.append(f"{path}: took {label!r} as the labels.")
    return ArrayContents(
        _dense(matrix, path),
        None if label is None else np.asarray(data.obs[label].astype(object)),
        np.asarray(data.obs_names.astype(str)),
        "cell",
        columns,
        tuple(said),
    )


# Opening


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


def _written_out(path: Path) -> Array:
    try:
        return _dense(sparse.load_npz(path), path)
    except SourceError:
        raise
    except (*_DAMAGED_ARCHIVE, zipfile.BadZipFile, zlib.error, TypeError) as error:
        raise SourceError(_damaged(path, error)) from error


def _dense(matrix: Any, path: Path) -> Array:
    """Return a matrix with its zeros written out, where there is room for them."""
    if not sparse.issparse(matrix):
        return np.asarray(matrix)
    size = int(np.prod(matrix.shape, dtype=np.float64)) * matrix.dtype.itemsize
    if size > _DENSE_BYTES:
        raise SourceError(
            f"{path} holds a sparse matrix of shape {matrix.shape}, {size / 2**30:.0f} GiB with its"
            " zeros: bring it to fewer columns first, as scikit-learn's TruncatedSVD does."
        )
    return np.asarray(matrix.toarray())


# Choosing


def _refuse_names(path: Path, asked: Asked) -> None:
    if asked.label is not None:
        raise SourceError(
            f"{path} has no named columns: give a file of labels with --labels instead of"
            " --label-column."
        )


def _features_of(path: Path, arrays: dict[str, Array], asked: Asked) -> tuple[str, Asked]:
    """Return the name of the array of features, and what is asked of its columns."""
    matrices = [name for name, array in arrays.items() if array.ndim == 2]
    named = [name for name in _FEATURES if name in arrays]
    if asked.features is not None and any(name in arrays for name in asked.features):
        check_known(asked.features, list(arrays), str(path), "array")
        if len(asked.features) > 1:
            raise SourceError(f"{path}: --columns can name one array of features, or columns.")
        return asked.features[0], Asked(None, asked.label, asked.id)
    if not named and len(matrices) != 1:
        held = ", ".join(f"{name!r} {array.shape}" for name, array in arrays.items()) or "nothing"
        way_out = f" Name one of them, as in --columns {matrices[0]}." if matrices else ""
        raise SourceError(
            f"{path} must hold one 2-D array, or one named 'features', 'X' or 'x'. It holds"
            f" {held}.{way_out}"
        )
    return (named or matrices)[0], asked


def _with_roles(found: ArrayContents, asked: Asked, path: Path) -> ArrayContents:
    """Return the contents without the columns that number the rows, or with those asked for."""
    features = found.features
    if features.ndim != 2 or 0 in features.shape:
        return found  # refused later, with the way out
    suspects = _suspects(features)
    names = [str(number) for number in range(features.shape[1])]
    columns = asked.columns(names)
    if columns is not None and asked.features is None and not set(columns) <= set(names):
        columns = None  # of a table
    if columns is None and not suspects:
        return found

    def look(name: str) -> str | None:
        if int(name) not in suspects:
            return None
        return "numbers the rows" if numbers_rows(np.asarray(features[:, int(name)])) else None

    roles = choose_roles(names, Asked(columns, None, asked.id), str(path), look)
    kept = [int(name) for name in roles.features]
    if kept == list(range(features.shape[1])):
        return found
    whole = kept == list(range(kept[0], kept[-1] + 1))
    ids = None if roles.id is None else np.asarray(features[:, int(roles.id)])
    return ArrayContents(
        features[:, kept[0] : kept[-1] + 1] if whole else features[:, kept],
        found.labels,
        ids if found.ids is None else found.ids,
        roles.id if found.ids is None else found.id_name,
        tuple(roles.features),
        (*found.said, *roles.said(str(path))),
    )


def _suspects(features: Array) -> set[int]:
    """Return the columns that may number the rows, by the first rows."""
    head = np.asarray(features[:_HEAD])
    if head.dtype.kind not in "iuf" or head.dtype.itemsize > 8:
        return set()
    with np.errstate(invalid="ignore"):
        whole = (head == np.round(head)).all(0)
    return {
        int(column)
        for column in np.flatnonzero(whole)
        if len(np.unique(head[:, column])) == len(head)
    }
