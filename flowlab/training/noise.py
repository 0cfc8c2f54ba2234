"""The gradient noise scale trΣ/|G|² of a whole network (McCandlish et al. 2018).

|G|² is the squared norm of the mean gradient and trΣ the trace of the covariance of the examples'
gradients, both estimated without bias. All norms are log2, since gradients may lie beyond floats.
"""

from collections.abc import Sequence

import numpy as np

from flowlab.measurement.rows import Row


def exact(
    values: np.ndarray,
    lost: np.ndarray,
    rows: Sequence[Sequence[Row]],
    at: dict[str, int],
    n: int,
) -> np.ndarray:
    """B_s (S,) of a batch of ``n`` from the norms of its examples' gradients.

    ``values`` (S, rows, columns) are log2 norms of the network's rows, ``at`` the columns by name,
    and ``lost`` (S, rows) says where a norm is null because it is below rounding: such gradients
    add nothing. With D = Σ‖g_i‖² and T = ‖Σ g_i‖², |G|² = (T - D)/(n(n - 1)) and trΣ = D/n - |G|².
    NaN where a gradient has no norms of examples, and where |G|² is not above 0.
    """
    total, diagonal = [], []
    for k, row in enumerate(row for block in rows for row in block):
        for _, column, of_examples in row.gradients:
            pair = [values[:, k, at[name]] for name in (column, of_examples)]
            gone = lost[:, k] & np.isnan(pair[0])
            for norms, own in zip((total, diagonal), pair, strict=True):
                norms.append(np.where(gone, -np.inf, own))
    if n < 2 or not total:
        return np.full(len(values), np.nan)
    T, D = _ratio(np.stack(total, axis=1), np.stack(diagonal, axis=1))
    square = (T - D) / (n * (n - 1))
    return _scale(square, D / n - square)


def two_batches(
    small: np.ndarray, big: np.ndarray, n_small: int, n_big: int, mean: bool
) -> np.ndarray:
    """B_s (S,) from the log2 norms (S,) of the gradients of two batches (ibid., appendix A.1).

    ``mean`` says that gradients are means over the batch rather than sums.
    """
    small, big = (
        norms - (0.0 if mean else np.log2(n)) for norms, n in ((small, n_small), (big, n_big))
    )
    g_small, g_big = _ratio(small[:, None], big[:, None])
    square = (n_big * g_big - n_small * g_small) / (n_big - n_small)
    return _scale(square, (g_small - g_big) / (1 / n_small - 1 / n_big))


def _ratio(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sums of squares (S,) of two sets of log2 norms (S, k), in one unit for each network."""
    unit = np.maximum(first.max(axis=1), second.max(axis=1))
    unit = np.where(np.isfinite(unit), unit, 0.0)[:, None]
    with np.errstate(over="ignore"):
        return tuple(np.exp2(2 * (norms - unit)).sum(axis=1) for norms in (first, second))


def _scale(square: np.ndarray, trace: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((square > 0) & np.isfinite(trace), trace / square, np.nan)
