"""The phase plane: the gradient's rate over the variances of weights and biases."""

from collections.abc import Sequence

import pandas as pd

from flowlab.theory.mean_field import chi, q_fixed_point


def phase_plane(
    activation: str, sigma_w2: Sequence[float], sigma_b2: Sequence[float]
) -> pd.DataFrame:
    """chi at the variance's fixed point over a grid: columns sigma_w2, sigma_b2, chi.

    Below 1 the phase is ordered and gradients vanish, above 1 it is chaotic and they explode
    (Poole et al. 2016); the gradient's depth scale is 1/|log chi| layers (Schoenholz et al. 2017).
    Raises InputError for an unknown activation or a negative variance.
    """
    rows = [
        (w, b, chi(activation, q_fixed_point(activation, w, b), w))
        for b in sigma_b2
        for w in sigma_w2
    ]
    return pd.DataFrame(rows, columns=["sigma_w2", "sigma_b2", "chi"])
