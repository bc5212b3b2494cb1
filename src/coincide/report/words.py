"""Numbers as the page says them."""

from __future__ import annotations

import math

from coincide.report.run_folder import number

MISSING = "–"


def whole(value: float) -> str:
    """Return a count with its thousands apart.

    >>> whole(1797)
    '1,797'
    """
    return f"{int(value):,}"


def counted(value: float, noun: str) -> str:
    """Return a count with its noun, in the plural unless it is one.

    >>> counted(1, "row"), counted(1797, "row")
    ('1 row', '1,797 rows')
    """
    return f"{whole(value)} {noun}" + ("" if int(value) == 1 else "s")


def compact(value: float) -> str:
    """Return a count short enough for an axis.

    >>> compact(950), compact(12_500), compact(3_000_000)
    ('950', '12.5k', '3M')
    """
    for unit, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.4g}{sign}"
    return f"{value:.4g}"


def decimal(value: object, digits: int = 4) -> str:
    """Return a number to so many significant digits, a dash if there is none.

    >>> decimal(2.302585), decimal(4.2e-09), decimal(None)
    ('2.303', '4.2e-09', '–')
    """
    as_float = number(value)
    return f"{as_float:.{digits}g}" if math.isfinite(as_float) else MISSING


def share(value: object) -> str:
    """Return a number between 0 and 1 to three places, a dash if there is none.

    >>> share(0.75), share(-1e-9), share(None)
    ('0.750', '0.000', '–')
    """
    as_float = number(value)
    # Adding zero turns the -0.0 of a rounded-off negative into 0.0.
    return f"{round(as_float, 3) + 0.0:.3f}" if math.isfinite(as_float) else MISSING


def seconds(value: object) -> str:
    """Return a duration in seconds, minutes or hours, a dash if there is none.

    >>> seconds(0.034), seconds(8.25), seconds(75), seconds(7380)
    ('0.034 s', '8.2 s', '1 min 15 s', '2 h 3 min')
    """
    as_float = number(value)
    if not math.isfinite(as_float):
        return MISSING
    if as_float < 59.5:
        return f"{as_float:.2g} s" if as_float < 10 else f"{as_float:.0f} s"
    minutes, rest = divmod(round(as_float), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
