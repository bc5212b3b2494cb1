"""A trained head, what it is worth, and which one to keep."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from coincide._checks import Vector
from coincide.cluster.constraints import OWNER
from coincide.pseudolabels.problem import Certificate
from coincide.representations import Landmarks, Representation
from coincide.training.history import EpochRecord

# Share of the landmarks' evidence that is enough for a head on plain rows. Settled on the four
# embeddings of README, with their labels in view.
SIMPLER = 0.95


@dataclass(frozen=True)
class Candidate:
    """A trained head, and what it is worth."""

    network: nn.Module
    representation: Representation
    prior: Vector
    fairness: float
    records: list[EpochRecord]
    certificate: Certificate
    evidence: float
    origin: str
    seed: int

    @property
    def kind(self) -> str:
        """``"landmarks"`` or ``"scaled"``."""
        return "landmarks" if isinstance(self.representation, Landmarks) else "scaled"

    def told(self) -> dict[str, Any]:
        """Return what a report says of it."""
        return {
            "seed": self.seed,
            "representation": self.kind,
            "evidence": self.evidence,
            "objective": self.certificate.objective,
        }


def best_of(tried: list[Candidate]) -> Candidate:
    """Return the candidate with the most evidence; plain rows, if that is nearly as much.

    A training that diverged has an objective that is no number, and loses.
    """

    def worth(candidate: Candidate) -> tuple[float, float]:
        objective = candidate.certificate.objective
        if math.isnan(objective):
            return -1.0, 0.0
        return candidate.evidence, -objective

    best = max(tried, key=worth)
    plain = [candidate for candidate in tried if candidate.kind == "scaled"]
    if plain:
        simpler = max(plain, key=worth)
        if worth(simpler)[0] >= SIMPLER * worth(best)[0]:
            best = simpler
    if math.isnan(best.certificate.objective):
        raise ValueError(
            f"The training of {OWNER} diverged: the predictions are not numbers. Try a smaller"
            " learning_rate."
        )
    return best
