"""Tables as text: which character separates the cells, whether the first row names the columns.

Both are decided by the first hundred rows, and what is not plain is said. Commas, semicolons, tabs,
bars and blanks separate; where commas do not, a comma can be the decimal point. Compressed files
are read as their suffix says, UTF-16 by its mark, anything else as UTF-8.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections import Counter
from dataclasses import dataclass
from io import BytesIO, StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv

from coincide.data.errors import SourceError, first_line

SUFFIXES = (".csv", ".tsv", ".txt")
DAMAGED = (pa.ArrowException, OSError, UnicodeDecodeError)  # what PyArrow raises

_SEEN_BYTES = 1 << 20
_SEEN_ROWS = 100
_RARE = 1e-3
_DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars", " ": "blanks"}
_NUMBER = re.compile(
    r"\s*[+-]?(?:(?:\d+[.,]?\d*|[.,]\d+)(?:e[+-]?\d+)?|nan|inf(?:inity)?)\s*", re.IGNORECASE
)
_MISSING = (  # as pandas has it
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"),
    *("<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
)


@dataclass(frozen=True)
class Layout:
    """How a text file is to be read, and in sentences what was decided that is not plain."""

    delimiter: str
    header: bool
    decimal: str
    encoding: str
    said: tuple[str, ...] = ()


def read_delimited(path: Path, header: bool | None = None) -> tuple[pa.Table, Layout]:
    """Read a whole file; ``header`` says whether its first row names the columns, None to find out.

    Without names the columns are ``f0``, ``f1``, …
    """
    layout = find_layout(path, header)
    ragged: list[Any] = []

    def refuse(row: Any) -> str:
        ragged.append(row)
        return "error"

    try:
        with pa.input_stream(str(path)) as stream:
            source = stream if layout.delimiter != " " else BytesIO(_single_blanks(stream.read()))
            table = pa.csv.read_csv(
                source,
                # One thread: it alone knows the number of a ragged row, and pyarrow's others can
                # abort a process that ends soon after ("terminate called without an exception").
                pa.csv.ReadOptions(
                    use_threads=False,
                    autogenerate_column_names=not layout.header,
                    encoding=layout.encoding,
                ),
                pa.csv.ParseOptions(
                    delimiter=layout.delimiter, newlines_in_values=True, invalid_row_handler=refuse
                ),
                # A missing cell is missing in a column of text as in one of numbers.
                pa.csv.ConvertOptions(
                    null_values=list(_MISSING),
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=False,
                    decimal_point=layout.decimal,
                ),
            )
    except (*DAMAGED, EOFError) as error:
        if not ragged:
            raise SourceError(_damaged(path, error)) from error
        row = ragged[0]
        raise SourceError(
            f"Row {row.number} of {path} has {row.actual_columns} cells where"
            f" {row.expected_columns} are expected (rows count from 1, a header included)."
        ) from error
    return table, layout


def find_layout(path: Path, header: bool | None = None) -> Layout:
    """Return how a file is to be read; ``header`` if that is known."""
    text, encoding = _beginning(path)
    order = ["\t", *_DELIMITERS] if ".tsv" in path.suffixes else list(_DELIMITERS)
    try:
        rows_of = {delimiter: _rows(text, delimiter) for delimiter in order}
    except csv.Error as error:
        raise SourceError(_damaged(path, error)) from error
    fit = {delimiter: _plausible(rows_of[delimiter]) for delimiter in order}
    best = max(order[:-1], key=lambda each: fit[each])
    if not any(fit[best]):  # blanks are in texts, too: they come last
        best = " " if any(fit[" "]) else order[0]
    delimiter, rows = best, rows_of[best]
    said = []
    if delimiter != order[0]:
        said.append(f"{path}: cells are separated by {_DELIMITERS[delimiter]}.")
    decimal = "."
    if delimiter != ",":
        numbers = [cell for row in rows for cell in row if _is_number(cell)]
        if any("," in cell for cell in numbers) and not any("." in cell for cell in numbers):
            decimal = ","
            said.append(f"{path}: commas were taken as decimal points.")
    if header is None and rows:
        header, how = _has_header(rows)
        if how:
            said.append(f"{path}: the first row ({_shown(rows[0])}) was taken as {how}.")
    return Layout(delimiter, bool(header), decimal, encoding, tuple(said))


def _beginning(path: Path) -> tuple[str, str]:
    """Return the first whole lines of a file as text, and its encoding."""
    try:
        with pa.input_stream(str(path)) as stream:
            seen = stream.read(_SEEN_BYTES)
    except (*DAMAGED, EOFError) as error:
        raise SourceError(_damaged(path, error)) from error
    wide = seen.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    encoding = "utf-16" if wide else "utf-8"
    try:
        decoder = codecs.getincrementaldecoder("utf-16" if wide else "utf-8-sig")()
        text = decoder.decode(seen, final=len(seen) < _SEEN_BYTES)
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} is not UTF-8 text: save it in that encoding.") from error
    if len(seen) == _SEEN_BYTES and "\n" in text:
        text = text[: text.rindex("\n")]
    return text, encoding


def _rows(text: str, delimiter: str) -> list[list[str]]:
    """Return the cells of the first rows that hold any."""
    if delimiter == " ":
        if "[" in text:  # a list as NumPy writes it
            return []
        text = _single_blanks(text.encode()).decode()
    rows: list[list[str]] = []
    for row in csv.reader(StringIO(text, newline=""), delimiter=delimiter):
        if row:
            rows.append(row)
        if len(rows) == _SEEN_ROWS:
            break
    return rows


def _single_blanks(text: bytes) -> bytes:
    """Return lines without blanks at their ends, single ones between the cells."""
    return re.sub(rb"(?m)^ | $", b"", re.sub(rb"[ \t]+", b" ", text.replace(b"\r\n", b"\n")))


def _plausible(rows: list[list[str]]) -> tuple[float, float]:
    """Return how well rows fit a delimiter: (share of numbers in equally long rows, cells).

    No row counts where most have a single cell.
    """
    width, often = Counter(map(len, rows)).most_common(1)[0] if rows else (0, 0)
    if width < 2:
        return 0.0, 0.0
    cells = [cell for row in rows[1:] or rows if len(row) == width for cell in row if cell.strip()]
    share = sum(map(_is_number, cells)) / max(1, len(cells))
    return often / len(rows) * (1 + share), width


def _has_header(rows: list[list[str]]) -> tuple[bool, str]:
    """Whether the first row names the columns, and in words what was decided if that is not plain.

    It does if some cell differs in kind from all below it (text above numbers, a number above
    text), or if none is a number and none occurs again. A row of numbers does if it counts 0, 1,
    …, or rises from cell to cell, each outside of what stands below it, as wavelengths or years do.
    """
    first, below = rows[0], rows[1:]
    columns = [
        [row[number] for row in below if number < len(row) and row[number].strip()]
        for number in range(len(first))
    ]
    numbers = [_is_number(cell) for cell in first]
    if not below:
        return not any(numbers), ""
    for is_number, cell, column in zip(numbers, first, columns, strict=True):
        kinds = {_is_number(each) for each in column}
        if cell.strip() and column and kinds == {not is_number}:
            return True, ""
    if not any(numbers):
        again = any(cell in column for cell, column in zip(first, columns, strict=True))
        return (False, "data, for it occurs again") if again else (True, "")
    if not all(map(_is_number, filter(str.strip, first))):
        return False, "data, for the rows below are of its kind"
    return _numbers_are_names(first, below)


def _numbers_are_names(first: list[str], below: list[list[str]]) -> tuple[bool, str]:
    """Whether a row of numbers names the columns above rows of numbers, and why."""
    told = [cell for cell in first if cell.strip()]
    if _counts(told) and not any(_counts(row[-len(told) :]) for row in below):
        return True, "the names of the columns, for it counts"
    if _stands_out(first, below) and not _stands_out(below[0], below[1:]):
        return True, "the names of the columns, for its numbers lie outside of those below"
    return False, "data; --header takes it as names"


def _counts(cells: list[str]) -> bool:
    return cells == [str(number) for number in range(len(cells))]


def _stands_out(row: list[str], below: list[list[str]]) -> bool:
    """Whether numbers rise from cell to cell, each outside of the range of what is below it.

    Not where that happens to a row of the same kind more often than once in a thousand times.
    """
    values = [_value(cell) for cell in row]
    rising = all(a < b for a, b in pairwise(values))
    by_chance = (2 / (len(below) + 1)) ** len(values)
    if not rising or by_chance > _RARE:
        return False
    for number, value in enumerate(values):
        column = [_value(each[number]) for each in below if number < len(each)]
        if min(column, default=value) <= value <= max(column, default=value):
            return False
    return True


def _is_number(cell: str) -> bool:
    return _NUMBER.fullmatch(cell) is not None


def _value(cell: str) -> float:
    """Return a number; NaN, which compares with nothing, for anything else."""
    return float(cell.replace(",", ".")) if _is_number(cell) else float("nan")


def _shown(row: list[str]) -> str:
    text = ", ".join(row[:5])
    return (text if len(text) <= 60 else text[:57] + "...") + (", ..." if len(row) > 5 else "")


def _damaged(path: Path, error: Exception) -> str:
    return f"{path} cannot be read as CSV ({first_line(error)})."
