"""Do biases depend on the batch size in a way that weights do not? Four small experiments.

A bias is the weight of a constant feature, so its gradient obeys the same law with the same sum
over examples: K_ij = (x_i·x_j)(δ_i·δ_j) for W is δ_i·δ_j for b, that is x_i·x_j = 1. What may
differ is the alignment of the examples' gradients, and with it the noise scale.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from flowlab import batch_law
from flowlab.measure import Batches, measure
from flowlab.settings import Settings, make
from flowlab.statistics import mean_interval, over_seeds, slope_of

BATCH_SIZES = tuple(2**k for k in range(11))
_MEAN = 1.0  # of every input, where it is not zero
_WIDTH, _CLASSES = 64, 10


class _Changed(Batches):
    """The batches of some settings, passed through ``change(x, labels)``."""

    def __init__(self, settings: Settings, change):
        super().__init__(settings)
        self.change = change

    def __call__(self, seeds):
        return self.change(*super().__call__(seeds))


def duplicated(seeds: int = 16, seed: int = 0) -> pd.DataFrame:
    """Every example twice: by what factor do the gradients grow, per layer?

    One row per (reduction, layer, parameter): ``factor`` is the mean over seeds of ‖dW‖ (‖db‖)
    of the doubled batch over that of the batch, ``worst`` its largest distance from 2 (``sum``)
    or 1 (``mean``) over seeds.
    """
    frames = []
    for reduction, expected in (("sum", 2.0), ("mean", 1.0)):
        axes = {"depth": 6, "width": _WIDTH, "reduction": reduction, "dtype": "float64"}
        once, twice = (make(seeds=seeds, seed=seed, batch_size=b, **axes) for b in (64, 128))
        batches = Batches(once)
        doubled = _Doubled(batches)
        single, double = measure(once), measure(twice, batches=doubled)
        for parameter in batch_law.PARAMETERS:
            name = f"d{parameter}_log10_norm"
            factor = 10.0 ** (double[name] - single[name])
            groups = factor.groupby(single["layer"])
            rows = groups.mean().rename("factor").reset_index()
            worst = groups.apply(lambda f, at=expected: (f - at).abs().max()).to_numpy()
            frames.append(rows.assign(reduction=reduction, parameter=parameter, worst=worst))
    columns = ["reduction", "layer", "parameter", "factor", "worst"]
    return pd.concat(frames, ignore_index=True)[columns]


class _Doubled:
    def __init__(self, batches: Batches):
        self.batches, self.example, self.classes = batches, batches.example, batches.classes

    def __call__(self, seeds):
        return tuple(np.concatenate([a, a], axis=1) for a in self.batches(seeds))


def constant_upstream(
    seeds: int = 16, seed: int = 0, batch_sizes: Sequence[int] = BATCH_SIZES
) -> pd.DataFrame:
    """An all-ones upstream gradient on a linear layer, with inputs of mean 0 and of mean 1.

    One row per (inputs, parameter, batch_size): ``mean`` over seeds of log10 ‖dW‖ (‖db‖) with its
    interval, and ``rms``, log10 of the root of the mean square. ‖db‖ = n√d_out always;
    E‖dW‖² = d_out·d_in(n + n²m²) for inputs of mean m and variance 1.
    """
    frames = []
    for inputs, mean in (("zero-mean", 0.0), ("mean 1", _MEAN)):
        for size in batch_sizes:
            axes = {"depth": 1, "width": _WIDTH, "upstream": "ones", "reduction": "sum"}
            settings = make(batch_size=size, data="gaussian", seeds=seeds, seed=seed, **axes)
            shift = _Changed(settings, lambda x, labels, m=mean: (x + x.dtype.type(m), labels))
            frames.append(_norms(measure(settings, batches=shift)).assign(inputs=inputs))
    return _over_seeds(frames, "inputs")


def uniform_softmax(
    seeds: int = 64, seed: int = 0, batch_sizes: Sequence[int] = BATCH_SIZES[1:]
) -> pd.DataFrame:
    """A softmax that is uniform over K = 10 classes, with independent and with balanced labels.

    One row per (labels, parameter, batch_size): as :func:`constant_upstream`. With labels drawn
    independently and uniformly E‖db‖² = B(1 − 1/K), slope exactly ½; with every class equally often
    the examples' gradients cancel in db and only rounding is left (batch sizes are multiples of K,
    up to the largest).
    """
    frames = []
    for labels, unit in (("independent", 1), ("balanced", _CLASSES)):
        for size in batch_sizes:
            if size * unit > max(batch_sizes):
                break
            settings = make(
                **{"depth": 1, "width": _WIDTH, "reduction": "sum", "dtype": "float64"},
                **{"data": {"name": "gaussian", "classes": _CLASSES}, "batch_size": size * unit},
                **{"init": {"name": "he", "gain": 1e-30}, "seeds": seeds, "seed": seed},
            )
            batches = Batches(settings)
            if labels == "balanced":
                batches = _Changed(settings, _balance)
            frames.append(_norms(measure(settings, batches=batches)).assign(labels=labels))
    return _over_seeds(frames, "labels")


def same_batch(seeds: int = 16, seed: int = 0, batch_size: int = 256) -> pd.DataFrame:
    """Weights and biases of one network at the same batch size: slopes beside noise scales.

    One row per (layer, parameter), over seeds: ``slope`` with its interval at ``batch_size``, the
    median ``noise_scale``, and the ``law`` ½(2B + B_s)/(B + B_s) at that median.
    """
    settings = make(
        depth=6, width=_WIDTH, batch_size=batch_size, seeds=seeds, seed=seed, reduction="sum"
    )
    rows = []
    for (layer, parameter), group in batch_law.law(measure(settings)).groupby(
        ["layer", "parameter"]
    ):
        slope, scale = mean_interval(group["slope"]), group["noise_scale"].median()
        told = batch_law.slope(batch_size, 1 / (1 + scale))
        line = {"layer": layer, "parameter": parameter, "slope": slope.mean}
        rows.append(
            line | {"low": slope.low, "high": slope.high, "noise_scale": scale, "law": told}
        )
    return pd.DataFrame(rows)


def slopes(rows: pd.DataFrame, axis: str) -> pd.DataFrame:
    """The slope of log √E‖·‖² in log B of each (``axis``, parameter), by least squares.

    ``rows`` come from :func:`constant_upstream` or :func:`uniform_softmax`; NaN from one size.
    """
    fitted = []
    for (value, parameter), group in rows.groupby([axis, "parameter"]):
        slope = -slope_of(group["rms"], np.log10(group["batch_size"]))
        fitted.append({axis: value, "parameter": parameter, "slope": slope})
    return pd.DataFrame(fitted)


def verdict(seeds: int = 16, seed: int = 0) -> tuple[str, str, str]:
    """Three sentences that settle whether biases depend on the batch in a way of their own."""
    twice = duplicated(seeds, seed)
    worst = twice["worst"].max()
    fit = slopes(constant_upstream(seeds, seed), "inputs").set_index(["inputs", "parameter"])
    fit = fit["slope"]
    table = same_batch(seeds, seed).pivot(index="layer", columns="parameter", values="noise_scale")
    smaller = int((table["b"] < table["W"]).sum())
    return (
        f"Both sum over examples: with every example twice each dW and each db is 2.000 times as "
        f"large under sum and unchanged under mean, in every layer (to {worst:.0e}).",
        f"They look different where the examples' gradients align differently: under a constant "
        f"upstream gradient ‖db‖ grows with slope {fit['zero-mean', 'b']:.2f}, ‖dW‖ with "
        f"{fit['zero-mean', 'W']:.2f} for zero-mean inputs but {fit['mean 1', 'W']:.2f} for inputs "
        f"of mean 1, because x_i·x_j multiplies δ_i·δ_j for W and 1 does for b.",
        f"So it is one law with two noise scales: in {smaller} of {len(table)} layers of a He net "
        f"on digits the bias has the smaller one, hence the steeper slope at the same batch size.",
    )


def _balance(x, labels):
    """Labels of which every class has equally many."""
    return x, np.broadcast_to(np.arange(labels.shape[1]) % _CLASSES, labels.shape)


def _norms(table: pd.DataFrame) -> pd.DataFrame:
    """One row per (seed, parameter) of the last layer, with its log10 norm."""
    last = table[table["layer"] == table["layer"].max()]
    keys = last[["seed", "batch_size"]]
    return pd.concat(
        keys.assign(parameter=p, value=last[f"d{p}_log10_norm"]) for p in batch_law.PARAMETERS
    )


def _over_seeds(frames: list[pd.DataFrame], axis: str) -> pd.DataFrame:
    rows = pd.concat(frames).set_index([axis, "parameter", "batch_size", "seed"])["value"]
    means = rows.groupby(level=[axis, "parameter", "batch_size"]).agg(_log10_rms)
    return over_seeds(rows).merge(means.rename("rms").reset_index())


def _log10_rms(logs: pd.Series) -> float:
    return float(np.log10(np.mean(10.0 ** (2 * logs))) / 2)
