from functools import partial
from math import isnan, sqrt

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from flowlab.analysis.statistics import (
    Interval,
    at_start,
    backward_slope,
    contrast,
    log_variance,
    mean_interval,
    over_seeds,
    profile,
    seed_ratios,
    seed_slopes,
    slope_of,
    variance_interval,
)
from flowlab.errors import InputError
from flowlab.schema import DELTA
from tests.support.tables import trained

WEIGHTS = "dW_log10_norm"


def make_table(norms, run="a", seeds=None, status="ok"):
    """A tidy table of ``norms`` (seeds, layers)."""
    norms = np.asarray(norms, float)
    count, depth = norms.shape
    seeds = np.arange(count) if seeds is None else np.asarray(seeds)
    return pd.DataFrame(
        {
            "run": run,
            "seed": np.repeat(seeds, depth),
            "layer": np.tile(np.arange(1, depth + 1), count),
            DELTA: norms.ravel(),
            "status": status,
        }
    )


def random_walks(rng, seeds, depth, drift=-0.1, sd=0.05):
    """Log-norms that change by ``drift`` ± ``sd`` per layer going backward from the last."""
    steps = rng.normal(drift, sd, (seeds, depth))
    return np.cumsum(steps, axis=1)[:, ::-1]


def polyfit_slopes(norms, layers):
    return np.array([-np.polyfit(layers, row, 1)[0] for row in norms])


@pytest.fixture
def rng():
    return np.random.default_rng(20240607)


# Intervals


def test_mean_interval_is_scipys_student_interval(rng):
    values = rng.normal(3, 2, 7)
    found = mean_interval(values, 0.9)
    low, high = stats.t.interval(0.9, 6, values.mean(), stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)
    assert (found.mean, found.se, found.n) == pytest.approx((values.mean(), stats.sem(values), 7))
    assert found.known


@pytest.mark.parametrize("seeds", [2, 5, 16])
def test_intervals_cover_the_truth_as_often_as_they_say(rng, seeds):
    repetitions, level = 2000, 0.9
    draws = rng.normal(-0.15, 0.3, (repetitions, seeds))
    means = [mean_interval(row, level) for row in draws]
    variances = [variance_interval(row, level) for row in draws]
    allowed = 4 * sqrt(level * (1 - level) / repetitions)
    assert np.mean([i.low <= -0.15 <= i.high for i in means]) == pytest.approx(level, abs=allowed)
    assert np.mean([i.low <= 0.09 <= i.high for i in variances]) == pytest.approx(
        level, abs=allowed
    )


def test_a_variance_interval_has_equal_tails(rng):
    draws = rng.normal(0, 1, (2000, 6))
    found = [variance_interval(row, 0.8) for row in draws]
    allowed = 4 * sqrt(0.1 * 0.9 / 2000)
    assert np.mean([i.low > 1 for i in found]) == pytest.approx(0.1, abs=allowed)
    assert np.mean([i.high < 1 for i in found]) == pytest.approx(0.1, abs=allowed)
    assert found[0].mean == pytest.approx(np.var(draws[0], ddof=1))
    assert found[0].se == pytest.approx(found[0].mean * sqrt(2 / 5))


def test_one_seed_has_a_mean_and_no_interval():
    found = mean_interval([-0.1505])
    assert found.mean == -0.1505
    assert found.n == 1
    assert not found.known
    assert all(map(isnan, (found.se, found.low, found.high)))
    assert str(found) == "-0.1505 (one seed: no interval)"
    variance = variance_interval([-0.1505, np.nan])
    assert (variance.known, variance.n, variance.excluded) == (False, 0, 2)


def test_values_that_are_not_finite_are_counted_not_averaged():
    found = mean_interval([1.0, -np.inf, 3.0, np.nan, np.inf])
    assert (found.mean, found.n, found.excluded) == (2.0, 2, 3)
    nothing = mean_interval([np.nan, -np.inf])
    assert isnan(nothing.mean)
    assert (nothing.n, nothing.excluded) == (0, 2)
    assert "no seed has finite norms" in str(nothing)


@pytest.mark.parametrize(
    ("mean", "half", "text"),
    [
        (-0.1505, 0.0007, "-0.1505 [-0.1512, -0.1498]"),
        (-2.5e-6, 3e-7, "-0.0000025 [-0.0000028, -0.0000022]"),
        (-1e-12, 1e-12, "-1.000e-12 [-2.000e-12, 0.000e+00]"),
        (-0.00001, 0.5, "0.0000 [-0.5000, 0.5000]"),
        (0.0, 0.0, "0.0000 [0.0000, 0.0000]"),
        (-301.03, 2.0, "-301.0300 [-303.0300, -299.0300]"),
    ],
)
def test_an_interval_prints_the_digits_it_warrants(mean, half, text):
    assert str(Interval(mean, mean - half, mean + half, half / 2, 9)) == text


