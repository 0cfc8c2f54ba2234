"""How far the norms of a row are true: ok, zero, underflow, nonfinite, lost or unused.

A tensor of zeros may be one of exact zeros, as behind dead units, or one whose entries fell below
the range of their type on the way. It is the latter where the cotangent that it was made from lay
so near the end of the range that a factor takes it out. Such a norm is not known: null.
"""

import math
from collections.abc import Iterable
from typing import Any

from flowlab.modules.magnitudes import Magnitude

# Powers of two that one layer may take from a cotangent: 2^24 above its type's smallest number,
# what a layer makes of it may be flushed to zero.
_STEP = 14
_WORST_LAST = ("ok", "zero", "underflow", "lost", "nonfinite")


def status_of(found: Iterable[Magnitude | None]) -> str:
    """The worst of what is known of these norms by themselves."""
    words = [_own(one) for one in found if one is not None]
    return max(words, key=_WORST_LAST.index, default="ok")


def _own(one: Magnitude) -> str:
    if math.isnan(one.log2) or one.log2 == math.inf:
        return "nonfinite"
    if is_zero(one):
        return "zero"
    return "underflow" if one.room < 0 else "ok"


def is_zero(one: Magnitude | None) -> bool:
    return one is not None and one.log2 == -math.inf and one.size > 0


def faint(one: Magnitude | None) -> bool:
    """Whether what a layer makes of this cotangent may be flushed to zero."""
    return one is not None and one.room < _STEP


def is_dead(activation: Magnitude | None) -> bool:
    """Whether a module gives zeros alone, so that zeros behind it are exact."""
    return is_zero(activation)


def mark_flushed(rows: list[dict[str, Any]]) -> None:
    """Of rows in the order of execution, null the norms that are zero since they were flushed.

    Rows hold magnitudes under ``_activation``, ``_delta`` and ``_dX``; ``_flushed`` is set where a
    gradient of zeros that was made from the row's cotangent may have been flushed.
    """
    below = False  # whether zeros further down may have been flushed
    for row in reversed(rows):
        delta, dx = row.get("_delta"), row.get("_dX")
        if delta is None or not delta.size:
            continue
        flushed = below and is_zero(delta)
        if flushed:
            row["delta_log10_norm"] = math.nan
        if not is_zero(delta):
            below = faint(delta)
        row["_flushed"] = below
        if not is_zero(delta) and is_dead(row.get("_activation")):
            below = False
        if is_zero(dx) and below:
            row["dX_log10_norm"] = math.nan
            flushed = True
        elif dx is not None and not is_zero(dx):
            below = faint(dx)
        if flushed and row["status"] == "zero":
            row["status"] = "underflow"
