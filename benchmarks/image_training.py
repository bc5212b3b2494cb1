"""What ``coincide train`` takes: phases, processor, system and page faults, beside another version.

    python benchmarks/image_training.py
    python benchmarks/image_training.py --source=MNIST --images 600 --network vgg4 --max-epochs 2
    python benchmarks/image_training.py --against REVISION --out benchmarks/results/FILE.json

Every training is a process of its own on the first images of the source, the versions in turns
seed by seed. What it does not know itself is an option of ``coincide train`` and goes to it. The
seconds of the phases are those that the run says, which versions before it do not; processor and
page faults are those of the whole process, its start included.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from checkouts import checked_out
from circumstances import circumstances

from coincide.data.images import read_images

PACKAGES = ("coincide", "torch", "numpy", "numba", "scipy")


def write_images(source: str, count: int | None, file: Path) -> int:
    """Write the first images of a source and their classes; return how many they are."""
    found = read_images(source)
    labels = {} if found.labels is None else {"labels": found.labels[:count]}
    np.savez(file, images=found.images[:count], **labels)
    return len(found.images[:count])


def train(checkout: Path, images: Path, threads: int, options: list[str]) -> dict[str, Any]:
    """Return what a training with the package of one checkout took."""
    run = images.parent / "run"
    command = [sys.executable, "-m", "coincide", "train", str(images), *options, "--quiet"]
    limits = {f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "MKL", "OPENBLAS", "NUMBA")}
    started = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--no-cache", "--out", str(run), "--overwrite"],
        env={**os.environ, **limits, "PYTHONPATH": str(checkout / "src")},
    )
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    return {
        "seconds": seconds,
        "timings": metrics["timings"],
        "phases": metrics.get("phases", {}),
        "processor": used.ru_utime + used.ru_stime,
        "system_share": used.ru_stime / (used.ru_utime + used.ru_stime),
        "page_faults": used.ru_minflt + used.ru_majflt,
        "resident_kib": used.ru_maxrss,
        "accuracy": metrics.get("scores", {}).get("accuracy"),
    }


def line(version: str, seed: int, took: dict[str, Any]) -> str:
    """Return a row of the table."""
    phases = " ".join(f"{name} {seconds:.1f}" for name, seconds in took["phases"].items())
    accuracy = "" if took["accuracy"] is None else f", accuracy {took['accuracy']:.4f}"
    return (
        f"{version:6} seed {seed}: {took['seconds']:.1f} s ({phases or 'phases not said'}),"
        f" processor {took['processor']:.1f} s, of it the system's {took['system_share']:.1%},"
        f" {took['page_faults']:,} page faults{accuracy}"
    )


def main() -> None:
    """Parse the arguments, train with every version in turns, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0], allow_abbrev=False)
    parser.add_argument("--source", default="digits", help="as coincide train takes it")
    parser.add_argument("--images", type=int, help="of the source, the first (default: all)")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--against", metavar="REVISION", help="another version, in the same run")
    parser.add_argument("--out", type=Path, help="file to write the results to, JSON")
    arguments, options = parser.parse_known_args()
    here = Path(__file__).resolve().parent.parent
    other = checked_out(arguments.against) if arguments.against else nullcontext()
    rows, load = [], [os.getloadavg()[0]]
    with other as place, tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "images.npz"
        count = write_images(arguments.source, arguments.images, file)
        checkouts = ({} if place is None else {"before": place}) | {"now": here}
        for seed in range(arguments.seeds):
            for version, checkout in checkouts.items():
                seeded = [*options, "--seed", str(seed)]
                took = train(checkout, file, arguments.threads, seeded)
                print(line(version, seed, took), flush=True)
                rows.append({"version": version, "seed": seed, **took})
                load.append(os.getloadavg()[0])
    if arguments.out:
        made = circumstances("image_training.py", PACKAGES) | {
            "against": arguments.against,
            "threads": arguments.threads,
            "cores": os.cpu_count(),
            "load": load,
        }
        text = json.dumps({"circumstances": made, "images": count, "rows": rows}, indent=1)
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