def test_an_interval_obeys_a_given_format():
    assert f"{Interval(1.0, 0.5, 1.5, 0.2, 4):.1f}" == "1.0 [0.5, 1.5]"


@pytest.mark.parametrize("level", [0, 1, 95])
def test_a_level_is_a_probability(level):
    with pytest.raises(InputError, match="level must lie strictly between 0 and 1; got"):
        mean_interval([1.0, 2.0], level)


# Slopes and ratios


def test_seed_slopes_are_polyfits_with_the_sign_turned(rng):
    norms = random_walks(rng, 5, 30)
    table = make_table(norms, seeds=[3, 1, 4, 15, 9]).sample(frac=1, random_state=1)
    found = seed_slopes(table)
    expected = polyfit_slopes(norms, np.arange(1, 31))
    np.testing.assert_allclose(found[[3, 1, 4, 15, 9]], expected, rtol=1e-10)
    part = seed_slopes(table, first=11, last=25)
    np.testing.assert_allclose(
        part[[3, 1, 4, 15, 9]], polyfit_slopes(norms[:, 10:25], np.arange(11, 26)), rtol=1e-10
    )


def test_a_norm_that_shrinks_toward_the_input_has_a_negative_slope_and_ratio():
    vanishing = make_table([[-3.0, -2.0, -1.0, 0.0]] * 2)
    assert backward_slope(vanishing).mean == pytest.approx(-1)
    assert mean_interval(seed_ratios(vanishing)).mean == pytest.approx(-3)


def test_slopes_of_many_runs_of_different_depth_agree_with_each_alone(rng):
    tables = [make_table(random_walks(rng, 4, d), run=f"r{d}") for d in (2, 7, 40)]
    both = over_seeds(seed_slopes(pd.concat(tables), by="run")).set_index("run")
    ratios = seed_ratios(pd.concat(tables), by="run")
    for table in tables:
        run, alone = table["run"].iloc[0], backward_slope(table)
        row = both.loc[run]
        assert tuple(row[["mean", "low", "high", "se"]]) == pytest.approx(
            (alone.mean, alone.low, alone.high, alone.se), rel=1e-10
        )
        assert (row["n"], row["excluded"]) == (4, 0)
        assert ratios[run].mean() == pytest.approx(mean_interval(seed_ratios(table)).mean)


def test_seeds_with_a_zero_or_nonfinite_layer_are_excluded_and_counted(rng):
    norms = random_walks(rng, 5, 6)
    norms[1, 2], norms[3, 0] = -np.inf, np.nan
    table = make_table(norms)
    table.loc[table[DELTA].isna(), "status"] = "nonfinite"
    found = backward_slope(table)
    kept = polyfit_slopes(norms[[0, 2, 4]], np.arange(1, 7))
    assert (found.mean, found.n, found.excluded) == pytest.approx((kept.mean(), 3, 2))
    assert backward_slope(table, first=2).excluded == 1
    # seed 1 dies in the middle yet has both ends; seed 3 has lost its first
    ratio = mean_interval(seed_ratios(table))
    assert (ratio.n, ratio.excluded) == (4, 1)
    assert ratio.mean == pytest.approx((norms[:, 0] - norms[:, -1])[[0, 1, 2, 4]].mean())


def test_a_seed_that_lacks_a_layer_is_excluded(rng):
    table = make_table(random_walks(rng, 3, 5))
    cut = table.drop(table.index[(table["seed"] == 1) & (table["layer"] == 5)])
    assert (backward_slope(cut).n, backward_slope(cut).excluded) == (2, 1)
    assert (mean_interval(seed_ratios(cut)).n, mean_interval(seed_ratios(cut)).excluded) == (2, 1)
    middle = table[(table["seed"] != 1) | (table["layer"] == 3)]
    assert list(seed_ratios(middle).isna()) == [False, True, False]


def test_a_ratio_to_or_from_an_exact_zero_is_undefined():
    norms = [[0.0, 1.0], [-np.inf, 1.0], [0.0, -np.inf], [-np.inf, -np.inf]]
    assert list(seed_ratios(make_table(norms)).isna()) == [False, True, True, True]


def test_no_slope_says_why(rng):
    dead = backward_slope(make_table(np.full((3, 4), -np.inf)))
    assert (dead.n, dead.excluded) == (0, 3)
    assert "no seed has finite norms" in dead.note
    shallow = backward_slope(make_table([[1.0], [2.0]]))
    assert isnan(shallow.mean)
    assert shallow.note == "one layer has no slope"
    absent = backward_slope(make_table(random_walks(rng, 2, 3)), first=9)
    assert isnan(absent.mean)
    assert "no delta_log10_norm" in absent.note


