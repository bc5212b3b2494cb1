"""Tables with named columns: which are features, their matrix, the labels and ids beside it.

A table is read as a stream of record batches into one matrix that is allocated once. Parquet and
Feather take the memory of the features and of a batch or two; other files are held whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from coincide.data.columns import ENOUGH_ROWS, Asked, Roles, choose_roles, numbers_rows
from coincide.data.delimited import DAMAGED
from coincide.data.errors import Array, SourceError, quoted
from coincide.data.formats import Table

_BOXED = 8  # characters of a list that was written as text, at least


@dataclass(frozen=True)
class TableContents:
    """The features of a table (M, D), the columns they came from, labels and ids as stored.

    ``feature_names`` are D, those of lists ``name[0]``, ``name[1]``, …
    """

    features: Array
    feature_names: tuple[str, ...]
    columns: tuple[str, ...]
    labels: Array | None
    class_names: tuple[str, ...] | None
    ids: Array | None
    roles: Roles
    said: tuple[str, ...]


def read_table(table: Table, asked: Asked) -> TableContents:
    """Read the features of a table, and the labels and ids beside them.

    ``asked`` are the columns that a user named; :mod:`~coincide.data.columns` finds the others.
    """
    asked = replace(asked, features=asked.columns(table.schema.names))
    _check_names(table, asked)
    roles = choose_roles(
        table.schema.names, asked, str(table.path), lambda name: _looks_like_id(table, name)
    )
    _check_features(table, roles)
    kept = {"label": roles.label, "id": roles.id}
    beside = {what: None if name is None else values(table, name) for what, name in kept.items()}
    names = described_columns(table.schema).get(roles.label or "", {}).get("names")
    said = [*table.said, *roles.said(str(table.path)), *_clothes(table, roles.features)]
    features, widths = _stack(table, roles.features)
    return TableContents(
        features,
        tuple(_feature_names(table, roles.features, widths)),
        tuple(roles.features),
        beside["label"],
        tuple(map(str, names)) if isinstance(names, list) else None,
        beside["id"],
        roles,
        tuple(said),
    )


# Choosing columns


def _check_names(table: Table, asked: Asked) -> None:
    names = table.schema.names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SourceError(f"{table.path} has several columns named {quoted(twice)}.")
    if asked.features is None:
        return
    if not asked.features:
        raise SourceError(f"--columns names no columns of {table.path}.")
    twice = sorted({name for name in asked.features if asked.features.count(name) > 1})
    if twice:
        raise SourceError(f"--columns names {quoted(twice)} more than once.")
    for what, name in (("the labels", asked.label), ("the ids", asked.id)):
        if name in asked.features:
            raise SourceError(f"The column {name!r} cannot be both a feature and {what}.")


def _looks_like_id(table: Table, name: str) -> str | None:
    """Return why the values of a column look like ids, or None."""
    kind = table.schema.field(name).type
    number, text = pa.types.is_integer(kind) or pa.types.is_floating(kind), _is_text(kind)
    if table.rows < ENOUGH_ROWS or not (number or text):
        return None
    first = table.head.column(name)
    if len(pc.unique(first)) < len(first) or (text and _is_boxed(first)):
        return None
    if number and not bool(np.all(np.mod(_numbers(first.drop_null()), 1) == 0)):
        return None
    held = values(table, name)
    if number:
        return "numbers the rows" if numbers_rows(held) else None
    return "is text, another in every row" if len(set(held.tolist())) == len(held) else None


def _check_features(table: Table, roles: Roles) -> None:
    """Refuse columns that hold neither numbers nor lists of numbers."""
    chosen = roles.features
    if not chosen:
        raise SourceError(f"{table.path} has no columns of features.")
    kinds = {name: table.schema.field(name).type for name in chosen}
    fit, unfit = [], {}
    for name, kind in kinds.items():
        if pa.types.is_null(kind):
            raise SourceError(f"Column {name!r} of {table.path} is empty.")
        if _is_numeric(kind) or (_is_text(kind) and _is_boxed(table.head.column(name))):
            fit.append(name)
        else:
            unfit[name] = _described(table, name)
    if unfit:
        _refuse_unfit(table, roles, fit, unfit)
    lists = [name for name in chosen if not _is_single(kinds[name])]
    if lists and len(lists) < len(chosen) and not roles.asked:
        others = [name for name in chosen if name not in lists]
        raise SourceError(
            f"{table.path} holds lists ({quoted(lists)}) beside single values ({quoted(others)}):"
            f" name the features, as in --columns {lists[0]}."
        )


def _refuse_unfit(table: Table, roles: Roles, fit: list[str], unfit: dict[str, str]) -> None:
    way_out = "compute feature vectors first"
    if fit:
        listed = ",".join(fit) if len(fit) <= 8 else "..."
        way_out = f"name the numeric ones, as in --columns {listed}"
        if roles.label is None:
            way_out += ", or mark the labels with --label-column"
    subject, verb = ("Column", "holds") if len(unfit) == 1 else ("Columns", "hold")
    raise SourceError(
        f"{subject} {quoted(list(unfit))} of {table.path} {verb}"
        f" {', '.join(sorted(set(unfit.values())))}, not numbers: {way_out}."
    )


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _is_single(kind: pa.DataType) -> bool:
    """Whether a column holds a number a row."""
    return bool(
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
    )


def _is_numeric(kind: pa.DataType) -> bool:
    return _is_single(kind.value_type if _is_list(kind) else kind)


def _is_boxed(head: pa.Array) -> bool:
    """Whether text is lists that were written as such, ``[0.1, 0.2]``."""
    told = head.drop_null()
    return len(told) > 0 and all(
        text.startswith(("[", "(")) and text.endswith(("]", ")"))
        for text in (value.strip() for value in told[:_BOXED].to_pylist())
    )


def _described(table: Table, name: str) -> str:
    """Return what a column holds, in a word or two."""
    kind = table.schema.field(name).type
    if _is_text(kind):
        told = table.head.column(name).drop_null()
        return f"text ({told[0].as_py()[:40]!r})" if len(told) else "text"
    if pa.types.is_struct(kind):  # an image or a record; its fields would fill the screen
        return "records"
    return f"{kind} values"


def _clothes(table: Table, chosen: list[str]) -> Iterator[str]:
    """Say which columns were no plain numbers."""
    told: dict[str, list[str]] = {}
    for name in chosen:
        kind = table.schema.field(name).type
        inner = kind.value_type if _is_list(kind) else kind
        if pa.types.is_boolean(inner):
            told.setdefault("truth values were taken as 0 and 1", []).append(name)
        elif pa.types.is_decimal(inner):
            told.setdefault("decimals were taken as float64", []).append(name)
        elif _is_text(kind):
            told.setdefault("lists written as text were read as numbers", []).append(name)
    for what, names in told.items():
        yield f"{table.path}: {what} ({quoted(names)})."


# Values


def _feature_names(table: Table, chosen: list[str], widths: list[int]) -> Iterator[str]:
    for name, width in zip(chosen, widths, strict=True):
        single = _is_single(table.schema.field(name).type)
        yield from [name] if single else (f"{name}[{number}]" for number in range(width))


def _stack(table: Table, chosen: list[str]) -> tuple[Array, list[int]]:
    """Return the chosen columns side by side, (M, D), in the smallest dtype, and their widths."""
    features: Array = np.empty((0, 0))
    widths: list[int] = []
    row = 0
    for batch in table.batches(chosen):
        if len(batch) == 0:
            continue
        blocks = [_block(batch.column(name), name, row, table.path) for name in chosen]
        if not widths:
            widths = [block.shape[1] for block in blocks]
            dtype = np.result_type(*(block.dtype for block in blocks))
            features = np.empty((table.rows, sum(widths)), dtype)
        for name, block, width in zip(chosen, blocks, widths, strict=True):
            if block.shape[1] != width:
                raise SourceError(_uneven(name, table.path, row, block.shape[1], width))
        np.concatenate(blocks, axis=1, out=features[row : row + len(batch)])
        row += len(batch)
    return features, widths


def _block(column: pa.Array, name: str, start: int, path: Path) -> Array:
    """Return one column of a batch as (rows, width); ``start`` is the number of its first row."""
    rows, width = len(column), 1
    if column.null_count:
        row = start + column.is_null().index(True).as_py()
        raise SourceError(
            f"Column {name!r} of {path} has no value in row {row} (rows of data count from 0)."
        )
    if _is_text(column.type):
        column = _unboxed(column, name, start, path)
    if _is_list(column.type):
        lengths = np.asarray(column.value_lengths())
        width = int(lengths[0])
        odd = np.flatnonzero(lengths != width)
        if len(odd):
            raise SourceError(_uneven(name, path, start + int(odd[0]), lengths[odd[0]], width))
        column = column.flatten()
        if column.null_count:
            row = start + column.is_null().index(True).as_py() // width
            raise SourceError(f"The list of row {row} in column {name!r} of {path} has a gap.")
    return _numbers(column).reshape(rows, width)


def _numbers(column: pa.Array) -> Array:
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    found = np.asarray(column.to_numpy(zero_copy_only=False))
    return found.view(np.uint8) if found.dtype == bool else found


def _unboxed(column: pa.Array, name: str, start: int, path: Path) -> pa.Array:
    """Return lists of what was written as text: ``[0.1, 0.2]``, or ``[0.1 0.2]`` as NumPy does."""
    found = []
    for row, text in enumerate(column.to_pylist()):
        try:
            found.append([float(part) for part in text.strip()[1:-1].replace(",", " ").split()])
        except ValueError as error:
            raise SourceError(
                f"The list of row {start + row} in column {name!r} of {path} is text that does not"
                f" read as numbers ({text[:40]!r})."
            ) from error
    return pa.array(found, pa.list_(pa.float64()))


def _uneven(name: str, path: Path, row: int, found: int, width: int) -> str:
    return (
        f"The lists in column {name!r} of {path} must be equally long."
        f" Row {row} has {found} entries, the rows before it {width}."
    )


def values(table: Table, name: str) -> Array:
    """Return a column of labels or ids as it is stored: text as objects, gaps as NaN or None."""
    parts: list[Array] = []
    for batch in table.batches([name]):
        try:
            parts.append(np.asarray(batch.column(0).to_numpy(zero_copy_only=False)))
        except DAMAGED as error:
            raise SourceError(f"Column {name!r} of {table.path} is not UTF-8 text.") from error
    return np.concatenate(parts)


def described_columns(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """Return the description of the columns that Hugging Face's ``datasets`` wrote beside them."""
    try:
        described = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: kind for name, kind in described.items() if isinstance(kind, dict)}
    except (KeyError, TypeError, AttributeError, ValueError):  # absent, or of another shape
        return {}
