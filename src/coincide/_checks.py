"""Sentences for bad input, in one form everywhere.

Every message names the parameter, its owner, what it must be and what came instead, in
scikit-learn's form. Nothing is ever clipped, dropped or cast to make it fit.
"""

from __future__ import annotations

import numbers
from collections.abc import Collection
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ImageShape: TypeAlias = tuple[int, int, int]
"""Channels, height, width."""

Vector: TypeAlias = NDArray[np.float64]

UNKNOWN = -1  # the class of a row that nobody has labeled


def parameter_message(name: str, owner: str, expected: str, got: object, hint: str = "") -> str:
    """Return the sentence, ``The 'name' parameter of owner must be ...``, and a hint after it."""
    sentence = f"The {name!r} parameter of {owner} must be {expected}. Got {got!r} instead."
    return f"{sentence} {hint}".rstrip()


def check_real(
    value: object,
    name: str,
    owner: str,
    *,
    low: float = 0.0,
    open_low: bool = False,
    below: float | None = None,
) -> float:
    """Return ``value`` as a float, or refuse it: a finite number at or above ``low``."""
    expected = f"a finite number {'>' if open_low else '>='} {low:g}"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(parameter_message(name, owner, expected, value))
    number = float(value)
    if not (low < number < float("inf") or (number == low and not open_low)):
        raise ValueError(parameter_message(name, owner, expected, value))
    if below is not None and number >= below:
        raise ValueError(parameter_message(name, owner, f"a number below {below:g}", value))
    return number


def check_integer(value: object, name: str, owner: str, *, low: int) -> int:
    """Return ``value`` as an int, or refuse it: a whole number at or above ``low``."""
    expected = f"an integer >= {low}"
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(parameter_message(name, owner, expected, value))
    if int(value) < low:
        raise ValueError(parameter_message(name, owner, expected, value))
    return int(value)


def check_option(value: object, name: str, owner: str, options: Collection[str]) -> str:
    """Return ``value``, or refuse it: one of ``options``."""
    if not isinstance(value, str) or value not in options:
        listed = ", ".join(repr(option) for option in options)
        raise ValueError(parameter_message(name, owner, f"one of {listed}", value))
    return value


def sum_tolerance(dtype: torch.dtype) -> float:
    """How far a row of probabilities may sum from 1: what rounding to ``dtype`` explains."""
    return 2e-2 if dtype in (torch.bfloat16, torch.float16) else 1e-4


def check_probability_rows(rows: Tensor, name: str, owner: str) -> None:
    """Refuse rows that are not distributions, naming the first bad one.

    Parameters
    ----------
    rows : Tensor of shape (M, K)
        Each row must be finite, non-negative and sum to 1 within :func:`sum_tolerance`.
    """
    flat = rows.detach()
    total = flat.sum(-1, dtype=torch.promote_types(flat.dtype, torch.float32))
    # Written so that NaN fails every comparison.
    bad = ~((flat >= 0).all(-1) & ((total - 1).abs() <= sum_tolerance(flat.dtype)))
    if not bool(bad.any()):
        return
    row = int(bad.nonzero()[0, 0])
    values = flat[row]
    if not bool(torch.isfinite(values).all()):
        found = "has NaN or infinite entries"
    elif bool((values < 0).any()):
        found = f"has a negative entry, {float(values.min()):g}"
    else:
        found = f"sums to {float(total[row]):g}"
    raise ValueError(
        f"The {name!r} parameter of {owner} must hold probabilities in every row"
        f" (non-negative, summing to 1). Row {row} {found}"
        f" ({int(bad.sum())} of {len(flat)} rows are not probabilities)."
    )


def tensor_of(values: object) -> Tensor:
    """Return a tensor of an array as it is stored: in any byte order, reversed, or read-only."""
    array = np.asarray(values)
    as_torch_has_it = array.dtype.isnative and all(stride >= 0 for stride in array.strides)
    if not (as_torch_has_it and array.flags.writeable):
        array = np.array(array, array.dtype.newbyteorder("="), order="C")
    return torch.as_tensor(array)


def real_tensor(value: object, name: str, owner: str) -> Tensor:
    """Return a floating tensor that carries no graph; lists and NumPy arrays become one."""
    if isinstance(value, Tensor):
        tensor = value.detach()
    else:
        array = np.asarray(value)
        if array.dtype.kind not in "fiu":
            expected = "an array of real numbers"
            raise TypeError(parameter_message(name, owner, expected, str(array.dtype)))
        tensor = tensor_of(array)
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(
            parameter_message(name, owner, "an array of real numbers", str(tensor.dtype))
        )
    return tensor if tensor.is_floating_point() else tensor.double()


def check_prior(prior: object, n_classes: int, owner: str) -> Vector:
    """Return the prior as float64, uniform by default, or refuse what is no distribution."""
    if prior is None:
        return np.full(n_classes, 1 / n_classes)
    vector = real_tensor(prior, "prior", owner).cpu()
    if vector.shape != (n_classes,):
        expected = f"of shape ({n_classes},), one entry a class"
        raise ValueError(parameter_message("prior", owner, expected, tuple(vector.shape)))
    check_probability_rows(vector[None], "prior", owner)
    double: Vector = vector.double().numpy()
    return np.asarray(double / double.sum())


def check_weights(
    weights: object, n_rows: int, owner: str, device: torch.device | str = "cpu"
) -> Tensor | None:
    """Return row weights as float64, or refuse negative, non-finite or all-zero ones."""
    if weights is None:
        return None
    vector = real_tensor(weights, "sample_weight", owner).double()
    if vector.shape != (n_rows,):
        expected = f"of shape ({n_rows},), one weight a row"
        raise ValueError(parameter_message("sample_weight", owner, expected, tuple(vector.shape)))
    if not bool((torch.isfinite(vector) & (vector >= 0)).all()) or not bool(vector.any()):
        expected = "finite, non-negative and not all zero"
        raise ValueError(f"The 'sample_weight' parameter of {owner} must be {expected}.")
    return vector.to(device)


def find_device(name: str, owner: str) -> torch.device:
    """Return the device of that name; ``"auto"`` takes a GPU if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, TypeError, AssertionError) as error:
        expected = "'auto' or a device that is there, such as 'cpu' or 'cuda'"
        raise ValueError(parameter_message("device", owner, expected, name)) from error
    return device


def check_image_shape(image_shape: object, owner: str) -> ImageShape:
    """Return channels, height and width as a tuple of ints, or refuse them."""
    if not isinstance(image_shape, tuple | list) or len(image_shape) != 3:
        expected = "three integers: channels, height, width"
        raise ValueError(parameter_message("image_shape", owner, expected, image_shape))
    channels, height, width = (
        check_integer(size, "image_shape", owner, low=1) for size in image_shape
    )
    return channels, height, width
