"""Numbers and counts as the report writes them."""

from math import isfinite

import pandas as pd

from flowlab.analysis.comparison import value_words

NOTHING = "–"


def number(value: object, digits: int = 4) -> str:
    """A number in a few digits, – for none; what is no number as it is."""
    if isinstance(value, bool | int | str):
        return str(value)
    if not isinstance(value, float):
        return NOTHING if value is None else str(value)
    text = f"{value:.{digits}g}" if isfinite(value) else str(value)
    return NOTHING if value != value else text.replace("-", "−")


def measured(value: float, low: float, high: float) -> str:
    """A measured value with its interval, where it has one."""
    return number(value) + ("" if pd.isna(low) else f" [{number(low)}, {number(high)}]")


def decades(value: float) -> str:
    """A change of a log-norm."""
    return NOTHING if pd.isna(value) else f"{value:z.2f}".replace("-", "−")


def setting(value: object) -> str:
    """A setting's value as it is typed, – where it does not apply."""
    return NOTHING if pd.isna(value) else value_words(value)


def count(many: int, what: str) -> str:
    """How many of something: "1 run", "1,200 runs"."""
    return f"{many:,} {what}{'s' * (many != 1)}"


def listing(words: dict[str, int]) -> str:
    """Counts in a line: "3 vanishing, 2 kept"."""
    return ", ".join(f"{many:,} {word}" for word, many in words.items())
