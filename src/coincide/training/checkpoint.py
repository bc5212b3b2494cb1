"""Checkpoints that a kill at any moment cannot spoil, and the signal that asks for a last one.

A checkpoint is one safetensors file, ``checkpoint-000012.safetensors``: the tensors, a JSON
document as the tensor ``about``, and the SHA-256 of all of it as the tensor ``sha256``. One file,
because only then does one rename replace it whole, its earlier self included. Reading it yields
numbers and text; nothing in it can run, and no name in it is ever a path.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import signal
import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from coincide._checks import check_integer, parameter_message
from coincide._files import replacing, to_json

FORMAT = 1

_NAME = re.compile(r"checkpoint-([0-9]{6,})\.safetensors")
_STATE = "state."  # before the caller's names, which so never meet the file's own
_ABOUT = "about"
_SUM = "sha256"
_DTYPES = (
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.bfloat16, torch.float16, torch.float32, torch.float64),
)
_MARK = "!"  # in JSON: before a float that JSON has no number for


class CheckpointError(ValueError):
    """Checkpoints that cannot be read or written."""


class CheckpointWarning(UserWarning):
    """A checkpoint that was passed over for the one before it."""


class Checkpoints:
    """The last few checkpoints of a training, in a folder that one process writes to.

    Parameters
    ----------
    folder : Path
        Made at the first save.
    keep : int
        How many to keep; those of the highest numbers.

    Examples
    --------
    >>> import tempfile, torch
    >>> from pathlib import Path
    >>> from coincide.training.checkpoint import Checkpoints
    >>> checkpoints = Checkpoints(Path(tempfile.mkdtemp()))
    >>> checkpoints.latest() is None
    True
    >>> checkpoints.save(12, {"weight": torch.ones(2)}, {"loss": float("inf")}).name
    'checkpoint-000012.safetensors'
    >>> checkpoints.latest()
    ({'weight': tensor([1., 1.])}, {'loss': inf})
    """

    def __init__(self, folder: Path, keep: int = 3) -> None:
        self.folder = Path(folder)
        self.keep = check_integer(keep, "keep", "Checkpoints", low=1)

    def save(self, number: int, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> Path:
        """Write a checkpoint, then remove those beyond ``keep``, and return its path.

        It stands under its name only when it is whole and on the disk. Until then an earlier one
        of the same number stays, and all others stay as they are. What a killed run left half
        written is removed first.

        Parameters
        ----------
        number : int
            Its place in the order, such as the steps done; a checkpoint of that number is
            replaced.
        tensors : dict of str to Tensor
            Dense, of any shape, on any device, contiguous or not, sharing memory or not; bool,
            integers, or floats of 16 bits and more. They come back bit for bit, on the CPU.
        about : dict
            None, bools, ints, floats, strings, and lists and string-keyed dicts of them; tuples
            come back as lists. NaN and the infinities survive: JSON has no number for them, so
            they are written as ``"!nan"``, ``"!inf"`` and ``"!-inf"``, and a string that begins
            with ``!`` with one more.

        Raises
        ------
        TypeError
            If a file cannot hold the tensors or ``about`` unchanged.
        CheckpointError
            If the folder cannot be written to, or the disk is full.
        """
        number = check_integer(number, "number", "Checkpoints.save", low=0)
        data = _packed(tensors, about)
        path = self.folder / f"checkpoint-{number:06d}.safetensors"
        try:
            for stale in self.folder.glob(".checkpoint-*.part"):
                stale.unlink(missing_ok=True)
            with replacing(path, durable=True) as temporary:
                temporary.write_bytes(data)
            for old in self._newest_first()[self.keep :]:
                if old != path:  # numbers above it may be left from before a step back
                    old.unlink(missing_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"Checkpoint {number} cannot be saved in {self.folder} ({error.strerror}): make"
                " room there, or choose a folder that can be written to. Earlier checkpoints are"
                " as they were."
            ) from error
        return path

    def latest(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the tensors and ``about`` of the newest whole checkpoint; None if there is none.

        Warns
        -----
        CheckpointWarning
            For every newer one that is damaged, cut short or unreadable.

        Raises
        ------
        CheckpointError
            If there are checkpoints and none is whole, or the folder cannot be read.
        """
        failures: list[CheckpointError] = []
        for path in self._newest_first():
            try:
                found = _read(path)
            except CheckpointError as error:
                failures.append(error)
                continue
            for failure in failures:
                sentence = f"{failure} Training goes on from the one before, {path.name}."
                warnings.warn(sentence, CheckpointWarning, stacklevel=2)
            return found
        if failures:
            raise CheckpointError(
                f"No checkpoint in {self.folder} can be used ({len(failures)} found). {failures[0]}"
                " Move them elsewhere to begin anew, or put a good copy in their place."
            ) from failures[0]
        return None

    def last_number(self) -> int:
        """Return the highest number that a checkpoint has, whole or not; 0 if there are none."""
        return max((int(_NAME.fullmatch(p.name)[1]) for p in self._newest_first()), default=0)  # type: ignore[index]

    def _newest_first(self) -> list[Path]:
        try:
            paths = list(self.folder.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CheckpointError(
                f"The checkpoints in {self.folder} cannot be listed ({error.strerror}): name a"
                " folder that can be read."
            ) from error
        numbers = {path: int(match[1]) for path in paths if (match := _NAME.fullmatch(path.name))}
        return sorted(numbers, key=numbers.__getitem__, reverse=True)


def _packed(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> bytes:
    """Return the file of a checkpoint."""
    if not isinstance(about, Mapping):
        raise TypeError(parameter_message("about", "Checkpoints.save", "a dict", about))
    held = {_STATE + name: _plain(name, tensor) for name, tensor in tensors.items()}
    document = {"format": FORMAT, "about": to_json(about, "about", _encoded)}
    held[_ABOUT] = _as_tensor(json.dumps(document, allow_nan=False).encode())
    held[_SUM] = _as_tensor(checksum(held))
    data: bytes = save(held)
    return data


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what the file holds, or say why that is impossible."""
    try:
        return _unpacked(path.read_bytes())
    except OSError as error:
        raise CheckpointError(
            f"The checkpoint {path} cannot be read ({error.strerror})."
        ) from error
    except (SafetensorError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"The checkpoint {path} is damaged, cut short, or of another version (this one reads"
            f" format {FORMAT})."
        ) from error


def _unpacked(data: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what :func:`_packed` was given; any other bytes raise what they may."""
    held = load(data)
    if _as_bytes(held.pop(_SUM)) != checksum(held):
        raise ValueError("the checksum does not fit")
    document = json.loads(_as_bytes(held.pop(_ABOUT)))
    if document["format"] != FORMAT:
        raise ValueError(f"the format is {document['format']!r}")
    about = _decoded(document["about"])
    return {name.removeprefix(_STATE): tensor for name, tensor in held.items()}, about


def _plain(name: str, tensor: Tensor) -> Tensor:
    """Return a copy that safetensors takes: on the CPU, contiguous, its memory its own."""
    dense = isinstance(tensor, Tensor) and tensor.layout == torch.strided and not tensor.is_meta
    if not dense or tensor.dtype not in _DTYPES:
        got = f"{tensor.layout}, {tensor.dtype}" if isinstance(tensor, Tensor) else type(tensor)
        raise TypeError(
            "The 'tensors' parameter of Checkpoints.save must hold dense tensors of bool, integers"
            f" or floats. Got {got} for {name!r} instead."
        )
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())


def checksum(held: Mapping[str, Tensor]) -> bytes:
    """Return the SHA-256 of the names, dtypes, shapes and bytes."""
    total = hashlib.sha256()
    for name in sorted(held):
        tensor = held[name]
        total.update(f"{name!r} {tensor.dtype} {list(tensor.shape)}\n".encode())
        total.update(tensor.flatten().view(torch.uint8).numpy().data)
    return total.digest()


def _as_tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _as_bytes(tensor: Tensor) -> bytes:
    return tensor.numpy().tobytes()


def _encoded(value: object, where: str) -> object:
    """Return what JSON can hold, from which :func:`_decoded` makes the value again."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{_MARK}{float(value)}"
    if isinstance(value, str) and value.startswith(_MARK):
        return _MARK + value
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(
        "The 'about' parameter of Checkpoints.save must hold None, bools, ints, floats, strings,"
        f" lists and dicts with string keys. Got {value!r} as {where} instead."
    )


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    if isinstance(value, dict):
        return {key: _decoded(item) for key, item in value.items()}
    if isinstance(value, str) and value.startswith(_MARK):
        rest = value.removeprefix(_MARK)
        return rest if rest.startswith(_MARK) else float(rest)
    return value


class StopRequest:
    """Within it, SIGTERM and the first Ctrl-C only set a flag, for a training to save and end.

    A second Ctrl-C does what it did before. On leaving, the old handlers are back. A signal that
    was ignored stays ignored; outside the main thread, which alone may handle signals, nothing
    changes.

    Attributes
    ----------
    requested : bool
        Whether a signal came.

    Examples
    --------
    >>> import signal
    >>> from coincide.training.checkpoint import StopRequest
    >>> with StopRequest() as stop:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     stop.requested
    True
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Callable[[int, FrameType | None], Any] | int] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                handler = signal.getsignal(number)
                # None: not installed from Python, so that it could not be put back.
                if handler is not None and handler != signal.SIG_IGN:
                    self._before[number] = handler
                    signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if number == signal.SIGINT:
            signal.signal(number, self._before[number])
