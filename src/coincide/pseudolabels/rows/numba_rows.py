"""The passes over the rows compiled by Numba, on CPU tensors: ranges of rows run on threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coincide._threads import BlockedRows
from coincide.pseudolabels.rows.contract import (
    Extents,
    Factors,
    Prediction,
    StepArrays,
    Vector,
)
from coincide.pseudolabels.rows.numba_dual import (
    NumbaMinimizers,
    answer_curvature,
    laplacian,
    near_candidates,
    sum_labels,
    summed_answer,
)
from coincide.pseudolabels.rows.numba_newton import (
    SCALARS,
    add_products,
    advance,
    correct,
    factor,
    predict,
)
from coincide.pseudolabels.rows.sums import summed_labels
from coincide.pseudolabels.rows.torch_rows import TorchPasses

Array = NDArray[Any]

# Of the rows that go into a Gram matrix at once: enough of them for BLAS, few enough for the cache.
_ENTRIES_PER_PRODUCT = 1 << 17
_LEAST_ROWS_PER_PRODUCT = 512


class NumbaRows:
    """The passes of the interior point, compiled, on CPU tensors; arguments as of TorchRows."""

    def __init__(
        self,
        rows: Tensor,
        weights: Tensor,
        n_classes: int,
        *,
        collision: bool,
        classes: Tensor | None = None,
    ) -> None:
        self._rows: Array = rows.contiguous().numpy()
        self._weights: Array = weights.double().numpy()
        self._collision = collision
        self._n_classes = n_classes
        n_rows, self._width = rows.shape
        self._lead = np.zeros(n_rows, np.int64)
        self._scalars = np.empty((SCALARS, n_rows))
        self._affine = self._shift = np.zeros(n_classes)
        self._target = 0.0
        self._work = self._products = BlockedRows(n_rows, self._width)
        self._block = self._work.block
        # Unsigned indices need no test for negative ones.
        self._classes: Array = np.zeros((0, 0), np.uint32)
        if classes is not None:
            self._classes = classes.numpy().T.astype(np.uint32, order="C")
            # A thread pays where it has more products to add than a K×K sum of its own has entries.
            many = n_classes**2 <= n_rows * self._width**2
            self._products = BlockedRows(n_rows, self._width**2 if many else 1)

    def load(self, labels: Tensor, slacks: Tensor) -> StepArrays:
        """Take the first iterate; float64 arrays that lie entry by entry are not copied."""
        self._y, self._zeta = (
            np.ascontiguousarray(array.double().numpy().T) for array in (labels, slacks)
        )
        self._arrays = StepArrays(torch.from_numpy(self._y).T, torch.from_numpy(self._zeta).T)
        return self._arrays

    def factor(self) -> Factors:
        """Factor every row's Hessian and sum what the coupling needs."""
        vectors = np.zeros((self._products.count, 2, self._n_classes))
        whole = not len(self._classes)
        size = max(_LEAST_ROWS_PER_PRODUCT, _ENTRIES_PER_PRODUCT // self._width)

        def work(number: int, rows: tuple[int, int]) -> tuple[float, Array]:
            gram = np.zeros((self._n_classes, self._n_classes))
            entries = self._width * (1 + self._collision)
            room = np.empty(entries * min(size, rows[1] - rows[0]))
            complementarity = 0.0
            for first in range(*rows, size):
                last = min(first + size, rows[1])
                product = room[: entries * (last - first)].reshape(self._width, -1)
                complementarity += factor(
                    (first, last), self._rows, self._weights, self._y, self._zeta, self._classes,
                    self._collision, self._block, self._lead, self._scalars, product,
                    vectors[number, 0], vectors[number, 1],
                )  # fmt: skip
                if whole:
                    gram += product @ product.T
                else:
                    add_products(product, self._classes, first, gram)
            return complementarity, gram

        parts = self._products.each(work)
        gram = self._products.summed(part for _, part in parts)
        gradient, mean_label = self._products.summed(vectors)
        return Factors(gram, gradient, mean_label, sum(part for part, _ in parts))

    def predict(self, shift: Vector) -> Prediction:
        """Find the affine direction for the right-hand side ``g + shift``."""
        # Constants are free and cost digits.
        self._affine = shift - shift.max()
        vectors = np.zeros((self._work.count, 2, self._n_classes))
        sums = np.empty((self._work.count, 4))

        def work(number: int, rows: tuple[int, int]) -> None:
            predict(
                rows, self._rows, self._weights, self._y, self._zeta, self._classes,
                self._collision, self._block, self._lead, self._scalars, self._affine,
                vectors[number, 0], vectors[number, 1], sums[number],
            )  # fmt: skip

        self._work.each(work)
        low, high, first, second = zip(*sums.tolist(), strict=True)
        center, correction = self._work.summed(vectors)
        return Prediction(min(low), max(high), sum(first), sum(second), center, correction)

    def correct(self, shift: Vector, target: float) -> Extents:
        """Find the corrected direction, centered on ``y ζ = target``."""
        self._shift, self._target = shift - shift.max(), target
        sums = np.empty((self._work.count, 2))

        def work(number: int, rows: tuple[int, int]) -> None:
            correct(
                rows, self._rows, self._y, self._zeta, self._classes, self._collision,
                self._block, self._lead, self._scalars, self._affine, self._shift, target,
                sums[number],
            )  # fmt: skip

        self._work.each(work)
        return Extents(*map(min, zip(*sums.tolist(), strict=True)))

    def advance(self, primal: float, dual: float) -> StepArrays:
        """Take steps of these lengths along the corrected direction, in place."""

        def work(number: int, rows: tuple[int, int]) -> None:
            del number
            advance(
                rows, self._rows, self._y, self._zeta, self._classes, self._block,
                self._scalars, self._affine, self._shift, self._target, primal, dual,
            )  # fmt: skip

        self._work.each(work)
        return self._arrays


class NumbaPasses(TorchPasses):
    """All passes, compiled."""

    name = "numba"
    newton_rows = NumbaRows
    minimizers = NumbaMinimizers
    summed_answer = staticmethod(summed_answer)
    answer_curvature = staticmethod(answer_curvature)
    laplacian = staticmethod(laplacian)
    near_candidates = staticmethod(near_candidates)

    @staticmethod
    def summed_labels(
        probs: Tensor, weights: Tensor, labels: Tensor, *, collision: bool
    ) -> tuple[Vector, Vector]:
        """Return the mean row loss and the mean label; Shannon's loss is not compiled."""
        if not collision:
            return summed_labels(probs, weights, labels, collision=False)
        work = BlockedRows(*probs.shape)
        p, y, w = (tensor.numpy() for tensor in (probs, labels, weights.double()))
        means = np.zeros((work.count, probs.shape[1]))
        losses = work.each(lambda n, rows: sum_labels(rows, p, y, w, work.block, means[n]))
        return np.array(sum(losses)), work.summed(means)
