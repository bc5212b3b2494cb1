"""Soft pseudo-labels: one convex problem, several solvers, every result certified."""

from __future__ import annotations

from coincide.pseudolabels.active_set import ActiveSet
from coincide.pseudolabels.em import ExpectationMaximization
from coincide.pseudolabels.interior_point import InteriorPoint
from coincide.pseudolabels.objectives import OBJECTIVES
from coincide.pseudolabels.projected_gradient import ProjectedGradient
from coincide.pseudolabels.rules import ClosedForm, Sinkhorn
from coincide.pseudolabels.solve import SOLVERS, PseudoLabels, solve_pseudo_labels

__all__ = [
    "OBJECTIVES",
    "SOLVERS",
    "ActiveSet",
    "ClosedForm",
    "ExpectationMaximization",
    "InteriorPoint",
    "ProjectedGradient",
    "PseudoLabels",
    "Sinkhorn",
    "solve_pseudo_labels",
]
