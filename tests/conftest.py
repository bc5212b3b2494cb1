"""Hypothesis repeats the same examples in CI, so that green stays green, and explores elsewhere."""

import os

from hypothesis import settings

settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
