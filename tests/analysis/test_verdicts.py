"""The verdict: size, shape and agreement, against planted ensembles and SciPy's own intervals."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import flowlab
from flowlab.analysis.verdicts import judge, judge_all
from flowlab.errors import InputError
from flowlab.networks import build
from flowlab.schema import COTANGENT, DELTA

LAYERS = np.arange(1, 41)


def ensemble(curve, sd=0.0, seeds=16, run="a", upstream="gaussian", rng=None, **columns):
    """A table whose mean log-norm is ``curve`` (L,); ``sd`` is that of a seed's step per layer."""
    rng = rng or np.random.default_rng(5)
    steps = rng.normal(0, sd, (seeds, len(curve)))
    steps -= steps.mean(axis=0)  # the mean is the curve exactly
    steps[:, -1] = 0
    norms = curve + np.cumsum(steps[:, ::-1], axis=1)[:, ::-1]
    layer = np.tile(np.arange(1, len(curve) + 1), seeds)
    return pd.DataFrame(
        {"run": run, "seed": np.repeat(np.arange(seeds), len(curve)), "layer": layer}
        | {DELTA: norms.ravel(), "status": "ok", "upstream": upstream, **columns}
    )


def line(change, layers=LAYERS):
    """A straight curve that changes by ``change`` decades going backward."""
    return change * (layers[-1] - layers) / (layers[-1] - layers[0])


def predicted(curve, run="a", sd=0.0, **columns):
    layers = np.arange(1, len(curve) + 1)
    walk = sd * np.sqrt(layers[::-1] - 1.0)
    values = {DELTA: curve, f"{DELTA}_sd": walk, f"{DELTA}_infinite": curve}
    return pd.DataFrame({"run": run, "layer": layers, **values, **columns})


def interval(values, level):
    return stats.t.interval(level, len(values) - 1, np.mean(values), stats.sem(values))


# Trend


@pytest.mark.parametrize(
    ("change", "sd", "trend"),
    [
        (0.03, 0.01, "kept"),
        (-0.9, 0.001, "kept"),
        (0.001, 0.0, "kept"),
        (-1.8, 0.02, "vanishing"),
        (29.9, 0.1, "exploding"),
        (-1.0, 0.02, "undecided"),
        (0.9, 0.2, "undecided"),
    ],
)
def test_size_comes_first(change, sd, trend):
    found = judge(ensemble(line(change), sd))
    assert found.trend == trend
    assert found.change.mean == pytest.approx(change, abs=1e-12)
    assert found.sentence.startswith(trend.capitalize())


def test_the_interval_of_the_change_is_students_over_seeds():
    table = ensemble(line(-3), 0.1)
    wide = table.pivot(index="seed", columns="layer", values=DELTA)
    change = judge(table).change
    assert (change.low, change.high) == pytest.approx(interval(wide[1] - wide[40], 0.95))


def test_the_threshold_is_a_setting():
    table = ensemble(line(-1.8), 0.01)
    assert judge(table).trend == "vanishing"
    assert judge(table, kept_within=2).trend == "kept"
    assert judge(table, kept_within=1.8).trend == "undecided"
    for bad in (0, -1, np.nan, np.inf):
        with pytest.raises(InputError, match="kept_within must be a finite number above 0; got"):
            judge(table, kept_within=bad)


def test_kept_is_shown_and_not_merely_not_refuted():
    noisy = ensemble(line(0.0), 0.4, seeds=4)
    assert judge(noisy).trend == "undecided"


def test_more_seeds_that_would_decide_do_decide():
    few = judge(ensemble(line(-0.8), 0.08, seeds=8))
    assert few.trend == "undecided"
    needed = few.seeds_to_decide()
    assert f"about {needed:.0f} more seeds would decide" in few.sentence
    sd = few.change.se * np.sqrt(8)
    half = [stats.t.ppf(0.975, n - 1) * sd / np.sqrt(n) for n in (8 + needed, 8 + needed - 1)]
    assert half[0] < 0.2 <= half[1]
    assert np.isinf(judge(ensemble(line(-1.0), 0.08, seeds=8)).seeds_to_decide())


def test_zero_and_nonfinite_seeds_are_counted():
    table = ensemble(line(-3), 0.01)
    first = (table["layer"] == 1) & table["seed"].isin([0, 1])
    table.loc[first, DELTA] = -np.inf
    found = judge(table)
    assert (found.change.n, found.change.excluded, found.zeros) == (14, 2, 2)
    assert "2 seeds excluded: zero or non-finite norms" in found.sentence
    table.loc[table["layer"] == 1, DELTA] = -np.inf
    dead = judge(table)
    assert dead.trend == "vanishing"
    assert dead.sentence.startswith("Vanishing: δ is exactly zero in layer 1 in every seed")


# The body and the read-out


