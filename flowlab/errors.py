"""The one exception that stands for bad input, and the one warning that users should know of."""

import math
from collections.abc import Iterable
from difflib import get_close_matches

MOST = 2**31 - 1  # of what is counted
FINEST, LARGEST = 1e-150, 1e150  # of numbers whose squares are taken


class InputError(ValueError):
    """Bad input, described in one line: the thing, the rule and what was received."""


class Notice(UserWarning):
    """What changes no number and costs something, such as time: one line."""


def unknown(what: str, received: str, known: Iterable[str]) -> InputError:
    """An error for a name that is not one of ``known``, suggesting the nearest."""
    known = list(known)
    near = get_close_matches(str(received), known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    if len(known) > 20:
        some = hint or f" among {len(known)}, such as {', '.join(known[:5])}"
        return InputError(f"{what} must be a known name; got {received}{some}")
    return InputError(f"{what} must be one of {', '.join(known)}; got {received}{hint}")


def check_count(what: str, value: int) -> None:
    """Raise InputError unless the value is from 1 to 2^31 - 1."""
    if value < 1:
        raise InputError(f"{what} must be at least 1; got {value}")
    if value > MOST:
        raise InputError(f"{what} must be at most {MOST}; got {value}")


def check_positive(what: str, value: float) -> None:
    """Raise InputError unless the value is a finite number above 0."""
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{what} must be a finite number above 0; got {value}")


def check_scale(what: str, value: float) -> None:
    """Raise InputError unless the value is above 0, and its square is in float64's range."""
    check_positive(what, value)
    if not FINEST <= value <= LARGEST:
        raise InputError(f"{what} must be from {FINEST:g} to {LARGEST:g}; got {value:g}")
