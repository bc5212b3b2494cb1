"""The training loop, and what configures it."""

from __future__ import annotations

from coincide.training.collapse import signs_of_collapse
from coincide.training.config import TrainingConfig
from coincide.training.loop import EpochRecord, Trainer

__all__ = ["EpochRecord", "Trainer", "TrainingConfig", "signs_of_collapse"]
