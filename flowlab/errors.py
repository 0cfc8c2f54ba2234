"""The one exception that stands for bad input, and the one warning that users should know of."""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Bad input, told in one line: the thing, the rule and what was received."""


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
