"""Statistics of curves against curves whose answers are known in closed form."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, ttest_1samp

from flowlab.analysis import curves
from flowlab.errors import InputError

SIZES = (8, 16, 32, 64, 128, 256, 512)


def made(losses, examples, batch_size=1, **axes):
    """A curve frame of ``losses`` (seeds, T) at ``examples`` (T,)."""
    losses, examples = np.asarray(losses, float), np.asarray(examples)
    seeds, count = losses.shape
    return pd.DataFrame(
        {
            **{"run": f"run{batch_size}", "batch_size": batch_size, **axes},
            "seed": np.repeat(np.arange(seeds), count),
            "step": np.tile(examples // batch_size, seeds),
            "examples": np.tile(examples, seeds),
            "held_out_loss": losses.ravel(),
            "held_out_accuracy": np.exp(-losses.ravel()),
            "noise_scale": 20.0,
            "training_status": np.where(np.isfinite(losses.ravel()), "ok", "diverged"),
        }
    )


def power_laws(seeds=6, power=0.5, spread=0.3, **axes):
    """Losses A E^-power with ln A of mean 1 and standard deviation ``spread``."""
    log = np.random.default_rng(3).normal(0, 1, seeds)
    log = 1 + spread * (log - log.mean()) / log.std(ddof=1)
    examples = np.array([1, 2, 3, 5, 8, 13, 21, 34, 55, 89])
    return made(np.exp(log)[:, None] * examples**-power, examples, **axes), np.exp(log)


class TestBands:
    def test_losses_are_averaged_by_their_logs(self):
        curve, _ = power_laws()
        rows = curves.bands(curve).set_index("examples")
        assert rows.loc[34, "mean"] == pytest.approx(np.exp(1) * 34**-0.5, rel=1e-12)
        half = 0.3 / np.sqrt(6) * 2.5705818  # t of 5 degrees
        assert rows.loc[34, "high"] == pytest.approx(rows.loc[34, "mean"] * np.exp(half), rel=1e-6)
        assert (rows["n"] == 6).all() and (rows["excluded"] == 0).all()

    def test_shares_are_averaged_as_they_are(self):
        curve, _ = power_laws()
        rows = curves.bands(curve, "held_out_accuracy").set_index("examples")
        expected = curve[curve["examples"] == 34]["held_out_accuracy"].mean()
        assert rows.loc[34, "mean"] == pytest.approx(expected, rel=1e-12)

    def test_common_examples_are_interpolated_in_logs(self):
        curve, factors = power_laws()
        values = curves.at(curve, [10, 70.5])
        assert values.loc["run1", :, 70.5].to_numpy() == pytest.approx(factors * 70.5**-0.5)
        rows = curves.bands(curve, examples=[10.0, 1000.0])
        assert rows["mean"].to_numpy() == pytest.approx([np.exp(1) * 10**-0.5, np.nan], nan_ok=True)
        assert rows["n"].tolist() == [6, 0]

    def test_diverged_seeds_are_counted(self):
        curve, factors = power_laws()
        gone = (curve["seed"] == 2) & (curve["examples"] > 5)
        curve.loc[gone, ["held_out_loss", "held_out_accuracy"]] = np.nan
        rows = curves.bands(curve).set_index("examples")
        assert rows.loc[5, "excluded"] == 0 and rows.loc[8, ["n", "excluded"]].tolist() == [5, 1]
        kept = np.delete(factors, 2)
        assert rows.loc[8, "mean"] == pytest.approx(np.exp(np.log(kept).mean()) * 8**-0.5)
        assert np.isnan(curves.final(curve)["run1", 2])

    def test_final_values_are_those_of_each_runs_last_step(self):
        short = power_laws(batch_size=2)[0]
        both = pd.concat([power_laws()[0], short[short["examples"] <= 34]])
        rows = curves.final_bands(both).set_index("run")
        assert rows["mean"].to_numpy() == pytest.approx(np.exp(1) * np.array([89, 34]) ** -0.5)

    def test_runs_must_be_kept_apart(self):
        both = pd.concat([power_laws()[0], power_laws(batch_size=2)[0]])
        with pytest.raises(InputError, match=r"^by must keep 2 runs apart; got nothing$"):
            curves.bands(both, by=())
        with pytest.raises(InputError, match="did you mean held_out_loss"):
            curves.bands(both, "held_out_los")


class TestNeeded:
    def test_the_crossing_of_a_power_law_is_exact(self):
        curve, factors = power_laws()
        found = curves.needed(curve, 0.6)
        assert found["run1"].to_numpy() == pytest.approx((factors / 0.6) ** 2, rel=1e-9)

    def test_what_is_never_reached_needs_more_than_was_logged(self):
        curve, factors = power_laws()
        level = np.sort(factors)[2] * 89**-0.5 * 1.0001
        found = curves.needed(curve, level)
        assert np.isinf(found).sum() == 3 and (found[np.isfinite(found)] <= 89).all()

    def test_the_first_crossing_counts_and_the_first_step_is_the_least(self):
        curve = made([[2.0, 0.5, 2.0, 0.1], [0.5, 0.4, 0.3, 0.2]], [2, 4, 8, 16])
        found = curves.needed(curve, 1.0, "step", by="batch_size")
        assert found[1].to_numpy() == pytest.approx([2 * np.sqrt(2), 2])

    def test_a_seed_that_diverges_first_never_gets_there(self):
        curve = made([[2.0, np.nan, np.nan]], [2, 4, 8])
        assert np.isinf(curves.needed(curve, 1.0)["run1", 0])


def hyperbola(seeds=12, critical=50.0, least=400.0, spread=0.2, own=0.1, seed=0):
    """Examples needed on the hyperbola; seeds differ, alike at all batch sizes, and each alone."""
    random = np.random.default_rng(seed)
    index = pd.MultiIndex.from_product([SIZES, range(seeds)], names=["batch_size", "seed"])
    logs = np.log(least * (1 + np.repeat(SIZES, seeds) / critical))
    logs = logs + np.tile(random.normal(0, spread, seeds), len(SIZES))
    return pd.Series(np.exp(logs + random.normal(0, own, len(logs))), index)


class TestTradeOff:
    def test_points_on_the_hyperbola_give_it_back(self):
        found = curves.trade_off(hyperbola(spread=0, own=0), 50)
        assert found.batch.mean == pytest.approx(50, rel=1e-4)
        assert found.examples.mean == pytest.approx(400, rel=1e-4)
        assert found.steps.mean == pytest.approx(8, rel=1e-4)
        assert found.misfit < 1e-5
        S, E = found.points["steps"], found.points["examples"]
        assert ((S / 8 - 1) * (E / 400 - 1)).to_numpy() == pytest.approx(1, rel=1e-9)

    def test_intervals_hold_the_truth_as_often_as_they_say(self):
        fits = [curves.trade_off(hyperbola(seed=k), 200) for k in range(40)]
        for name, truth in (("batch", 50), ("examples", 400), ("steps", 8)):
            intervals = [getattr(fit, name) for fit in fits]
            held = sum(i.low <= truth <= i.high for i in intervals)
            # Quantiles of 12 resampled seeds are somewhat narrow: 90 % or so.
            assert binom.cdf(held, 40, 0.9) > 1e-3, name
        assert all(fit.batch.high / fit.batch.low < 2 for fit in fits)

    def test_batch_sizes_at_which_a_seed_falls_short_are_left_out(self):
        needed = hyperbola()
        needed[512, 3] = np.inf
        found = curves.trade_off(needed, 50)
        assert found.left_out == (512,) and list(found.points["batch_size"]) == list(SIZES[:-1])
        with pytest.raises(InputError, match=r"at least 3 batch sizes; got 2"):
            curves.trade_off(needed[[256, 128, 512]])

    @pytest.mark.parametrize("power, batch", [(0, np.inf), (1, 0.0)])
    def test_a_line_without_a_bend_has_no_critical_batch(self, power, batch):
        needed = hyperbola(spread=0, own=0)
        needed[:] = 100.0 * needed.index.get_level_values("batch_size") ** power
        assert curves.trade_off(needed, 10).batch.mean == batch


class TestNoiseScale:
    def test_the_median_takes_what_shows_no_signal_as_infinite(self):
        curve = made(np.ones((9, 2)), [8, 16], 8)
        curve["noise_scale"] = np.repeat([1.0, 2, 3, 4, 5, 6, 7, np.nan, np.nan], 2)
        rows = curves.noise_scales(curve)
        # P(Bin(9, ½) ≤ 1) = 0.0195: the second and the eighth value.
        assert rows.loc[0, ["noise_scale", "low", "high"]].tolist() == [5, 2, np.inf]
        few = curves.noise_scales(curve[curve["seed"] < 5])
        assert few.loc[0, "noise_scale"] == 3 and np.isnan(few.loc[0, "low"])

    def test_coupled_examples_have_none(self):
        curve = made(np.ones((9, 2)), [8, 16], 8).assign(noise_scale=np.nan)
        with pytest.raises(InputError, match="must hold a noise scale; got none"):
            curves.noise_scales(curve)

    def test_the_critical_batch_is_the_mean_over_noiseless_steps(self):
        """Loss e^-s, where a step moves s by 1/(1 + b/B), with b = 10 to s = 5, then 90."""
        curve = []
        for size in SIZES:
            steps = np.unique(np.geomspace(1, 2000, 300).astype(int))
            first = np.minimum(5, steps / (1 + 10 / size))
            s = first + (steps - first * (1 + 10 / size)) / (1 + 90 / size)
            noise = np.where((steps - 1) / (1 + 10 / size) < 5, 10.0, 90.0)
            one = made(np.tile(np.exp(-s), (8, 1)), steps * size, size)
            curve.append(one.assign(noise_scale=np.tile(noise, 8)))
        curve = pd.concat(curve)
        loss = np.exp(-15)  # s = 15: a third of the way at 10, two thirds at 90
        found = curves.trade_off(curves.needed(curve, loss, by="batch_size"), 20)
        expected = (5 * 10 + 10 * 90) / 15
        assert found.batch.mean == pytest.approx(expected, rel=0.01)
        for size in (8, 32):
            of = curves.mean_noise_scale(curve[curve["batch_size"] == size], loss)
            assert of.mean == pytest.approx(expected, rel=0.03)

    def test_the_way_to_the_loss_must_end(self):
        curve, _ = power_laws()
        with pytest.raises(InputError, match=r"must reach the loss 0\.01 in every seed"):
            curves.mean_noise_scale(curve, 0.01)


def pair(ratio, own=0.05, seeds=16, seed=0, shared=1.0):
    """Curves at batch sizes 1 and 2, the second ``ratio`` times as high; what seeds share is
    large, what each curve has alone is ``own``."""
    random = np.random.default_rng(seed)
    examples = np.array([2, 4, 8, 16, 32])
    base = random.normal(0, shared, (seeds, 1)) - np.log(examples)
    noise = random.normal(0, own, (2, seeds, len(examples)))
    return pd.concat(
        [
            made(np.exp(base + noise[0]), examples, 1),
            made(np.exp(base + noise[1] + np.log(ratio)), examples, 2),
        ]
    )


class TestCoincidence:
    def verdict(self, curve, margin=0.1):
        (row,) = curves.coincidences(curve, 1, [8, 16, 32], margin).to_dict("records")
        assert row["batch_size"] == 2
        return row

    def test_curves_coincide_differ_or_leave_it_open(self):
        assert self.verdict(pair(1.02))["verdict"] == curves.COINCIDE
        assert self.verdict(pair(1.4))["verdict"] == curves.DIFFER
        assert self.verdict(pair(0.7))["verdict"] == curves.DIFFER
        assert self.verdict(pair(1.02, own=0.5))["verdict"] == curves.UNDECIDED

    def test_the_furthest_ratio_is_given_with_its_interval(self):
        curve = pair(1.2)
        row = self.verdict(curve)
        logs = np.log(curves.at(curve, [row["examples"]], by="batch_size"))
        differences = logs[2].to_numpy() - logs[1].to_numpy()
        assert row["ratio"] == pytest.approx(np.exp(differences.mean()))
        interval = ttest_1samp(differences, 0).confidence_interval(0.9)
        assert [row["low"], row["high"]] == pytest.approx(np.exp(interval))

    def test_curves_at_the_margin_seldom_pass(self):
        """A test of size α: curves 10 % apart are taken to coincide in at most 5 % of trials."""
        trials = [pair(1.1, seed=k).assign(trial=k) for k in range(60)]
        rows = curves.coincidences(pd.concat(trials), 1, [8, 16, 32], 0.1, by="trial")
        assert len(rows) == 60
        assert binom.sf((rows["verdict"] == curves.COINCIDE).sum() - 1, 60, 0.05) > 1e-3
        # And seldom to differ.
        assert binom.sf((rows["verdict"] == curves.DIFFER).sum() - 1, 60, 0.05) > 1e-3

    def test_one_point_apart_is_enough(self):
        curve = pair(1.0, own=0.02)
        last = (curve["batch_size"] == 2) & (curve["examples"] == 32)
        curve.loc[last, "held_out_loss"] *= 1.3
        row = self.verdict(curve)
        assert row["verdict"] == curves.DIFFER and row["examples"] == 32

    def test_a_seed_that_diverges_alone_does_not_coincide(self):
        curve = pair(1.0, own=0.01)
        gone = (curve["batch_size"] == 2) & (curve["seed"] == 3) & (curve["examples"] > 8)
        curve.loc[gone, "held_out_loss"] = np.nan
        row = self.verdict(curve)
        assert row["verdict"] == curves.DIFFER and (row["n"], row["diverged"]) == (16, 1)
        both = curve["seed"].eq(3) & (curve["examples"] > 8)
        row = self.verdict(curve.assign(held_out_loss=curve["held_out_loss"].mask(both)))
        assert row["verdict"] == curves.COINCIDE and (row["n"], row["diverged"]) == (15, 0)

    def test_what_cannot_be_compared_is_said(self):
        curve = pair(1.0)
        with pytest.raises(InputError, match=r"^batch_size must be one of 1, 2; got 4"):
            curves.coincidences(curve, 4, [8], 0.1)
        with pytest.raises(InputError, match=r"what all runs logged, 2 to 32; got 1 to 8"):
            curves.coincidences(curve, 1, [1, 8], 0.1)
        with pytest.raises(InputError, match=r"^margin must be a finite number above 0; got 0"):
            curves.coincidences(curve, 1, [8], 0)
