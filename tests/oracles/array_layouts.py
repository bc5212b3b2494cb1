"""The same numbers as NumPy and pandas can hold them."""

import numpy as np


def _read_only(array):
    copy = array.copy()
    copy.flags.writeable = False
    return copy


LAYOUTS = {
    "read-only": _read_only,
    "of the other byte order": lambda array: array.astype(array.dtype.newbyteorder("S")),
    "reversed": lambda array: np.ascontiguousarray(array[::-1])[::-1],
    "Fortran's": np.asfortranarray,
    "every second": lambda array: np.repeat(array, 2, axis=0)[::2],
}
