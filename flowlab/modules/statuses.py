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
    if one.log2 == -math.inf:
        return "zero" if one.size else "ok"
    return "underflow" if one.room < 0 else "ok"


def is_zero(one: Magnitude | None) -> bool:
    return one is not None and one.log2 == -math.inf and one.size > 0


def faint(one: Magnitude | None) -> bool:
    """Whether what a layer makes of this cotangent may be flushed to zero."""
    return one is not None and one.room < _STEP


def mark_flushed(rows: list[dict[str, Any]]) -> None:
    """Of rows in the order of execution, null the norms that are zero since they were flushed.

    Rows hold magnitudes under ``_delta`` and ``_dX``.
    """
    below = False
    for row in reversed(rows):
        delta, dx = row.get("_delta"), row.get("_dX")
        if delta is None:
            continue
        flushed = is_zero(delta) and below
        if not is_zero(delta):
            below = faint(delta)
        if flushed:
            row["delta_log10_norm"] = math.nan
        if is_zero(dx) and (flushed or faint(delta)):
            row["dX_log10_norm"] = math.nan
            flushed = True
        row["_flushed"] = flushed or faint(delta)
        if flushed and row["status"] == "zero":
            row["status"] = "underflow"
