"""Do biases depend on the batch size in a way that weights do not? Four small experiments.

:func:`duplicated` and :func:`compared` ask it of the net that the settings describe;
:func:`constant_upstream` and :func:`uniform_softmax` of one linear layer made for the purpose.
A bias is the weight of a constant feature, so its gradient obeys the same law with the same sum
over examples: K_ij = (x_i·x_j)(δ_i·δ_j) for W is δ_i·δ_j for b, that is x_i·x_j = 1. What may
differ is the alignment of the examples' gradients, and with it the noise scale.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from flowlab.analysis import batch_law
from flowlab.analysis.statistics import over_seeds, slope_of
from flowlab.errors import InputError
from flowlab.measurement.ensemble import measure
from flowlab.measurement.setup import Batches
from flowlab.settings import Settings, make

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


def duplicated(settings: Settings) -> pd.DataFrame:
    """Every example twice: by what factor do the gradients of the settings' net grow, per layer?

    The doubled batch has ``settings.batch_size`` examples, one less where that is odd. One row per
    (reduction, layer, op, parameter): ``factor`` is the mean over seeds of ‖dW‖ (‖db‖) of the
    doubled batch over that of its half, ``worst`` its largest distance from 2 (``sum``) or 1
    (``mean``) over seeds whose gradient is not zero. Raises InputError for fewer than two examples,
    and for ``upstream=gaussian``, which gives equal examples unlike cotangents.
    """
    if settings.batch_size < 2:
        raise InputError(f"batch_size must be at least 2; got {settings.batch_size}")
    if settings.upstream == "gaussian":
        raise InputError("upstream must be loss or ones for equal examples to stay equal")
    frames, half = [], settings.batch_size // 2
    for reduction, expected in (("sum", 2.0), ("mean", 1.0)):
        once = replace(settings, batch_size=half, reduction=reduction)
        single = measure(once)
        twice = replace(once, batch_size=2 * half)
        double = measure(twice, batches=_Changed(once, _doubled))
        for parameter in batch_law.PARAMETERS:
            name = f"d{parameter}_log10_norm"
            has = np.isfinite(single[name]) & np.isfinite(double[name])
            rows = single.loc[has, ["layer", "op"]]
            rows = rows.assign(factor=10.0 ** (double[name] - single[name])[has])
            rows = rows.assign(worst=(rows["factor"] - expected).abs())
            rows = rows.groupby(["layer", "op"]).agg({"factor": "mean", "worst": "max"})
            frames.append(rows.reset_index().assign(reduction=reduction, parameter=parameter))
    columns = ["reduction", "layer", "op", "parameter", "factor", "worst"]
    return pd.concat(frames, ignore_index=True)[columns]


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
            batches = _Changed(settings, _balanced) if labels == "balanced" else None
            frames.append(_norms(measure(settings, batches=batches)).assign(labels=labels))
    return _over_seeds(frames, "labels")


def compared(law: pd.DataFrame) -> pd.DataFrame:
    """The alignments of the weights' and of the biases' gradients in one net, paired by seed.

    ``law`` is that of one run (:func:`flowlab.analysis.batch_law.law`). One row per (layer, op)
    with both parameters: the mean over seeds of b's alignment minus W's, with its interval ``low``,
    ``high``. The larger alignment is the smaller noise scale.
    """
    wide = law.pivot_table("alignment", ["layer", "op", "seed"], "parameter").dropna()
    if not set(batch_law.PARAMETERS) <= set(wide.columns):
        return pd.DataFrame(columns=["layer", "op", "mean", "low", "high"])
    return over_seeds(wide["b"] - wide["W"])[["layer", "op", "mean", "low", "high"]]


def slopes(rows: pd.DataFrame, axis: str) -> pd.DataFrame:
    """The slope of log √E‖·‖² in log B of each (``axis``, parameter), by least squares.

    ``rows`` come from :func:`constant_upstream` or :func:`uniform_softmax`; NaN from one size.
    """
    fitted = []
    for (value, parameter), group in rows.groupby([axis, "parameter"]):
        slope = -slope_of(group["rms"], np.log10(group["batch_size"]))
        fitted.append({axis: value, "parameter": parameter, "slope": slope})
    return pd.DataFrame(fitted)


def findings(settings: Settings, law: pd.DataFrame) -> tuple[str, ...]:
    """Sentences on the settings' own net, whose ``law`` is given."""
    found = []
    if settings.upstream == "gaussian":
        found.append(
            "What doubling the batch does is not asked: under upstream=gaussian equal examples "
            "have unlike cotangents; upstream=loss or ones has an answer."
        )
    else:
        twice = duplicated(settings)
        factors = twice.groupby("reduction")["factor"].mean()
        found.append(
            "Both sum over examples: with every example twice each dW and each db is "
            f"{factors['sum']:.3f} times as large under sum and {factors['mean']:.3f} times under "
            f"mean, in every layer (to {twice['worst'].max():.0e})."
        )
    rows = compared(law)
    smaller, larger = int((rows["low"] > 0).sum()), int((rows["high"] < 0).sum())
    found.append(
        f"One law with two noise scales: of {len(rows)} linear maps of this net (init="
        f"{settings.init.name}, data={settings.data.name}) the bias has the smaller one, hence the "
        f"steeper slope, in {smaller} and the larger one in {larger}; in "
        f"{len(rows) - smaller - larger} the seeds do not decide (95 %)."
    )
    return tuple(found)


def demonstration(constant: pd.DataFrame) -> str:
    """What :func:`constant_upstream` shows, in a sentence."""
    fit = slopes(constant, "inputs").set_index(["inputs", "parameter"])["slope"]
    return (
        f"Weights and biases look different where the examples' gradients align differently: under "
        f"a constant upstream gradient ‖db‖ of one linear layer grows with slope "
        f"{fit['zero-mean', 'b']:.2f}, ‖dW‖ with {fit['zero-mean', 'W']:.2f} for zero-mean inputs "
        f"but {fit['mean 1', 'W']:.2f} for inputs of mean 1, because x_i·x_j multiplies δ_i·δ_j "
        "for W and 1 does for b."
    )


def _doubled(x, labels):
    """Every example twice."""
    return np.concatenate([x, x], axis=1), np.concatenate([labels, labels], axis=1)


def _balanced(x, labels):
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
