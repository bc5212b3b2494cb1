"""Where decoded images are put: memory, a memory-mapped file when large, and a cache of both.

A cache entry is an ``.npy`` of the images and a ``.json`` of what was skipped. The ``.json`` is
written last and names the length of the ``.npy``: an entry that was cut short at any moment is
seen as such and made anew.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from coincide._files import replacing, write_text
from coincide.data.errors import Array, SourceError

LARGE = 2 << 30  # bytes; decoded images above this stay on disk
_BLOCKS, _BLOCK = 32, 8 << 10  # bytes of a file that are looked at: all, or so many blocks

_FORMAT = 2  # of the entries; counted up when images are decoded otherwise than before


@dataclass(frozen=True)
class Decoded:
    """The images of a source that can be read, in order, (n, C, H, W); memory-mapped when large.

    ``reasons`` is why the others cannot, by their number within the source; ``note`` what was done
    to them, in sentences, and ``white`` the value that became 255. Where some reason is of the
    system, such as a disk that does not answer, the images are ``passing``: not to be remembered.
    """

    images: Array
    reasons: dict[int, str] = field(default_factory=dict)
    note: str = ""
    white: float = math.inf
    passing: bool = False


def fingerprint(files: Sequence[Path], options: object) -> str:
    """Return a name for files as they now are, read with options.

    Of a file count its path and its bytes: all of them up to a size, else blocks at even distances
    and what the system knows of it, which changes even where the time of change is set back.
    """
    digest = hashlib.sha256(repr((_FORMAT, options)).encode())
    for file in files:
        digest.update(os.fsencode(file.absolute()) + b"\0" + _seen(file))
    return digest.hexdigest()[:32]


def _seen(path: Path) -> bytes:
    """Return a digest of a file's bytes, or why it cannot be read."""
    try:
        with path.open("rb") as file:
            about = os.fstat(file.fileno())
            size = about.st_size
            digest = hashlib.sha256(f"{size}".encode())
            if size <= _BLOCKS * _BLOCK:
                digest.update(file.read())
                return digest.digest()
            digest.update(repr((about.st_mtime_ns, about.st_ctime_ns, about.st_ino)).encode())
            for number in range(_BLOCKS):
                file.seek(number * (size - _BLOCK) // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK))
            return digest.digest()
    except OSError as error:
        return f"{error.errno}".encode()


class ImageStore:
    """Puts blocks of images under each other, and remembers them in the folder of a cache.

    Without a folder nothing is remembered, and what is large goes to a temporary file that vanishes
    with the array. The key is the :func:`fingerprint` of what is decoded.
    """

    def __init__(self, folder: Path | None = None, key: str = "") -> None:
        self._folder = folder
        self._key = key
        self._written: Path | None = None

    def load(self) -> Decoded | None:
        """Return the images decoded before, or None when there are none, or not whole."""
        if self._folder is None:
            return None
        try:
            entry = json.loads(self._path(".json").read_text(encoding="utf-8"))
            file = self._path(".npy")
            if file.stat().st_size != entry["bytes"]:
                return None
            large = entry["bytes"] > LARGE
            images = np.load(file, mmap_mode="r" if large else None, allow_pickle=False)
            reasons = {int(row): str(reason) for row, reason in entry["reasons"].items()}
            note = str(entry["note"])
            white = math.inf if entry["white"] is None else float(entry["white"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError):
            return None  # absent or damaged: made anew
        fits = images.dtype == np.uint8 and images.ndim == 4 and len(images) == entry["rows"]
        return Decoded(images, reasons, note, white) if fits else None

    def collect(self, blocks: Iterable[Array], rows: int, shape: tuple[int, ...]) -> Array:
        """Return blocks (n, C, H, W) under each other, ``rows`` at most; mapped when large."""
        if rows * math.prod(shape) > LARGE:
            return self._write(blocks, rows, shape)
        images = np.empty((rows, *shape), np.uint8)
        count = 0
        for block in blocks:
            images[count : count + len(block)] = block
            count += len(block)
        return images[:count]

    def save(self, decoded: Decoded) -> Decoded:
        """Remember what was collected and return it, with a note if that was not possible."""
        if self._folder is None or decoded.passing:
            self.discard()
            return decoded
        try:
            images = self._path(".npy")
            if self._written is None:
                with replacing(images) as temporary, temporary.open("wb") as file:
                    np.save(file, decoded.images, allow_pickle=False)
            else:
                self._written.replace(images)
            write_text(self._path(".json"), json.dumps(_entry(decoded, images.stat().st_size)))
        except OSError as error:
            self.discard()
            why = f"The decoded images could not be cached in {self._folder} ({error.strerror})."
            return replace(decoded, note=f"{decoded.note} {why}".strip())
        self._written = None
        return decoded

    def _path(self, suffix: str) -> Path:
        assert self._folder is not None
        return self._folder / (self._key + suffix)

    def _write(self, blocks: Iterable[Array], rows: int, shape: tuple[int, ...]) -> Array:
        """Stream the blocks into a file and return it memory-mapped."""
        self.discard()
        try:
            with self._large_file() as file:
                _write_header(file, rows, shape)
                begin, count = file.tell(), 0
                for block in blocks:
                    file.write(np.ascontiguousarray(block).data)
                    count += len(block)
                file.seek(0)
                _write_header(file, count, shape)
                assert file.tell() == begin  # NumPy leaves room for the number of rows
                file.flush()
                return np.memmap(file, np.uint8, "r", begin, (count, *shape))
        except OSError as error:
            self.discard()
            gib = rows * math.prod(shape) / 2**30
            raise SourceError(
                f"The {gib:.1f} GiB of decoded images cannot be stored in"
                f" {self._folder or tempfile.gettempdir()} ({error.strerror}): make room, choose"
                " another cache folder, or a smaller image_size."
            ) from error
        except BaseException:
            self.discard()
            raise

    def _large_file(self) -> IO[bytes]:
        if self._folder is None:
            return tempfile.TemporaryFile()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._written = self._path(f".{os.getpid()}.part")  # its name is given when it is complete
        return self._written.open("w+b")

    def discard(self) -> None:
        """Delete a large file that was collected but not saved."""
        if self._written is not None:
            self._written.unlink(missing_ok=True)
            self._written = None


def _write_header(file: IO[bytes], rows: int, shape: tuple[int, ...]) -> None:
    about: dict[str, Any] = {"descr": "|u1", "fortran_order": False, "shape": (rows, *shape)}
    np.lib.format.write_array_header_1_0(file, about)


def _entry(decoded: Decoded, size: int) -> dict[str, Any]:
    return {
        "rows": len(decoded.images),
        "bytes": size,
        "reasons": decoded.reasons,
        "note": decoded.note,
        "white": None if math.isinf(decoded.white) else decoded.white,
    }