def test_the_read_out_is_apart():
    curve = np.append(line(0.306, np.arange(1, 4)), 1.0)
    table = ensemble(curve, 0.001, upstream="loss")
    found = judge(table, predicted(curve))
    assert (found.first, found.last, found.trend) == (1, 3, "kept")
    assert found.change.mean == pytest.approx(0.306)
    assert found.readout.mean == pytest.approx(-1.0)
    assert (found.predicted, found.agreement) == (pytest.approx(0.306), "agrees")
    assert "the read-out adds -1.00" in found.sentence
    whole = judge(table.assign(upstream="gaussian"))
    assert (whole.last, whole.readout) == (4, None)


def test_a_body_of_one_layer_has_no_change():
    for table in (ensemble(np.array([1.0, 2.0]), upstream="loss"), ensemble(np.array([1.0]))):
        found = judge(table, predicted(np.array([1.0])))
        assert (found.trend, found.agreement) == ("undecided", "no theory")
        assert "the body has one layer" in found.sentence


def test_a_recurrent_run_is_judged_over_its_steps():
    steps = ensemble(line(-2.0), 0.01).rename(columns={"layer": "time", DELTA: COTANGENT})
    steps = steps.assign(layer=1, **{DELTA: np.nan})
    found = judge(steps)
    assert (found.trend, found.along, found.quantity) == ("vanishing", "step", "log10‖∂L/∂h_t‖")
    assert "from step 40 to 1" in found.sentence


# Shape


def test_exponentials_and_powers_are_kept_apart():
    straight = judge(ensemble(line(-4), 0.02))
    assert (straight.shape, straight.exponent) == ("exponential", None)
    assert "it loses a decade every 9.8 layers (exponential, -0.103 a layer)" in straight.sentence
    power = judge(ensemble(2.5 * np.log10(LAYERS), 0.02))
    assert power.shape == "power"
    assert power.exponent.low < 2.5 < power.exponent.high
    assert "as a power of depth, exponent 2.5" in power.sentence
    assert power.trend == "vanishing"


def test_through_time_the_power_is_of_the_steps_travelled():
    curve = -2.0 * np.log10(LAYERS[::-1])
    steps = ensemble(curve, 0.005).rename(columns={"layer": "time", DELTA: COTANGENT})
    found = judge(steps.assign(layer=1))
    assert found.shape == "power" and found.exponent.mean == pytest.approx(-2, abs=0.05)
    assert "power of the steps travelled" in found.sentence


def test_noise_has_no_shape():
    assert judge(ensemble(line(0.0), 0.1)).shape == ""
    assert judge(ensemble(np.array([-3.0, -2.0, -1.0, 0.0]), 0.01)).shape == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (-0.6 * 39, "it loses a decade every 1.7 layers"),
        (2.3 * 39, "it gains 2.3 decades a layer"),
        (-39 / 65, "it loses a decade every 65 layers"),
    ],
)
def test_the_rate_is_in_words(change, words):
    assert words in judge(ensemble(line(change), 0.0001), kept_within=0.5).sentence


# Agreement


@pytest.mark.parametrize(
    ("measured", "theory", "sd", "agreement"),
    [
        (-0.05, 0.0, 0.002, "agrees"),
        (-0.25, 0.0, 0.002, "differs"),
        (-10.5, -10.0, 0.02, "agrees"),  # a tenth of the change
        (-11.5, -10.0, 0.02, "differs"),
        (-0.05, 0.0, 0.1, "undecided"),
    ],
)
def test_theory_is_judged_by_two_one_sided_tests(measured, theory, sd, agreement):
    table = ensemble(line(measured), sd)
    found = judge(table, predicted(line(theory)))
    assert found.agreement == agreement
    assert found.margin == pytest.approx(max(0.1, 0.1 * abs(theory)))
    wide = table.pivot(index="seed", columns="layer", values=DELTA)
    low, high = interval(wide[1] - wide[40] - theory, 0.90)
    assert (agreement == "agrees") == (-found.margin < low and high < found.margin)
    if agreement == "agrees":
        assert f"agrees, within {max(-low, high):.2f} decades" in found.sentence
    if agreement == "differs":
        assert f"differs by {measured - theory:z.2f}"[:12] in found.sentence


def test_theorys_own_error_never_makes_an_agreement():
    table = ensemble(line(-0.4), 0.005)
    opposite = predicted(line(0.4), slope_error=0.18)
    found = judge(table, opposite)
    assert found.agreement == "undecided"
    assert found.theory_error == pytest.approx(0.18 * 39)
    assert "its own error ±7.02" in found.sentence
    assert "theory is not sharp enough to decide" in found.sentence
    assert judge(table, predicted(line(0.4), slope_error=0.01)).agreement == "differs"


