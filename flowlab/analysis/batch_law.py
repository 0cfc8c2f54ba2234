"""How the gradient's norm depends on the batch size: an exact law, read from a table.

The gradient of a batch of B examples is g_B = Σ_i g_i under ``sum`` and g_B/B under ``mean``, with
g_i the gradient that example i alone would give. Over all random subsets of size B of n examples

    E‖Σ_i g_i‖² = B·d + B(B − 1)·o = B·trΣ + B²·|G|²,    o = |G|²,  d = trΣ + |G|²,

where d and o are the mean diagonal and off-diagonal elements of the Gram matrix K_ij = ⟨g_i, g_j⟩
of the n examples, |G|² is the squared norm of the mean gradient and trΣ the trace of the
covariance of g_i, both without bias (McCandlish et al. 2018, appendix A, has the law for
infinitely many examples). So K itself is not needed: its diagonal sums to ``d?_examples`` and all
of it to ``d?``, two columns of every table. Norms may lie anywhere between 1e-100000 and 1e100000,
so all arithmetic is in their ratio r = (Σ_ij K_ij)/(Σ_i K_ii), from 0 to n.
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from flowlab.analysis.statistics import mean_interval, over_seeds
from flowlab.errors import InputError, unknown
from flowlab.schema import EXAMPLE_NORMS

PARAMETERS = ("W", "b")
REDUCTIONS = ("mean", "sum")
KEYS = ["run", "layer", "op", "parameter"]
ONE_EXAMPLE = "one example has no covariance"
NO_SIGNAL = "|G|² is not above 0 in this sample: its examples do not show a mean gradient"
ZERO = "every example's gradient is zero"
UNKNOWN = "the norms are not known: below rounding, or out of the range of the type"


def law(table: pd.DataFrame) -> pd.DataFrame:
    """The batch law of every run, seed, layer, op and parameter (``W`` and ``b``).

    ``examples`` is n; ``log10_diagonal`` is log10 d, the mean of ‖g_i‖², and ``alignment`` = o/d,
    between −1/(n − 1) and 1, the mean inner product of two examples' gradients in that unit.
    ``log10_trace`` and ``log10_mean_square`` are log10 of trΣ and |G|², ``noise_scale`` is
    B_s = trΣ/|G|² and ``slope`` is the slope of log √E‖Σ g‖² in log B at B = n,
    ½(2B + B_s)/(B + B_s). All belong to examples under ``sum``: the division by n of
    ``reduction=mean`` is undone. |G|² estimated at or below 0 gives B_s = inf; ``note`` says why a
    number is inf or NaN. Rows whose op has no law (no such column, or null) are left out.

    Raises InputError for a table without these columns, or in which examples are coupled.
    """
    rows = _parameters(table)
    n = rows["batch_size"].to_numpy(float)
    total, diagonal = rows.pop("total").to_numpy(), rows.pop("diagonal").to_numpy()
    known = np.isfinite(diagonal) & (np.isfinite(total) | np.isneginf(total))
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        r = np.where(known, 10.0 ** (2 * (total - diagonal)), np.nan)
        several = np.where(n > 1, n - 1, np.nan)
        # Cauchy and Schwarz bound r by n; rounding may pass it where all gradients are equal.
        alignment = np.minimum((r - 1) / several, 1.0)
        noise_scale = np.where(alignment > 0, (1 - alignment) / alignment, np.inf)
        noise_scale[np.isnan(alignment)] = np.nan
        unit = 2 * diagonal - np.log10(n)  # log10 d, as reduced
        unit = unit + np.where(rows.pop("reduction") == "mean", 2 * np.log10(n), 0.0)
        rows["examples"] = rows.pop("batch_size")
        rows["log10_diagonal"] = unit
        rows["alignment"] = alignment
        rows["log10_trace"] = unit + np.log10(1 - alignment)
        rows["log10_mean_square"] = unit + np.log10(np.where(alignment > 0, alignment, np.nan))
        rows["noise_scale"] = noise_scale
        rows["slope"] = slope(n, alignment)
    rows["note"] = np.select(
        [np.isneginf(diagonal), ~known, n == 1, alignment <= 0],
        [ZERO, UNKNOWN, ONE_EXAMPLE, NO_SIGNAL],
        "",
    )
    return rows


def slope(batch_size, alignment):
    """The slope of log √E‖Σ g‖² in log B, ½(trΣ + 2B|G|²)/(trΣ + B|G|²), in units of d.

    From ½ where examples are unrelated to 1 where their gradients are equal; beyond these where
    they cancel (``alignment`` below 0). With B_s = (1 − a)/a it is ½(2B + B_s)/(B + B_s).
    """
    return 0.5 * (1 + batch_size * alignment / (1 - alignment + batch_size * alignment))


def log10_norms(rows: pd.DataFrame, batch_sizes: Iterable[int], reduction: str) -> pd.Series:
    """log10 √E‖g_B‖² over all subsets of each of ``batch_sizes``, for rows of :func:`law`.

    Indexed by (run, layer, op, parameter, batch_size, seed). Raises InputError for an unknown
    reduction, for no batch size, and for one below 1 or beyond the examples.
    """
    check(batch_sizes := list(batch_sizes), reduction, int(rows["examples"].min()))
    frames = []
    for size in batch_sizes:
        a = rows["alignment"].to_numpy() if size > 1 else 0.0
        with np.errstate(divide="ignore"):
            # An exact cancellation of all n may round to a little below 0.
            factor = np.log10(np.maximum(size * (1 + (size - 1) * a), 0.0))
        value = (rows["log10_diagonal"] + factor) / 2
        if reduction == "mean":
            value = value - np.log10(size)
        frames.append(rows[[*KEYS, "seed"]].assign(batch_size=size, log10_norm=value))
    index = [*KEYS, "batch_size", "seed"]
    return pd.concat(frames).set_index(index)["log10_norm"]


def curve(
    table: pd.DataFrame,
    batch_sizes: Iterable[int],
    reduction: str = "sum",
    level: float = 0.95,
) -> pd.DataFrame:
    """log10 √E‖g_B‖² against batch size: its mean over seeds with Student's t interval.

    One row per (run, layer, op, parameter, batch_size), with the columns of
    :func:`flowlab.analysis.statistics.over_seeds`. The expectation is over all random subsets,
    exact for each seed's n examples; the interval is over seeds. Raises InputError as :func:`law`
    and :func:`log10_norms` do.
    """
    return over_seeds(log10_norms(law(table), batch_sizes, reduction), level)


def against_runs(table: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """Norms measured in runs at several batch sizes, over the law of the largest of them.

    ``table`` holds one run for each batch size, with the same seeds; under one seed a run at B has
    part of the largest run's examples before the same weights, a random subset. One row per
    (layer, op, parameter, batch_size): ``exact`` is the mean over seeds of log10 √E‖g_B‖², and
    ``ratio``, with ``low``, ``high`` over ``n`` seeds, that of ‖g_B‖²/E‖g_B‖², whose expectation is
    1. Raises InputError as :func:`law` does, and where batch sizes repeat or seeds are not shared.
    """
    exact, ratios = _over_law(table)
    keys = exact.index.names
    ratio = over_seeds(ratios, level).rename(columns={"mean": "ratio"})
    columns = [*keys[:-1], "ratio", "low", "high", "n"]
    return (
        over_seeds(exact)[[*keys[:-1], "mean"]]
        .rename(columns={"mean": "exact"})
        .merge(ratio[columns])
    )


def slopes_of_runs(table: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """The slope of log √E‖g_B‖² in log B between runs at neighbouring batch sizes.

    ``table`` as in :func:`against_runs`. One row per (layer, op, parameter, batch_size), the last
    the geometric mean of the two: ``slope``, with ``low``, ``high`` over seeds. Both runs have the
    same seeds, so the interval is that of the difference of paired ratios to the law, to first
    order. Raises InputError as :func:`against_runs` does.
    """
    exact, ratios = _over_law(table)
    keys = ["layer", "op", "parameter"]
    frames = []
    for at, mine in ratios.groupby(keys, sort=True):
        ratio = mine.droplevel(keys).unstack("batch_size")
        law = exact.loc[mine.index].droplevel(keys).groupby("batch_size").mean()
        sizes, means = ratio.columns.to_numpy(float), ratio.mean().to_numpy()
        steps = np.diff(np.log10(sizes))
        found = np.diff(law.to_numpy() + np.log10(means) / 2) / steps
        relative = np.diff(ratio.to_numpy() / means, axis=1) / (2 * np.log(10) * steps)
        of = [mean_interval(column, level) for column in relative.T]
        frame = {name: found + [getattr(i, name) - i.mean for i in of] for name in ("low", "high")}
        middle = {"batch_size": np.sqrt(sizes[1:] * sizes[:-1]), "slope": found}
        frames.append(pd.DataFrame({**dict(zip(keys, at, strict=True)), **middle, **frame}))
    return pd.concat(frames, ignore_index=True)


def noise_scales(rows: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """B_s of the ensemble: (1 − a)/a of the mean alignment a over seeds, with a's interval.

    One row per (run, layer, op, parameter) of :func:`law`: ``noise_scale``, ``low``, ``high``, inf
    where the alignment may be 0. The mean of B_s itself would hang on seeds with |G|² near 0.
    """
    a = over_seeds(rows.set_index([*KEYS, "seed"])["alignment"], level)
    scale = {"noise_scale": a["mean"], "low": a["high"], "high": a["low"]}
    for name, values in scale.items():
        with np.errstate(divide="ignore"):
            found = np.where(values > 0, (1 - values) / values, np.inf)
        scale[name] = np.where(values.isna(), np.nan, np.maximum(found, 0.0))
    return a[KEYS].assign(**scale)


def _over_law(table: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """log10 √E‖g_B‖² of the largest run's law, and ‖g_B‖²/E‖g_B‖² of runs, by seed."""
    sizes = table.groupby("batch_size")["run"].nunique()
    if sizes.max() > 1:
        size, count = sizes.idxmax(), sizes.max()
        raise InputError(f"table must hold one run for each batch size; got {count} of {size}")
    largest = table[table["batch_size"] == sizes.index.max()]
    keys = ["layer", "op", "parameter", "batch_size", "seed"]
    exact = log10_norms(law(largest), sizes.index, str(table["reduction"].iat[0]))
    exact = exact.reset_index().set_index(keys)["log10_norm"]
    runs = _parameters(table).set_index(keys)["total"]
    if not exact.index.symmetric_difference(runs.index).empty:
        raise InputError("runs of all batch sizes must have the same seeds and layers")
    return exact, 10.0 ** (2 * (runs - exact))


