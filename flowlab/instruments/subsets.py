"""What would a smaller batch have measured? Gradients of subsets of one batch, by themselves.

One forward and backward pass of ``settings.batch_size`` examples gives the gradient of any subset S
of them, because without coupling the cotangents of one example do not depend on the others: under
``sum`` it is X_Sᵀ δ_S for a linear layer's W and the sum of δ_S for its b, with tokens as further
rows. So the batch law (:mod:`flowlab.analysis.batch_law`) can be compared with subsets one by one
(:func:`direct`), read off the examples' Gram matrix (:func:`gram`), and what people estimate in its
place be judged by it (:func:`estimators`). All results belong to examples under ``sum``; linear
layers only.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import combinations
from math import comb, sqrt

import numpy as np
import pandas as pd

from flowlab.analysis.batch_law import NO_SIGNAL, PARAMETERS, ZERO, check
from flowlab.errors import InputError
from flowlab.layers import Linear
from flowlab.measurement.ensemble import measure
from flowlab.measurement.norms import Operation
from flowlab.networks import build
from flowlab.numerics.scale import LOG10_2
from flowlab.settings import Settings

ORDER = ["seed", "layer", "op", "parameter"]
TWO_BATCHES, PER_EXAMPLE = "two batches", "per-example variance"


def direct(
    settings: Settings, batch_sizes: Iterable[int], subsets: int = 64, layers=None
) -> pd.DataFrame:
    """‖Σ_{i∈S} g_i‖² measured over random subsets S, beside the weights of each seed.

    Gradients are formed from each subset's rows, ``subsets`` of them for every batch size (all
    where there are no more), drawn from the network's seed. One row per (seed, layer, op,
    parameter, batch_size): ``log10_norm`` is log10 of the root of their mean, ``relative_se`` the
    standard error of that mean over subsets, relative to it (0 where all were taken, NaN from one
    of several), ``subsets`` how many.
    Raises InputError for batch sizes outside 1..n and for fewer than one subset.
    """
    n = settings.batch_size
    check(batch_sizes := list(batch_sizes), settings.reduction, n)
    if subsets < 1:
        raise InputError(f"subsets must be at least 1; got {subsets}")

    def squares(seed, x, dy):
        random = np.random.default_rng([seed, 1])
        measured = {parameter: {} for parameter in PARAMETERS}
        for size in batch_sizes:
            chosen = _subsets(n, size, subsets, random)
            pairs = [(x[rows], dy[rows]) for rows in chosen]
            measured["W"][size] = [np.square(_total(x, dy)).sum() for x, dy in pairs]
            measured["b"][size] = [np.square(dy.sum(axis=(0, 1))).sum() for _, dy in pairs]
        return measured

    rows = []
    for key, unit, found in _visit(settings, squares, layers):
        for size, values in found.items():
            taken, mean = len(values), np.mean(values)
            spread = np.std(values, ddof=1) / mean if taken > 1 and mean > 0 else np.nan
            if taken == comb(n, size):
                spread = 0.0
            with np.errstate(divide="ignore"):
                log10_norm = unit + np.log10(mean) / 2
            line = {"batch_size": size, "log10_norm": log10_norm}
            rows.append(key | line | {"relative_se": spread / sqrt(taken), "subsets": taken})
    return pd.DataFrame(rows)


def gram(settings: Settings, layer: int, parameter: str = "W") -> np.ndarray:
    """K_ij = ⟨g_i, g_j⟩ in units of its mean diagonal: (seeds, n, n), of the layer's last op.

    For a linear layer (x_i·x_j)(δ_i·δ_j), and δ_i·δ_j for its bias; with tokens the sum of that
    over all pairs of a token of i and one of j.
    """
    if parameter not in PARAMETERS:
        raise InputError(f"parameter must be W or b; got {parameter}")
    _check_layer(settings, layer)
    found = _visit(settings, lambda _, x, dy: _grams(x, dy), [layer])
    last = {key["seed"]: K for key, _, K in found if key["parameter"] == parameter}
    return np.stack([K / np.diag(K).mean() for K in last.values()])


def estimators(
    settings: Settings,
    small: int = 16,
    big: int = 256,
    draws: Iterable[int] = (1, 4, 16),
    repeats: int = 200,
    layers=None,
) -> pd.DataFrame:
    """Estimators of the noise scale that people use, against the exact value of the n examples.

    ``two batches`` (McCandlish et al. 2018, appendix A.1) has the squared norms of the mean
    gradients of ``small`` and ``big`` examples,

        |G|² ≈ (B_big‖g_big‖² − B_small‖g_small‖²)/(B_big − B_small),
        trΣ ≈ (‖g_small‖² − ‖g_big‖²)/(1/B_small − 1/B_big),

    and ``per-example variance`` the gradients of ``big`` examples one by one. Both are averaged
    over ``draws`` random batches before the ratio is taken, ``repeats`` times. One row per (seed,
    layer, op, parameter, estimator, draws): the cost in ``passes``, ``examples`` and ``gflop`` (6
    per weight and example, forward and backward), ``noise_scale`` exact, bias and spread (one
    standard deviation) of both estimates relative to the exact value, median and the 16 % and 84 %
    quantiles of the estimated B_s, and the share of repeats where it is ``undefined`` (|G|² ≤ 0).
    Where the exact |G|² is not above 0, ``noise_scale`` and what is relative to it are null, and
    ``note`` says so.

    Raises InputError unless 1 ≤ small < big ≤ n and draws and repeats are positive.
    """
    n, draws = settings.batch_size, list(draws)
    if not 1 <= small < big <= n:
        raise InputError(f"batches must have 1 <= small < big <= {n} examples; got {small}, {big}")
    if repeats < 2 or not draws or min(draws) < 1:
        raise InputError(f"repeats must be at least 2 and draws 1; got {repeats} and {draws}")
    weights = _weights(settings)

    def run(seed, x, dy):
        found = {}
        for parameter, K in _grams(x, dy).items():
            random = np.random.default_rng([seed, 2])
            diagonal = np.diag(K)
            mean = diagonal.mean()
            exact = _unbiased(K.sum(), diagonal.sum(), n)
            lines = []
            for count in draws:
                total = count * repeats
                taken = {size: _indicators(n, size, total, random) for size in (small, big)}
                norm = {size: ((rows @ K) * rows).sum(axis=1) for size, rows in taken.items()}
                g_small, g_big = norm[small] / small**2, norm[big] / big**2
                square = (big * g_big - small * g_small) / (big - small)
                trace = (g_small - g_big) / (1 / small - 1 / big)
                own = _unbiased(norm[big], taken[big] @ diagonal, big)
                for name, (G, S), used, passes in (
                    (TWO_BATCHES, (square, trace), small + big, 2),
                    (PER_EXAMPLE, own, big, 1),
                ):
                    G, S = (v.reshape(repeats, count).mean(axis=1) for v in (G, S))
                    cost = {"passes": passes * count, "examples": used * count}
                    cost["gflop"] = 6e-9 * weights * used * count
                    line = {"estimator": name, "draws": count, **cost}
                    lines.append(line | _quality(G, S, *exact, mean))
            found[parameter] = lines
        return found

    return pd.DataFrame(
        [key | line for key, _, lines in _visit(settings, run, layers) for line in lines]
    )


def _visit(settings: Settings, function: Callable, layers=None) -> list:
    """(key, log10 of the gradient's unit, value) of every linear op, seed and parameter, in order.

    ``function(seed, x, dy)`` is given float64 copies near 1, (n, tokens, features) with one token
    where the net has none, and returns a value per parameter.
    """
    settings.validate()
    if build(settings).chain.couples_examples:
        raise InputError(
            "the gradient of a subset needs independent examples, and this network couples them "
            "(batch norm): measure each batch size instead"
        )
    layers = None if layers is None else set(layers)
    for layer in layers or ():
        _check_layer(settings, layer)
    per_example = np.log10(settings.batch_size) if settings.reduction == "mean" else 0.0
    found = []

    def observe(operation: Operation) -> None:
        if not isinstance(operation.primitive, Linear):
            return
        if layers is not None and operation.layer not in layers:
            return
        for s, seed in enumerate(operation.seeds):
            x, e_x = _normal(
                operation.x[s].reshape(settings.batch_size, -1, *operation.x.shape[-1:])
            )
            dy, e_dy = _normal(operation.dy[s].reshape(*x.shape[:2], -1))
            e_dy = (e_dy + operation.dy_exponent[s]) * LOG10_2 + per_example
            unit = {"W": (e_x + operation.x_exponent[s]) * LOG10_2 + e_dy, "b": e_dy}
            for parameter, value in function(int(seed), x, dy).items():
                names = (int(seed), operation.layer, operation.op, parameter)
                key = dict(zip(ORDER, names, strict=True))
                found.append((key, unit[parameter], value))

    measure(settings, observe=observe)
    return sorted(found, key=lambda entry: tuple(entry[0].values()))


def _normal(a: np.ndarray) -> tuple[np.ndarray, int]:
    """``a`` in float64 with its largest entry between ½ and 1, and the power of two taken out."""
    _, exponent = np.frexp(np.abs(a).max())
    return np.ldexp(a.astype(np.float64), -exponent), int(exponent)


def _check_layer(settings: Settings, layer: int) -> None:
    if not 1 <= layer <= settings.depth:
        raise InputError(f"layer must be from 1 to {settings.depth}; got {layer}")


def _total(x: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """dW of all examples and tokens, (features of x, features of dy)."""
    return x.reshape(-1, x.shape[-1]).T @ dy.reshape(-1, dy.shape[-1])


def _grams(x: np.ndarray, dy: np.ndarray) -> dict[str, np.ndarray]:
    biases = dy.sum(axis=1)
    if x.shape[1] == 1:
        deltas = biases @ biases.T
        return {"W": (x[:, 0] @ x[:, 0].T) * deltas, "b": deltas}
    each = (x.swapaxes(1, 2) @ dy).reshape(len(x), -1)
    return {"W": each @ each.T, "b": biases @ biases.T}


def _subsets(n: int, size: int, most: int, random) -> list[np.ndarray]:
    if comb(n, size) <= most:
        return [np.array(rows) for rows in combinations(range(n), size)]
    return [random.permutation(n)[:size] for _ in range(most)]


def _indicators(n: int, size: int, count: int, random) -> np.ndarray:
    """``count`` random subsets as rows of zeros and ones, (count, n)."""
    rows = np.zeros((count, n))
    np.put_along_axis(rows, random.random((count, n)).argpartition(size - 1)[:, :size], 1.0, axis=1)
    return rows


def _unbiased(total, diagonal, n):
    """(|G|², trΣ) of n examples from the sum of K and that of its diagonal."""
    square = (total - diagonal) / (n * (n - 1))
    return square, diagonal / n - square


def _quality(G, S, exact_G, exact_S, unit) -> dict[str, float]:
    """Bias and spread of estimates (repeats,), relative to the exact values."""
    defined = G > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.where(defined, S / G, np.inf)
    quantiles = np.quantile(scale, (0.16, 0.5, 0.84), method="nearest")
    signal = exact_G if exact_G > 1e-12 * unit else np.nan
    return {
        "noise_scale": exact_S / signal if signal > 0 else np.nan,
        "mean_square_bias": G.mean() / signal - 1,
        "mean_square_spread": G.std(ddof=1) / signal,
        "trace_bias": S.mean() / exact_S - 1 if exact_S > 0 else np.nan,
        "trace_spread": S.std(ddof=1) / exact_S if exact_S > 0 else np.nan,
        **dict(zip(("low", "median", "high"), quantiles, strict=True)),
        "undefined": 1 - defined.mean(),
        "note": "" if signal > 0 else ZERO if exact_S == 0 else NO_SIGNAL,
    }


def _weights(settings: Settings) -> int:
    """The number of weights of the network, from the first example of its first seed."""
    table = measure(replace(settings, batch_size=1, seeds=1))
    return int((table["fan_in"] * table["fan_out"])[table["db_log10_norm"].notna()].sum())
