"""Training on images: its parts put together, its settings, its model on disk.

:mod:`~coincide.training.images.run` has the training.
"""

from coincide.training.images.model import ImageModel, load_image_model, save_image_model
from coincide.training.images.run import ImageRun, ImageTraining
from coincide.training.images.selection import Candidate, choose, compare_settings

__all__ = [
    "Candidate",
    "ImageModel",
    "ImageRun",
    "ImageTraining",
    "choose",
    "compare_settings",
    "load_image_model",
    "save_image_model",
]
