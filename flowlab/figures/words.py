"""Values and changes as figures write them."""

from collections.abc import Iterable
from math import isclose, sqrt

import numpy as np
import pandas as pd

# Values that formulas say shorter than their names.
SHORT = {"inverse_sqrt_depth": "1/√L", "inverse_depth": "1/L"}
MOST = 3  # names in a list


def number(value: float) -> str:
    """A number in at most four digits, roots of 2 and 3 as roots: √2, 1/√2."""
    for n in (2, 3):
        if isclose(value, sqrt(n), rel_tol=1e-6):
            return f"√{n}"
        if isclose(value, 1 / sqrt(n), rel_tol=1e-6):
            return f"1/√{n}"
    return f"{value:.4g}".replace("-", "−") if abs(value) < 1e5 else f"{value:.6g}"


def bare(value: object) -> str:
    """A value without its setting's name."""
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return "null"
    if isinstance(value, bool | np.bool_):
        return str(value).lower()
    if isinstance(value, int | float | np.integer | np.floating):
        return number(value)
    return SHORT.get(str(value), str(value))


def said(setting: str, value: object) -> str:
    """A value so that it is understood alone: he, but skip=none and gain=0.8."""
    text = bare(value)
    alone = isinstance(value, str) and value != "none"
    return text if alone else f"{setting}={text}"


def listed(names: Iterable[str], most: int = MOST) -> str:
    """ "a, b and c"; of more than ``most`` names the first and how many more."""
    names = list(names)
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} more"]
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def decades(size: float) -> str:
    """The size of a change: "30 decades", "0.40 decades"."""
    size = abs(size)
    digits = 0 if size >= 9.95 else 1 if size >= 0.95 else 2
    text = f"{size:.{digits}f}"
    return f"{text} decade{'s' * (text not in ('1', '1.0'))}"


def moved(change: float) -> str:
    """A change of the gradient's norm in words: "loses 30 decades"."""
    return f"{'loses' if change < 0 else 'gains'} {decades(change)}"
