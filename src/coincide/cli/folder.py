"""Where a command may write: run folders, files and standard output, each whole or not at all.

A command never writes over files that are not its own, and never over a run that nobody gave up.
"""

from __future__ import annotations

import shlex
import tempfile
from argparse import Namespace
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from coincide._files import DESCRIPTION, TENSORS, sync
from coincide.data.vectors import BUILT_IN, name_of
from coincide.report.run_folder import (
    GALLERY,
    LABELS_CSV,
    LABELS_PARQUET,
    METRICS,
    PROJECTION,
    REPORT,
    read_metrics,
)

STANDARD = "-"  # standard input as a source, standard output as a file
CHECKPOINTS = "checkpoints"
LOG = "log.jsonl"
TENSORBOARD = "tensorboard"
RUN_FILES = (
    f"{GALLERY}/images.png",
    f"{GALLERY}/index.json",
    LABELS_CSV,
    LABELS_PARQUET,
    PROJECTION,
    REPORT,
    TENSORS,
    DESCRIPTION,
    METRICS,
)
_CHECKPOINT = f"{CHECKPOINTS}/checkpoint-*.safetensors"
_EVENTS = f"{TENSORBOARD}/events.out.tfevents.*"
_STAGING = ".coincide-"


def run_folder(arguments: Namespace) -> Path:
    """Return the folder to write a run to, or refuse it before anything is computed.

    It may be absent, empty, or that of an earlier run that is given up with ``--overwrite``. The
    default folder, ``coincide-NAME``, is written again without a word if it holds a finished run
    of the same command and source; with ``--resume`` a training's folder is never refused here.
    """
    named = arguments.out is not None
    folder: Path = arguments.out if named else Path(f"coincide-{default_name(arguments.source)}")
    _check_writable(folder)
    if not _names(folder):
        return folder
    resume = getattr(arguments, "resume", None)  # a clustering has nothing to resume
    ways = "replace it with --overwrite, or name another folder with --out"
    earlier = finished_run(folder)
    if is_unfinished(folder):
        if not (resume or arguments.overwrite):
            ways = ways if resume is None else f"take it up with --resume, {ways}"
            raise ValueError(f"The folder {folder} holds an unfinished training: {ways}.")
    elif earlier is None:
        raise ValueError(
            f"The folder {folder} holds files that are not of a run, and is left as it is:"
            " name another one with --out."
        )
    elif not arguments.overwrite and not (resume and "training" in earlier):
        if named:
            raise ValueError(f"The folder {folder} holds an earlier run: {ways}.")
        if arguments.source == STANDARD or earlier.get("origin") != origin(arguments):
            told = shlex.join(str(word) for word in earlier.get("command", []))
            raise ValueError(
                f"The folder {folder} holds a run of another command or source ({told}): {ways}."
            )
    return folder


def check_file(path: Path, *, replace: bool) -> None:
    """Refuse a file of labels that may not be written, before anything is computed."""
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise ValueError(f"The file --out must end in .csv or .parquet. Got {path} instead.")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a file with --out.")
    _check_writable(path.parent)
    if path.exists() and not replace:
        raise ValueError(f"The file {path} exists: replace it with --overwrite.")


def origin(arguments: Namespace) -> dict[str, Any]:
    """Return what the default folder of a run belongs to: the command and the source."""
    source = arguments.source
    path = Path(source)
    known = source not in (STANDARD, *BUILT_IN) and path.exists()
    return {
        "command": arguments.command,
        "source": str(path.resolve()) if known else source,
        "split": getattr(arguments, "split", None),
    }


def default_name(source: str) -> str:
    """Return the name of a source before it is read (see :attr:`Source.name`)."""
    if source == STANDARD:
        return "stdin"
    return name_of(Path(source))


def is_unfinished(folder: Path) -> bool:
    """Whether a training was begun there and has not come to its end.

    It leaves checkpoints, newer than the run that was there before, or its log alone.
    """
    checkpoints = [path.stat().st_mtime_ns for path in folder.glob(_CHECKPOINT)]
    if finished_run(folder) is None:
        names = _names(folder)
        return bool(checkpoints) or bool(names and names <= {LOG, TENSORBOARD})
    return max(checkpoints, default=0) > (folder / METRICS).stat().st_mtime_ns


def files_of(folder: Path) -> list[Path]:
    """Return the files of the run that a folder holds."""
    return [folder / name for name in RUN_FILES if (folder / name).is_file()]


def of_training(folder: Path) -> list[Path]:
    """Return what a training writes as it goes: its log, its checkpoints, TensorBoard's events."""
    return [
        path for name in (LOG, _CHECKPOINT, _EVENTS) for path in folder.glob(name) if path.is_file()
    ]


def remove(paths: Iterable[Path]) -> None:
    """Remove files of a run, and the folders within it that hold nothing else."""
    for path in paths:
        path.unlink(missing_ok=True)
        if path.parent.name in (CHECKPOINTS, TENSORBOARD, GALLERY):
            with suppress(OSError):  # it is not empty
                path.parent.rmdir()


def clear_checkpoints(folder: Path) -> None:
    """Remove the checkpoints in the folder of a run, and nothing else that may lie beside them."""
    remove([*folder.glob(_CHECKPOINT)])


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
    it is known. All are on the disk first: what they replace, checkpoints too, is then gone.
    """
    written = []
    for name in RUN_FILES:
        if (staged / name).is_file():
            sync(staged / name)
            (folder / name).parent.mkdir(exist_ok=True)
            written.append((staged / name).replace(folder / name))
        else:
            remove([folder / name])
    with suppress(OSError):  # of a folder, Windows and some network disks cannot
        sync(folder)
    return written


def _check_writable(folder: Path) -> None:
    """Try to make a file in ``folder``, or in the nearest folder above it that exists."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise ValueError(
            f"Nothing can be written to {folder}: {nearest} is a file. Name another place with"
            " --out."
        )
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise ValueError(
            f"Nothing can be written to {folder} ({error.strerror}): name another place with --out."
        ) from error


def _names(folder: Path) -> set[str]:
    """Return what a folder holds, but for what a run that was killed had staged."""
    if not folder.exists():
        return set()
    return {path.name for path in folder.iterdir() if not path.name.startswith(_STAGING)}


def finished_run(folder: Path) -> dict[str, Any] | None:
    """Return the metrics of the run that a folder holds, None without one."""
    try:
        metrics = read_metrics(folder)
    except (OSError, ValueError):
        return None
    return metrics if "model" in metrics else None
