"""Standard input as a source of feature vectors: ``-`` in place of a file."""

from __future__ import annotations

import gzip
import shutil
import sys
import zlib
from argparse import Namespace
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from coincide.cli.folder import STANDARD

SHOWN = "standard input"
NO_IMAGES = "Images cannot be read from standard input: name a folder or a file."
_GZIP = b"\x1f\x8b"
_PARQUET = b"PAR1"


def shown(sentences: Iterable[str], given: Namespace, arguments: Namespace) -> list[str]:
    """Return sentences on what was read, in which standard input is called so."""
    if arguments.source != STANDARD:
        return list(sentences)
    return [sentence.replace(given.source, SHOWN) for sentence in sentences]


@contextmanager
def readable(arguments: Namespace) -> Iterator[Namespace]:
    """Yield the arguments; with standard input as source, its content is a file for that time.

    It is CSV, gzip of CSV, or Parquet, which is recognized by its first bytes.
    """
    if arguments.source != STANDARD:
        yield arguments
        return
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = _spooled(Path(folder))
        try:
            yield Namespace(**{**vars(arguments), "source": str(path)})
        except ValueError as error:  # nobody knows the file by its name
            raise ValueError(str(error).replace(str(path), SHOWN)) from error


def _spooled(folder: Path) -> Path:
    """Write standard input to a file whose suffix says what it holds, and return its path."""
    path = folder / "stdin.csv"
    with path.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    with path.open("rb") as file:
        start = file.read(len(_PARQUET))
    if start == _PARQUET:
        return path.rename(path.with_suffix(".parquet"))
    if start.startswith(_GZIP):
        packed = path.rename(path.with_suffix(".gz"))
        try:
            with gzip.open(packed) as content, path.open("wb") as file:
                shutil.copyfileobj(content, file)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(
                f"Standard input is gzip that is cut short or damaged ({error})."
            ) from error
    return path
