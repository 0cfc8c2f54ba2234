"""Rates that theory gives in closed form, as tables for figures: decades per layer going backward.

A rate of the squared norm is log10(rate)/2 decades of the norm.
"""

from collections.abc import Sequence
from math import log10

import pandas as pd

from flowlab.theory.convolution import border_rate
from flowlab.theory.normalization import batch_norm_rate


def batch_norm_rates(activations: Sequence[str], batch_sizes: Sequence[int]) -> pd.DataFrame:
    """A plain net with batch norm (`batch_norm_rate`): columns activation, batch_size, rate.

    Batches below 4, where the mean rate is infinite, are left out. Raises InputError for an unknown
    activation.
    """
    rows = [
        (activation, batch, log10(batch_norm_rate(activation, batch)) / 2)
        for activation in activations
        for batch in batch_sizes
        if batch >= 4
    ]
    return pd.DataFrame(rows, columns=["activation", "batch_size", "rate"])


def border_rates(side: int, kernel: int) -> pd.DataFrame:
    """Square images of ``side`` in a critical net (`border_rate`): columns padding, rate.

    Zeros lose at the border in every layer, deep in the net; circular padding loses nothing.
    Raises InputError for an even kernel.
    """
    lost = log10(border_rate((side, side), kernel)) / 2
    return pd.DataFrame({"padding": ["circular", "zeros"], "rate": [0.0, lost]})
