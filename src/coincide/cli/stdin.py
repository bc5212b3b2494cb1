"""Standard input as a source of feature vectors: ``-`` in place of a file."""

from __future__ import annotations

import shutil
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from coincide.cli.folder import STANDARD

NO_IMAGES = "Images cannot be read from standard input: name a folder or a file."
# How the content begins, and the suffix of a file of that kind; anything else is CSV.
_KINDS = {b"PAR1": ".parquet", b"\x1f\x8b": ".csv.gz"}


@contextmanager
def readable(arguments: Namespace) -> Iterator[Namespace]:
    """Yield the arguments; with standard input as source, its content is a file for that time.

    It is CSV, gzip of CSV, or Parquet, which is recognized by its first bytes.
    """
    if arguments.source != STANDARD:
        yield arguments
        return
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "stdin"
        with path.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        with path.open("rb") as file:
            start = file.read(4)
        suffixes = [suffix for mark, suffix in _KINDS.items() if start.startswith(mark)]
        path = path.rename(path.with_suffix(*suffixes or [".csv"]))
        try:
            yield Namespace(**{**vars(arguments), "source": str(path)})
        except ValueError as error:  # nobody knows the file by its name
            raise ValueError(str(error).replace(str(path), "standard input")) from error
