"""Hypothesis repeats the same examples in CI, so that green stays green, and explores elsewhere.

Without a GPU the Triton kernels run in Triton's interpreter, which has to be said before they are
imported.
"""

import os

import torch
from hypothesis import settings

settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
