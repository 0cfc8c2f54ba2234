"""The one exception that stands for bad input."""

from collections.abc import Iterable
from difflib import get_close_matches
from math import isfinite


class InputError(ValueError):
    """Bad input, told in one line: the thing, the rule and what was received."""


def positive(name: str, value: float) -> float:
    """``value``, if it is a finite number above 0; raises InputError else."""
    if not (isfinite(value) and value > 0):
        raise InputError(f"{name} must be a finite number above 0; got {value}")
    return value


def unknown(what: str, received: str, known: Iterable[str]) -> InputError:
    """An error for a name that is not one of ``known``, suggesting the nearest."""
    known = list(known)
    near = get_close_matches(str(received), known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    if len(known) > 20:
        some = hint or f" among {len(known)}, such as {', '.join(known[:5])}"
        return InputError(f"{what} must be a known name; got {received}{some}")
    return InputError(f"{what} must be one of {', '.join(known)}; got {received}{hint}")
