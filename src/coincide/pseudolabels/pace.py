"""Whether Newton's steps on the dual pay, beside the steps of the interior point.

A Newton step reads the predictions once; a step of the interior point works on all that it is
given. Which is cheaper in the end follows from three things. How much they cost each. What is left
to the interior point: the smaller the slope of the dual, the closer to its end it starts, by so
many steps for every tenth. And whether Newton's steps can converge by themselves: with few rows
the jumps of single ones stop them at a gap that the sizes foretell.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, log10

from coincide.pseudolabels.problem import Problem

_SMALL = 10_000  # entries: up to here the interior point on all is quicker than choosing some
_MANY_CLASSES = 2  # to a row: its answer to any multipliers is far from the optimum
_CROWD = 200  # of them at least, so that it pays to solve for the rows instead
_HUGE_CROWD = 30  # to a row: from here on each would have too many candidates
_ENTRIES = 10_000.0  # for which a step of the interior point on all costs two of Newton's
_CHEAP = 0.55  # price of Newton's steps up to which they are tried whatever is asked, with
_MANY_ROWS = 50  # of them to a class at least
_FEW_ROWS = 10  # with no more of them they gain less than a working set from equal multipliers
_NEARLY_RIGHT = 0.05  # share of the mass in the wrong class, up to which they are tried, too
_SHARE_OF_JUMPS = 0.2  # of the gap that single rows leave, that Newton's steps may still reach
_ABSORBING = 4.0  # fairness up to which the multipliers take up most of a jump
_STEPS_OF_A_TENTH = 3.0  # of the interior point on all, that a slope of a tenth saves
_STEPS_ON_CANDIDATES = 7.0  # the same on a working set
_PATIENCE, _PATIENCE_OF_CONVERGING = 1.5, 4.0  # in steps of the interior point
_PATIENCE_TO_CHOOSE, _PATIENCE_TO_CHOOSE_OF_CONVERGING = 4.0, 8.0  # with a working set to choose
_LEAST_SLOPE = 1e-300
LOPSIDED = 0.5  # share of the mass in the wrong class at equal multipliers
_FEW_CLASSES = 100  # then the interior point starts on all at once, with no more classes and
_ROWS_TO_MOVE = 200  # no more rows to a class than these


@dataclass(kw_only=True)
class Pace:
    """Whether to take another Newton step.

    Attributes
    ----------
    whole : bool
        Whether the interior point will run on all entries.
    crowded : bool
        Whether classes are many to a row: then it starts at once, on many candidates.
    at_once : bool
        Whether it is best to start it at once.
    lopsided_at_once : bool
        Whether it is where predictions favor some classes by far.
    climbs : bool
        Whether Newton's steps go on.
    price : float
        Of one of them, in steps of the interior point.
    worth : float
        Of a slope of a tenth, in the same.
    patience : float
        What they may lose, in the same.
    """

    whole: bool = False
    crowded: bool = False
    at_once: bool = False
    lopsided_at_once: bool = False
    climbs: bool = False
    price: float
    worth: float
    patience: float
    _spent: float = 0.0
    _least: float = inf

    def start(self, slope: float, *, even: bool) -> None:
        """Take in the slope at the start: near the optimum Newton's steps are worth a try.

        Where it is steep at equal multipliers most rows have to move, and the way is long.
        """
        self.climbs |= slope <= _NEARLY_RIGHT and not self.crowded
        if even and slope > LOPSIDED and self.lopsided_at_once:
            self.at_once, self.climbs = True, False

    def judge(self, slope: float) -> None:
        """Count a Newton step that led to this slope; stop when they have lost too much.

        A step is worth what it takes off the slope's logarithm.
        """
        self._spent += self.price
        level = self._spent + self.worth * log10(max(slope, _LEAST_SLOPE))
        self._least = min(self._least, level)
        self.climbs = level <= self._least + self.patience


def pace_of(problem: Problem, tol: float) -> Pace:
    """Return how to go about a problem, from its sizes and the gap asked."""
    classes = len(problem.prior)
    entries = problem.entries()
    rows = entries / classes
    # The gap that the jump of a row in every class leaves; two classes alone have no jumps.
    jumps = (
        problem.fairness**2 / (problem.fairness + _ABSORBING) * (classes / rows) ** 2
        if classes > 2
        else 0.0
    )
    converges = tol >= _SHARE_OF_JUMPS * jumps
    if classes >= max(_CROWD, _MANY_CLASSES * rows):
        whole = entries <= _SMALL or classes >= _HUGE_CROWD * rows
        return Pace(
            whole=whole,
            crowded=True,
            at_once=whole,
            price=1.0,
            worth=_STEPS_ON_CANDIDATES,
            patience=_PATIENCE_TO_CHOOSE,
        )
    lopsided_at_once = 2 < classes <= _FEW_CLASSES and rows <= _ROWS_TO_MOVE * classes
    if entries <= _SMALL:
        price = 1 / (1 + entries / _ENTRIES)
        climbs = converges or (price <= _CHEAP and rows > _MANY_ROWS * classes)
        return Pace(
            whole=True,
            at_once=not climbs,
            lopsided_at_once=lopsided_at_once,
            climbs=climbs,
            price=price,
            worth=_STEPS_OF_A_TENTH,
            patience=_PATIENCE_OF_CONVERGING if converges else _PATIENCE,
        )
    return Pace(
        lopsided_at_once=lopsided_at_once,
        climbs=converges or rows > _FEW_ROWS * classes,
        price=1.0,
        worth=_STEPS_ON_CANDIDATES,
        patience=_PATIENCE_TO_CHOOSE_OF_CONVERGING if converges else _PATIENCE_TO_CHOOSE,
    )
