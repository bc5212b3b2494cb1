"""Where a command may write: never over files that are not its own, never half a file."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from coincide.report.run_folder import (
    LABELS_CSV,
    LABELS_PARQUET,
    METRICS,
    PROJECTION,
    REPORT,
    read_metrics,
)

CHECKPOINTS = "checkpoints"
LOG = "log.jsonl"
IMAGE_NAMES = "images.csv"
GALLERY = "gallery"
RUN_FILES = (
    LABELS_CSV,
    LABELS_PARQUET,
    PROJECTION,
    REPORT,
    "model.safetensors",
    "model.json",
    IMAGE_NAMES,
    METRICS,
)
_CHECKPOINT = "checkpoint-*.safetensors"
_STAGING = ".coincide-"


def check_folder(folder: Path, *, replace: bool) -> None:
    """Refuse a folder that a run may not be written to, before anything is computed.

    Parameters
    ----------
    folder : Path
        Absent, empty, or the folder of an earlier run, which its ``metrics.json`` tells.
    replace : bool
        Whether an earlier run may be replaced.

    Raises
    ------
    ValueError
        If the folder holds other files, or an earlier run that may not be replaced.
    OSError
        If it cannot be written.
    """
    _check_writable(folder)
    if not folder.exists() or not any(not _is_staging(path) for path in folder.iterdir()):
        return
    if not _is_run(folder):
        raise ValueError(
            f"The folder {folder} holds files that are not of a run, and is left as it is:"
            " name another one with --out."
        )
    if not replace:
        raise ValueError(
            f"The folder {folder} holds an earlier run: replace it with --overwrite, or name"
            " another folder with --out."
        )


def check_file(path: Path, *, replace: bool) -> None:
    """Refuse a file of labels that may not be written: see :func:`check_folder`."""
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise ValueError(f"The file --out must end in .csv or .parquet. Got {path} instead.")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a file with --out.")
    _check_writable(path.parent)
    if path.exists() and not replace:
        raise ValueError(f"The file {path} exists: replace it with --overwrite.")


def check_run(folder: Path, *, replace: bool) -> None:
    """Refuse a folder for a training, like :func:`check_folder`.

    Raises
    ------
    ValueError, OSError
        As :func:`check_folder`; also for an unfinished training that may not be replaced.
    """
    if not any((folder / CHECKPOINTS).glob(_CHECKPOINT)):
        check_folder(folder, replace=replace)
        return
    _check_writable(folder)
    if not replace:
        raise ValueError(
            f"The folder {folder} holds an unfinished training: take it up with --resume, or"
            " replace it with --overwrite."
        )


def clear_checkpoints(folder: Path) -> None:
    """Remove the checkpoints in the folder of a run, and nothing else that may lie beside them."""
    for path in [*(folder / CHECKPOINTS).glob(_CHECKPOINT)]:
        path.unlink(missing_ok=True)
    with suppress(OSError):  # it is not there, or not empty
        (folder / CHECKPOINTS).rmdir()


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """Yield an empty folder within ``folder`` (so on its disk), removed with all it holds.

    ``folder`` is made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=_STAGING, dir=folder) as name:
        yield Path(name)


def replace_run(folder: Path, staged: Path) -> list[Path]:
    """Move the files of a run from ``staged`` to ``folder``, and remove what an earlier one left.

    ``metrics.json`` comes last: until then the folder keeps the one of the earlier run, by which
    it is known.
    """
    written = []
    shutil.rmtree(folder / GALLERY, ignore_errors=True)
    if (staged / GALLERY).is_dir():
        written.append((staged / GALLERY).replace(folder / GALLERY))
    for name in RUN_FILES:
        if (staged / name).is_file():
            written.append((staged / name).replace(folder / name))
        else:
            (folder / name).unlink(missing_ok=True)
    return written


def _check_writable(folder: Path) -> None:
    """Try to make a file in ``folder``, or in the nearest folder above it that exists."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise ValueError(f"Nothing can be written to {folder}: {nearest} is a file.")
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise ValueError(f"Nothing can be written to {folder} ({error.strerror}).") from error


def _is_staging(path: Path) -> bool:
    return path.name.startswith(_STAGING)  # left by a run that was killed


def _is_run(folder: Path) -> bool:
    try:
        return "model" in read_metrics(folder)
    except (OSError, ValueError):
        return False
