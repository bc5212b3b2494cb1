"""Where the tests of a backend run."""

import torch

from coincide.pseudolabels.kernels import available_backends


def device_of(backend: str) -> torch.device:
    """Return the device of a backend: Triton's is a GPU; without one its interpreter takes over."""
    gpu = backend == "triton" and torch.cuda.is_available()
    return torch.device("cuda" if gpu else "cpu")


def cpu_backends() -> list[str]:
    """Return the backends for a CPU; Triton's interpreter takes too long for larger problems."""
    return [name for name in available_backends() if name != "triton"]
