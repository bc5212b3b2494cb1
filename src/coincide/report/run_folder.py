"""The run folder: the names of its files, and its metrics."""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from coincide._files import to_json, write_text

LABELS_CSV = "labels.csv"
LABELS_PARQUET = "labels.parquet"
METRICS = "metrics.json"
PROJECTION = "projection.csv"
REPORT = "report.html"
GALLERY = "gallery"  # a folder

SCHEMA = 1  # of metrics.json; a page that meets another number says so

Kind = TypeVar("Kind", dict[str, Any], list[Any])


def write_metrics(folder: str | Path, metrics: Mapping[str, object]) -> Path:
    """Write ``metrics.json``, which is always valid JSON, and return its path.

    Metrics are dictionaries with string keys, lists, tuples, strings, paths, numbers, booleans and
    None, nested at will, NumPy's numbers and arrays among them. Anything else is refused by its
    place. JSON has no NaN and no infinity: both are written as null.
    """
    text = json.dumps(plain(metrics), indent=2, ensure_ascii=False, allow_nan=False)
    return write_text(Path(folder) / METRICS, text + "\n")


def plain(metrics: Mapping[str, object]) -> dict[str, Any]:
    """Return metrics in JSON's own types, as :func:`write_metrics` says."""
    found = to_json(metrics, "metrics", _plain)
    assert isinstance(found, dict)
    return found


def read_metrics(folder: Path) -> dict[str, Any]:
    """Return what ``metrics.json`` of the run folder holds, or say in a sentence what ails it."""
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no run folder {folder}. Give the --out folder of a run.")
    path = folder / METRICS
    if not path.is_file():
        raise FileNotFoundError(
            f"The run folder {folder} has no {METRICS}."
            " Give the --out folder of a finished run, or run the command again."
        )
    try:
        metrics = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is not valid JSON ({error}). Run the command again to rewrite it."
        ) from error
    if not isinstance(metrics, dict):
        raise ValueError(f"{path} must hold a JSON object. Got {_short(metrics)} instead.")
    if metrics.get("schema") not in (None, SCHEMA):
        raise ValueError(
            f"The 'schema' of {path} must be {SCHEMA}. Got {_short(metrics['schema'])} instead:"
            " it was written by another version of coincide, which can also read it."
        )
    return metrics


def part(metrics: Mapping[str, Any], name: str, empty: Kind) -> Kind:
    """Return the part ``name`` of the metrics, ``empty`` if absent or null; refuse another type."""
    value = metrics.get(name)
    if value is None:
        return empty
    if not isinstance(value, type(empty)):
        expected = "a list" if isinstance(empty, list) else "an object"
        raise ValueError(f"{name!r} in {METRICS} must be {expected}. Got {_short(value)} instead.")
    return value


def records(metrics: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Return the part ``name`` of the metrics as a list of objects, empty if absent."""
    items = part(metrics, name, [])
    for item in items:
        if not isinstance(item, dict):
            raise ValueError(
                f"{name!r} in {METRICS} must be a list of objects. One of them is {_short(item)}."
            )
    return items


def number(value: object) -> float:
    """Return ``value`` as a float; NaN for null and for whatever else is not a number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:  # an integer of hundreds of digits
        return math.nan


def _short(value: object) -> str:
    """Return the start of ``repr(value)``: enough to recognize it in a sentence."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _plain(value: object, where: str) -> object:
    """Return ``value`` in JSON's own types, or refuse it, naming the place."""
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, np.generic | np.ndarray):
        return to_json(value.tolist(), where, _plain)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    raise TypeError(
        f"{where} must be a number, a string, a list or a dictionary to be written to {METRICS}."
        f" Got {type(value).__name__} instead."
    )