def test_more_seeds_that_would_show_agreement():
    found = judge(ensemble(line(0.05), 0.05, seeds=8), predicted(line(0.0)))
    assert found.agreement == "undecided"
    needed, sd = found.seeds_to_agree(), found.difference.se * np.sqrt(8)
    half = [stats.t.ppf(0.95, n - 1) * sd / np.sqrt(n) for n in (8 + needed, 8 + needed - 10)]
    assert half[0] < 0.05 < half[1]


def test_theory_that_covers_a_part_is_compared_there():
    curve = predicted(line(-4.0))
    curve.loc[curve["layer"] < 20, DELTA] = np.nan
    found = judge(ensemble(line(-4.0), 0.01), curve)
    assert found.covered == (20, 40) and found.agreement == "agrees"
    assert found.predicted == pytest.approx(-4.0 * 20 / 39)
    assert "from layer 40 to 20" in found.sentence


def test_silence_has_its_reason():
    silent = predicted(line(np.nan), silent_because="digits are not exchangeable")
    found = judge(ensemble(line(-4.0), 0.01), silent)
    assert found.agreement == "no theory"
    assert found.sentence.endswith("No prediction: digits are not exchangeable.")
    other = judge(ensemble(line(-4.0)), predicted(line(-4.0), run="b"))
    assert other.agreement == "no theory"
    assert "another network or other settings" in other.sentence


def test_one_seed_borrows_the_spread_of_theory():
    table = ensemble(line(-4.0), seeds=1)
    found = judge(table, predicted(line(-4.1), sd=0.01))
    half = stats.norm.ppf(0.975) * 0.01 * np.sqrt(39)
    assert (found.change.low, found.change.high) == pytest.approx((-4 - half, -4 + half))
    assert (found.trend, found.agreement) == ("vanishing", "agrees")
    assert "one seed, with the spread that theory predicts" in found.sentence
    alone = judge(table)
    assert alone.trend == "undecided" and "one seed: no interval" in alone.sentence


def test_chance_seldom_makes_a_difference():
    """Ensembles of theory's own law: a 95 % interval beyond the margin is rare by construction."""
    rng = np.random.default_rng(1)
    words = []
    for _ in range(200):
        steps = rng.normal(0, 0.03, (8, 40))
        table = ensemble(line(-4.0))[lambda t: t["seed"] < 8].copy()
        table[DELTA] = (line(-4.0) + np.cumsum(steps[:, ::-1], axis=1)[:, ::-1]).ravel()
        words.append(judge(table, predicted(line(-4.0))).agreement)
    assert words.count("differs") == 0 and words.count("agrees") > 190


# Many runs


def test_every_run_has_the_verdict_it_has_alone():
    tables = [ensemble(line(c), 0.02, run=f"r{k}") for k, c in enumerate((-3, 0.2, 5))]
    curves = [predicted(line(-3.0), run="r0"), predicted(line(0.2), run="r1")]
    found = judge_all(pd.concat(tables), pd.concat(curves))
    assert [v.trend for v in found.values()] == ["vanishing", "kept", "exploding"]
    assert [v.agreement for v in found.values()] == ["agrees", "agrees", "no theory"]
    assert found["r0"] == judge(tables[0], curves[0])


# Measured nets


@pytest.mark.parametrize(
    ("axes", "trend", "shape"),
    [
        ({"depth": 10, "upstream": "loss"}, "kept", None),
        ({"init": "xavier", "depth": 40}, "vanishing", "exponential"),
        ({"skip": "identity", "depth": 40}, "exploding", "exponential"),
        ({"skip": "identity", "norm": "layer", "depth": 200, "width": 32}, "exploding", "power"),
    ],
)
def test_measured_nets(axes, trend, shape):
    settings = flowlab.make(**{"width": 64, "batch_size": 16, "upstream": "gaussian"} | axes)
    found = judge(flowlab.measure(settings), flowlab.predict(settings))
    assert found.trend == trend
    assert found.agreement != "differs"
    if shape:
        assert found.shape == shape


def test_a_network_of_ones_own_has_no_prediction():
    """Its table has a run of its own, wherever it was built, and none of the settings' words."""
    settings = flowlab.make(depth=6, width=8, batch_size=4, seeds=3, upstream="gaussian")
    table = flowlab.measure(settings)

    def own(activation):
        other = flowlab.make(depth=6, width=8, activation=activation, upstream="gaussian")
        return flowlab.measure(settings, network=build(other))

    mine, again, identity = own("tanh"), own("tanh"), own("identity")
    assert mine["run"].nunique() == 1 and mine["run"].iat[0] == again["run"].iat[0]
    assert len({frame["run"].iat[0] for frame in (table, mine, identity)}) == 3
    assert mine[["width", "activation", "skip", "norm"]].isna().all(axis=None)
    assert set(mine["network"]) == {"own"} and set(mine["depth"]) == {6}
    found = judge(mine, flowlab.predict(settings))
    assert (found.agreement, found.change.n) == ("no theory", 3)