def test_the_last_op_that_has_the_quantity_stands_for_its_layer(rng):
    norms = random_walks(rng, 3, 5)
    main = make_table(norms).assign(op="linear")
    before = main.assign(op="norm", **{DELTA: 100.0 * main["layer"]})
    after = main.assign(op="relu", **{DELTA: np.nan})
    table = pd.concat([before, main, after]).sort_values(["seed", "layer"], kind="stable")
    np.testing.assert_allclose(
        seed_slopes(table), polyfit_slopes(norms, np.arange(1, 6)), rtol=1e-10
    )
    assert backward_slope(table).excluded == 0


def test_a_layer_without_the_quantity_is_skipped_for_all_seeds():
    norms = np.array([[1.0, np.nan, 3.0, 4.5], [1.0, np.nan, 3.5, 4.0]])
    layers = np.array([1, 3, 4])
    expected = polyfit_slopes(norms[:, layers - 1], layers)
    np.testing.assert_allclose(seed_slopes(make_table(norms)), expected, rtol=1e-12)
    assert list(profile(make_table(norms))["layer"]) == [1, 3, 4]


def test_a_parameter_that_left_the_range_hides_nothing_of_its_module():
    """Rows of a module and of its parameters share a layer; each has quantities of its own."""
    rows = [
        {"layer": layer, "parameter": parameter, "status": status, DELTA: delta, WEIGHTS: weights}
        for layer in (1, 2)
        for parameter, status, delta, weights in (
            (None, "nonfinite" if layer == 2 else "ok", -1.0 * layer, np.nan),
            ("weight", "nonfinite", np.nan, np.nan if layer == 2 else 3.0),
            ("bias", "underflow", np.nan, np.nan),
        )
    ]
    table = pd.DataFrame(rows).assign(run="a", seed=0, module="conv", op="Conv2d")
    assert list(profile(table, DELTA)["mean"]) == [-1.0, -2.0]
    assert list(profile(table, WEIGHTS)["n_nonfinite"]) == [0, 1]
    assert profile(table, WEIGHTS)["mean"].iloc[0] == 3.0
    unknown = table.assign(**{DELTA: np.nan})
    assert list(profile(unknown, DELTA)["n_nonfinite"]) == [1, 1]


def test_slopes_along_time():
    table = make_table([[-2.0, -1.0, 0.0]] * 2).rename(columns={"layer": "time"}).assign(layer=1)
    assert backward_slope(table, along="time").mean == pytest.approx(-1)
    with pytest.raises(InputError, match="by must name time when the table holds more than one"):
        backward_slope(table)


def test_runs_are_never_mixed_and_columns_never_guessed(rng):
    a = make_table(random_walks(rng, 2, 3))
    with pytest.raises(InputError, match=r"by must name run .* got 2 values of run"):
        backward_slope(pd.concat([a, a.assign(run="b")]))
    with pytest.raises(InputError, match="did you mean delta_log10_norm"):
        backward_slope(a, "delta_log10_nrm")
    with pytest.raises(InputError, match="first must be at most last; got first=3, last=2"):
        backward_slope(a, first=3, last=2)


# Trained runs


def test_a_trained_run_starts_at_its_first_step():
    table = make_table([[1.0, 2.0], [3.0, 4.0]])
    assert at_start(table) is table
    never = table.assign(step=pd.array([None] * 4, "Int64"))
    assert at_start(never) is never
    runs = [
        never.assign(run="untrained"),
        trained(table.assign(run="a")),
        trained(table.assign(run="b"), steps=(3, 7)),
    ]
    start = at_start(pd.concat(runs, ignore_index=True).sample(frac=1, random_state=0))
    for run, step in (("untrained", None), ("a", 1), ("b", 3)):
        rows = start[start["run"] == run].sort_index().reset_index(drop=True)
        assert list(rows[DELTA]) == list(table[DELTA])
        assert rows["step"].isna().all() if step is None else (rows["step"] == step).all()
    assert len(start) == 12
    alone = trained(table).drop(columns="run")
    assert len(at_start(alone)) == 4 and (at_start(alone)["step"] == 1).all()


# Profiles


