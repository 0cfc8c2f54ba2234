"""How far the norms of a row are true: ok, zero, underflow, nonfinite, lost or unused.

A tensor of zeros may be one of exact zeros, as behind dead units, or one whose entries fell below
the range of their type on the way. It is the latter where what it was made from, the cotangent
above or the activation before, lay so near the end of the range that a factor takes it out. Such a
norm is not known: null, like one whose entries have no digits left.
"""

import math
from collections.abc import Iterable
from typing import Any

from flowlab.modules.magnitudes import Magnitude
from flowlab.modules.norms import word_of

# Powers of two that one layer may take from a cotangent: 2^24 above its type's smallest number,
# what a layer makes of it may be flushed to zero.
_STEP = 14
# Below 2^4 times the smallest number rounding is more than a thousandth of a norm.
_BLURRED = -6
_WORST_LAST = ("ok", "zero", "underflow", "lost", "nonfinite")


def status_of(found: Iterable[Magnitude | None]) -> str:
    """The worst of what is known of these norms by themselves."""
    words = [word_of(one.log2, one.room) for one in found if one is not None and one.size]
    return max(words, key=_WORST_LAST.index, default="ok")


def is_zero(one: Magnitude | None) -> bool:
    return one is not None and one.log2 == -math.inf and one.size > 0


def faint(one: Magnitude | None) -> bool:
    """Whether what a layer makes of this cotangent may be flushed to zero."""
    return one is not None and one.room < _STEP


def value_of(one: Magnitude) -> float:
    """log10 of the norm; NaN where entries are so near the end of their range that it is untrue."""
    return math.nan if math.isfinite(one.log2) and one.room < _BLURRED else one.log10


def mark_flushed(rows: list[dict[str, Any]]) -> None:
    """Of rows in the order of execution, null the norms that are zero since they were flushed.

    Rows hold magnitudes under ``_activation``, ``_delta`` and ``_dX``; ``_flushed`` is set where a
    gradient of zeros that was made from the row's cotangent may have been flushed.
    """
    _mark_forward(rows)
    _mark_backward(rows)


def _mark_forward(rows: list[dict[str, Any]]) -> None:
    below = False  # whether zeros further up may have been flushed
    for row in rows:
        activation = row.get("_activation")
        if activation is None or not activation.size:
            continue
        if not is_zero(activation):
            below = faint(activation)
        elif below:
            row["activation_log10_norm"] = math.nan
            row["status"] = "underflow" if row["status"] == "zero" else row["status"]


def _mark_backward(rows: list[dict[str, Any]]) -> None:
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
        if not is_zero(delta) and is_zero(row.get("_activation")):
            below = False  # zeros behind dead units are exact
        if is_zero(dx) and below:
            row["dX_log10_norm"] = math.nan
            flushed = True
        elif dx is not None and not is_zero(dx):
            below = faint(dx)
        if flushed and row["status"] == "zero":
            row["status"] = "underflow"
