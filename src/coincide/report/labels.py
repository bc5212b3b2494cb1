"""The labels file of a run folder: one line a row, written and read in blocks.

A hundred million rows must pass through without being held at once, so the page never reads the
file whole either: one pass fills a summary of fixed size (counts, histograms, extreme rows).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import ArrayLike, NDArray

from coincide._checks import check_option, parameter_message
from coincide._files import replacing
from coincide.report.run_folder import LABELS_CSV, LABELS_PARQUET

PARQUET_FROM_ROWS = 1_000_000
BLOCK_VALUES = 4_000_000  # numbers in memory at a time while writing
N_BINS = 40
N_EXTREMES = 10
# How far the largest of K probabilities may leave [1/K, 1], and their entropy [0, ln K]: what
# half-precision probabilities explain.
ROUNDING = 2e-2
TYPES = {  # as read back for the page
    "row": pa.int64(),
    "cluster": pa.int64(),
    "confidence": pa.float64(),
    "entropy": pa.float64(),
}

_OWNER = "write_labels"
_RESERVED = (*TYPES, "class")

# Values of one real dtype, known only at run time.
Array = NDArray[Any]


@dataclass(frozen=True)
class Extremes:
    """A few rows at one end of the scale of confidence, the outermost first."""

    row: Array
    cluster: Array
    confidence: Array
    entropy: Array

    def joined(self, block: Extremes, sign: int) -> Extremes:
        """Return the outermost rows of both: the most certain for sign -1, the least for 1.

        Equal confidence is settled by entropy, equal entropy by the earlier row.
        """
        both = {name: np.concatenate([getattr(self, name), getattr(block, name)]) for name in TYPES}
        rising, falling = ("ascending", "descending")[::sign]
        keys = [("confidence", rising), ("entropy", falling), ("row", "ascending")]
        keep = pc.select_k_unstable(pa.table(both), N_EXTREMES, keys).to_numpy()
        return Extremes(**{name: column[keep] for name, column in both.items()})


@dataclass(frozen=True)
class LabelSummary:
    """What the page says about a labels file of any length.

    The counts are histograms over [1/K, 1] and [0, ln K], of :data:`N_BINS` bins.
    """

    sizes: NDArray[np.int64]
    mean_confidence: float
    mean_entropy: float
    confidence_counts: NDArray[np.int64]
    entropy_counts: NDArray[np.int64]
    most_certain: Extremes
    least_certain: Extremes

    @property
    def n_rows(self) -> int:
        """The number of rows, M."""
        return int(self.sizes.sum())

    @property
    def n_clusters(self) -> int:
        """The number of clusters, K."""
        return len(self.sizes)


@dataclass(frozen=True)
class RowNames:
    """What a source calls its rows: their numbers in it, and a column of ids under its name."""

    numbers: Array | None = None
    ids: Array | None = None
    name: str = "id"

    def columns(self, n_rows: int) -> dict[str, Array]:
        """Return the columns that tell a row."""
        found = {}
        if self.numbers is not None:
            found["row"] = check_column(self.numbers, "rows", _OWNER, n_rows)
        else:
            found["row"] = np.arange(n_rows)
        if self.ids is not None:
            plain = self.name.strip()
            taken = not plain or plain.startswith(("Unnamed", "__index")) or plain in _RESERVED
            found["id" if taken or re.fullmatch("p?[0-9]+", plain) else plain] = self.ids
        return found


def write_labels(
    folder: str | Path,
    clusters: ArrayLike,
    confidence: ArrayLike,
    entropy: ArrayLike,
    probabilities: ArrayLike | None = None,
    *,
    rows: RowNames | None = None,
    classes: Sequence[str] | None = None,
    format: str = "auto",
) -> Path:
    """Write ``labels.csv`` or ``.parquet``: row, [id,] cluster, [class,] confidence, entropy, ….

    Parameters
    ----------
    folder : path
        The run folder; made if it is not there.
    clusters, confidence, entropy : array-like of shape (M,)
        Of each row the cluster, from 0, its probability, and the entropy of all K in nats.
    probabilities : array-like of shape (M, K), optional
        Written as columns p0, p1, ... if given. A memory map is read in blocks.
    rows : RowNames, optional
        What the source calls the rows; by default their numbers from 0, and nothing else.
    classes : sequence of K str, optional
        What each cluster stands for, "" for nothing: a column ``class``.
    format : {"auto", "csv", "parquet"}
        "auto" is Parquet from 1,000,000 rows.

    Returns
    -------
    Path
        The file written, whole or not at all. A labels file of the other format in the folder is
        stale from then on, and is removed.

    Notes
    -----
    Numbers keep their dtype and are written so that they read back equal; float16, which CSV
    knows nothing of, is written as float32.
    """
    format = check_option(format, "format", _OWNER, ("auto", "csv", "parquet"))
    ids = check_clusters(clusters, _OWNER)
    M = len(ids)
    columns = (rows or RowNames()).columns(M)
    columns["cluster"] = ids
    if classes is not None:
        columns["class"] = np.asarray([str(name) for name in classes], object)[ids]
    for name, values in (("confidence", confidence), ("entropy", entropy)):
        columns[name] = check_column(values, name, _OWNER, M)
    table = _checked_probabilities(probabilities, M)
    if format == "auto":
        format = "parquet" if M >= PARQUET_FROM_ROWS else "csv"
    folder = Path(folder)
    parquet = format == "parquet"
    path, stale = folder / LABELS_CSV, folder / LABELS_PARQUET
    if parquet:
        path, stale = stale, path
    schema = _schema(columns, table)
    with (
        replacing(path) as temporary,
        (
            pa.parquet.ParquetWriter(temporary, schema)
            if parquet
            else pa.csv.CSVWriter(temporary, schema)
        ) as writer,
    ):
        for batch in _batches(columns, table, schema):
            writer.write_batch(batch)
    stale.unlink(missing_ok=True)
    return path


def summarize_labels(folder: Path, n_clusters: int) -> LabelSummary:
    """Return the summary of the folder's labels file, read once in blocks.

    A file that is absent, damaged, empty, or at odds with ``n_clusters`` is refused.
    """
    path = _labels_path(folder)
    K = n_clusters
    lowest, widest = limits(K)
    sizes = np.zeros(K, np.int64)
    confidence_counts = np.zeros(N_BINS, np.int64)
    entropy_counts = np.zeros(N_BINS, np.int64)
    sum_confidence = sum_entropy = 0.0
    most = least = Extremes(np.empty(0, int), np.empty(0, int), np.empty(0), np.empty(0))
    for block in _read_blocks(path):
        _check_block(block, path, K, lowest, widest)
        sizes += np.bincount(block.cluster.astype(np.int64), minlength=K)
        confidence_counts += _histogram(block.confidence, lowest, 1.0)
        entropy_counts += _histogram(block.entropy, 0.0, widest)
        sum_confidence += float(np.sum(block.confidence))
        sum_entropy += float(np.sum(block.entropy))
        most, least = most.joined(block, -1), least.joined(block, 1)
    M = int(sizes.sum())
    if M == 0:
        raise ValueError(f"{path} holds no rows. Run the command again to rewrite it.")
    return LabelSummary(
        sizes=sizes,
        mean_confidence=sum_confidence / M,
        mean_entropy=sum_entropy / M,
        confidence_counts=confidence_counts,
        entropy_counts=entropy_counts,
        most_certain=most,
        least_certain=least,
    )


def limits(n_clusters: int) -> tuple[float, float]:
    """Return the least confidence and the most entropy that K probabilities can have."""
    return (1 / n_clusters, math.log(n_clusters)) if n_clusters > 1 else (0.0, 1.0)


def check_clusters(clusters: ArrayLike, owner: str) -> Array:
    """Return ``clusters`` as an array, or refuse it: integers from 0, shape (M,), M >= 1."""
    array = np.asarray(clusters)
    if array.ndim != 1 or len(array) == 0:
        raise ValueError(
            f"The 'clusters' parameter of {owner} must have shape (M,) with M >= 1."
            f" Got shape {array.shape} instead."
        )
    if array.dtype.kind not in "iu":
        raise TypeError(
            f"The 'clusters' parameter of {owner} must hold integers. Got {array.dtype} instead."
        )
    if (smallest := array.min()) < 0:
        raise ValueError(
            f"The 'clusters' parameter of {owner} must not be negative."
            f" Row {int(array.argmin())} is {smallest}."
        )
    return array


def check_column(values: ArrayLike, name: str, owner: str, n_rows: int) -> Array:
    """Return one real number a row as an array, or refuse it."""
    column = np.asarray(values)
    if column.shape != (n_rows,):
        expected = f"of shape ({n_rows},), one value a row"
        raise ValueError(parameter_message(name, owner, expected, column.shape))
    if column.dtype.kind not in "fiu":
        raise TypeError(parameter_message(name, owner, "of real numbers", str(column.dtype)))
    return column


def check_finite(values: Array, name: str, owner: str, start: int = 0) -> None:
    """Refuse NaN and infinity; ``start`` is the number of the first row."""
    finite = np.isfinite(values)
    if not finite.all():
        row = start + int(np.argwhere(~finite)[0, 0])
        raise ValueError(
            f"The {name!r} parameter of {owner} must be finite. Row {row} has NaN or infinity."
        )


def _checked_probabilities(probabilities: ArrayLike | None, M: int) -> Array | None:
    """Return the probabilities as an array of M rows, or refuse them."""
    if probabilities is None:
        return None
    table = np.asarray(probabilities)
    if table.ndim != 2 or len(table) != M or table.shape[1] == 0:
        raise ValueError(
            parameter_message("probabilities", _OWNER, f"of shape ({M}, K)", table.shape)
        )
    check_column(table[:, 0], "probabilities", _OWNER, M)
    return table


def _schema(columns: dict[str, Array], table: Array | None) -> pa.Schema:
    fields = [(name, _arrow_type(column)) for name, column in columns.items()]
    if table is not None:
        fields += [(f"p{k}", _arrow_type(table)) for k in range(table.shape[1])]
    return pa.schema(fields)


def _arrow_type(values: Array) -> pa.DataType:
    if values.dtype.kind in "OSU":
        return pa.string()
    return pa.from_numpy_dtype(np.float32 if values.dtype == np.float16 else values.dtype)


def _batches(
    columns: dict[str, Array], table: Array | None, schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """Yield the rows in blocks of about :data:`BLOCK_VALUES` numbers, refusing NaN on the way."""
    M = len(columns["cluster"])
    step = max(1, BLOCK_VALUES // len(schema))
    for start in range(0, M, step):
        block = slice(start, min(start + step, M))
        arrays = []
        for name, column in columns.items():
            arrays.append(column[block])
            if name in TYPES:
                check_finite(arrays[-1], name, _OWNER, start)
        if table is not None:
            # One contiguous copy of the transpose: Arrow takes whole columns.
            by_class = np.ascontiguousarray(table[block].T)
            check_finite(by_class.T, "probabilities", _OWNER, start)
            arrays.extend(by_class)
        yield pa.record_batch(
            [_arrow_array(values, field) for values, field in zip(arrays, schema, strict=True)],
            schema=schema,
        )


def _arrow_array(values: Array, field: pa.Field) -> pa.Array:
    if pa.types.is_string(field.type):
        return pa.array([None if v is None else str(v) for v in values.tolist()], field.type)
    return pa.array(values.astype(field.type.to_pandas_dtype(), copy=False), field.type)


def _labels_path(folder: Path) -> Path:
    found = [path for name in (LABELS_CSV, LABELS_PARQUET) if (path := folder / name).is_file()]
    if not found:
        raise FileNotFoundError(
            f"The run folder {folder} has neither {LABELS_CSV} nor {LABELS_PARQUET}."
            " Run the command again to write one."
        )
    if len(found) > 1:
        raise ValueError(
            f"The run folder {folder} has both {LABELS_CSV} and {LABELS_PARQUET}."
            " Remove the one that is stale."
        )
    return found[0]


def _read_blocks(path: Path) -> Iterator[Extremes]:
    """Yield all rows of a labels file, block by block."""
    try:
        if path.suffix == ".parquet":
            with pa.parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=2**18, columns=list(TYPES)):
                    yield _block(batch)
        else:
            convert = pa.csv.ConvertOptions(column_types=TYPES, include_columns=list(TYPES))
            with pa.csv.open_csv(path, convert_options=convert) as reader:
                yield from (_block(batch) for batch in reader)
    except (pa.ArrowException, OSError, LookupError) as error:
        raise ValueError(
            f"{path} is not a labels file that can be read ({' '.join(str(error).split())})."
            " Run the command again to rewrite it."
        ) from error


def _block(batch: pa.RecordBatch) -> Extremes:
    """Return one block in the dtypes of :data:`TYPES`, whatever those of the file."""
    arrays = []
    for name, kind in TYPES.items():
        column = batch.column(name)
        if column.null_count:
            raise pa.ArrowInvalid(f"column {name!r} has missing values")
        arrays.append(column.cast(kind).to_numpy(zero_copy_only=False))
    return Extremes(*arrays)


def _check_block(block: Extremes, path: Path, K: int, lowest: float, widest: float) -> None:
    """Refuse values that no K probabilities have, naming the first bad row."""
    for name, values, low, high in (
        ("cluster", block.cluster, 0, K - 1),
        ("confidence", block.confidence, lowest - ROUNDING, 1 + ROUNDING),
        ("entropy", block.entropy, -ROUNDING, widest + ROUNDING),
    ):
        good = (values >= low) & (values <= high)  # False for NaN
        if not good.all():
            first = int(np.flatnonzero(~good)[0])
            raise ValueError(
                f"The {name} of row {block.row[first]} in {path} is {values[first]:g}, which a"
                f" run with {K} clusters cannot give. The folder's files belong to different"
                " runs, or one is damaged; run the command again."
            )


def _histogram(values: Array, low: float, high: float) -> NDArray[np.int64]:
    # Only rounding leaves [low, high] (checked before): it belongs in the outermost bins.
    counts, _ = np.histogram(np.clip(values, low, high), N_BINS, (low, high))
    return counts.astype(np.int64)