def test_profile_against_a_plain_loop(rng):
    norms = random_walks(rng, 6, 4)
    norms[0, 0], norms[1, 0], norms[2, 1] = -np.inf, np.nan, np.inf
    other = random_walks(rng, 1, 2)
    table = pd.concat([make_table(norms, status="nonfinite"), make_table(other, run="b")])
    found = profile(table, level=0.8).set_index(["run", "layer"])
    assert list(found.index) == [("a", 1), ("a", 2), ("a", 3), ("a", 4), ("b", 1), ("b", 2)]
    for layer in range(1, 5):
        values = norms[:, layer - 1]
        kept = values[np.isfinite(values)]
        low, high = stats.t.interval(0.8, len(kept) - 1, kept.mean(), stats.sem(kept))
        row = found.loc[("a", layer)]
        assert tuple(row[["mean", "sd", "low", "high"]]) == pytest.approx(
            (kept.mean(), kept.std(ddof=1), low, high), rel=1e-10
        )
    assert list(found["n"]) == [4, 5, 6, 6, 1, 1]
    assert list(found["n_zero"]) == [1, 0, 0, 0, 0, 0]
    assert list(found["n_nonfinite"]) == [1, 1, 0, 0, 0, 0]
    assert found.loc["b"][["sd", "se", "low", "high"]].isna().all(axis=None)


def test_statistics_do_not_walk_over_groups_in_python(rng, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a Python loop over groups")

    for kind in (pd.api.typing.DataFrameGroupBy, pd.api.typing.SeriesGroupBy):
        monkeypatch.setattr(kind, "apply", refuse)
        monkeypatch.setattr(kind, "__iter__", refuse)
    table = pd.concat([make_table(random_walks(rng, 4, 5), run=f"r{i}") for i in range(3)])
    assert len(profile(table)) == 15
    assert len(over_seeds(seed_slopes(table, by="run"))) == 3
    assert len(seed_ratios(table, by="run")) == 12


def test_over_seeds_needs_groups(rng):
    with pytest.raises(InputError, match="use mean_interval"):
        over_seeds(seed_slopes(make_table(random_walks(rng, 2, 3))))


# Contrasts and variances


def test_a_paired_contrast_is_exact_and_narrower_than_an_unpaired_one(rng):
    base = random_walks(rng, 12, 20)
    shift = 0.01 * np.arange(20, 0, -1)  # adds 0.01 per layer going backward
    noise = rng.normal(0, 0.001, base.shape)
    a, b = make_table(base + shift + noise), make_table(base)
    found = contrast(a, b)
    expected = polyfit_slopes(base + shift + noise, np.arange(20)) - polyfit_slopes(
        base, np.arange(20)
    )
    assert found.mean == pytest.approx(expected.mean(), rel=1e-9)
    assert found.se == pytest.approx(stats.sem(expected), rel=1e-6)
    assert found.low < 0.01 < found.high
    unpaired = sqrt(backward_slope(a).se ** 2 + backward_slope(b).se ** 2)
    assert found.se < unpaired / 10
    ends = contrast(a, b, statistic=seed_ratios)
    assert ends.mean == pytest.approx(0.19, abs=4 * ends.se)


def test_a_contrast_pairs_by_seed_and_names_the_unpaired(rng):
    norms = random_walks(rng, 5, 8)
    a = make_table(norms[:4], seeds=[7, 0, 1, 2])
    b = make_table(norms[[3, 2, 1, 4]], seeds=[2, 1, 0, 8])
    found = contrast(a, b, statistic=partial(seed_slopes, first=2))
    assert found.mean == pytest.approx(0, abs=1e-15)
    assert (found.n, found.excluded, found.note) == (3, 2, "unpaired seeds 7, 8")
    with pytest.raises(InputError, match="share at least one seed; got 7 against 0, 1, 2, 8"):
        contrast(a[a["seed"] == 7], b)


def test_log_variance_recovers_the_spread_of_a_random_walk(rng):
    table = make_table(random_walks(rng, 400, 26, sd=0.05))
    found = log_variance(table, level=0.999)
    assert found.low < 25 * 0.05**2 < found.high
    assert found.mean == pytest.approx(seed_ratios(table).var())
    assert log_variance(table, statistic=seed_slopes).mean == pytest.approx(
        seed_slopes(table).var()
    )


# Predictions


def test_predictions_go_through_the_same_least_squares(rng):
    curve = random_walks(rng, 1, 12)
    table = make_table(curve)
    expected = seed_slopes(table)[0]
    assert slope_of(curve[0], np.arange(1, 13)) == pytest.approx(expected, rel=1e-12)
    assert isnan(slope_of([1.0, -np.inf], [1, 2]))
    with pytest.raises(InputError, match="values must hold one number for each of layers"):
        slope_of([1.0, 2.0], [1])
    with pytest.raises(InputError, match="layers must differ"):
        slope_of([1.0, 2.0], [1, 1])