def check(batch_sizes, reduction: str, examples: int) -> None:
    """Raise InputError unless ``batch_sizes`` lie in 1..``examples`` and the reduction exists."""
    if reduction not in REDUCTIONS:
        raise unknown("reduction", reduction, REDUCTIONS)
    if len(batch_sizes) == 0:
        raise InputError("batch_sizes must name at least one batch size; got none")
    for size in batch_sizes:
        if not 1 <= size <= examples or size != int(size):
            raise InputError(
                f"batch_size must be a whole number from 1 to the {examples} examples measured; "
                f"got {size}"
            )


def _parameters(table: pd.DataFrame) -> pd.DataFrame:
    """A row for W and one for b of every row that has them, with both log10 norms."""
    for name in (*EXAMPLE_NORMS, "batch_size", "reduction"):
        if name not in table:
            raise InputError(f"the batch law needs the column {name}; got a table without it")
    shared = table[["run", "seed", "layer", "op", "batch_size", "reduction"]]
    lost = table["status"].isin(["lost", "nonfinite"])
    frames = []
    for parameter in PARAMETERS:
        total = table[f"d{parameter}_log10_norm"]
        diagonal = table[f"d{parameter}_examples_log10_norm"]
        frame = shared.assign(parameter=parameter, total=total, diagonal=diagonal)
        # A lost row has the law of its op, with numbers that are not known.
        has = diagonal.notna().groupby(table["op"]).transform("any")
        frames.append(frame[diagonal.notna() | (lost & has)])
    rows = pd.concat(frames, ignore_index=True)
    if rows.empty:
        raise InputError(
            "the batch law needs gradients of single examples; got a table without any: a layer "
            "that couples examples (batch norm) has none, so measure each batch size instead"
        )
    order = ["run", "seed", "layer", "op", "parameter"]
    return rows[[*order, "batch_size", "reduction", "total", "diagonal"]].sort_values(
        order, kind="stable", ignore_index=True
    )
