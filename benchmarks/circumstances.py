"""What is needed to measure again: command, versions, machine and commit."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def circumstances(
    script: str, packages: Sequence[str], folder: str = "benchmarks"
) -> dict[str, Any]:
    """Return the circumstances of a run of a script in a folder of the repository."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "command": ["python", f"{folder}/{script}", *map(_without_folder, sys.argv[1:])],
        "commit": commit,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
        },
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
    }


def _without_folder(argument: str) -> str:
    """Name what lies elsewhere by its last part: where that is, is nobody's business."""
    name, equals, value = argument.rpartition("=")
    inside = Path(value).resolve().is_relative_to(Path.cwd())
    return f"{name}{equals}{value if inside else Path(value).name}"
