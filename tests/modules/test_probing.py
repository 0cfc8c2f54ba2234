"""A family of models over depth and seeds: what is drawn, fed, measured, fitted and said."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import flowlab
from flowlab import InputError
from flowlab.analysis.verdicts import judge
from tests.support import families

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

STREAM = torch.Generator().manual_seed(0)
X, Y = torch.randn(24, 6, generator=STREAM), torch.randint(0, 4, (24,), generator=STREAM)
NORM = "delta_log10_norm"


def drawn(fan_in, fan_out, gain):
    one = nn.Linear(fan_in, fan_out)
    nn.init.normal_(one.weight, std=gain / math.sqrt(fan_in))
    nn.init.zeros_(one.bias)
    return one


class Chain(nn.Module):
    def __init__(self, depth, f=torch.tanh, width=24, gain=1.0):
        super().__init__()
        self.maps = nn.ModuleList(drawn(width if k else 6, width, gain) for k in range(depth))
        self.head, self.f = drawn(width, 4, gain), f

    def forward(self, x):
        for one in self.maps:
            x = self.f(one(x))
        return self.head(x)


def probed(make=Chain, depths=(3, 5), seeds=3, batch=(X, Y), loss=F.cross_entropy, **options):
    return flowlab.probe(make, depths, seeds, batch, loss, **options)


@pytest.fixture(scope="module")
def found():
    return probed(seeds=4)


# The fit


@pytest.mark.parametrize("depths", [(3, 6), (2, 3, 9), (7,)])
def test_the_slope_is_that_which_all_depths_of_a_seed_share(depths):
    slopes = np.array([-0.31, -0.24, -0.28, -0.35])
    made = families.probe(slopes, depths, noise=0.05, rng=np.random.default_rng(1))
    rng = np.random.default_rng(1)
    parts = {depth: [] for depth in depths}
    for depth in depths:  # the order in which the table drew its noise
        for slope in slopes:
            noise = [0.05 * rng.normal() for _ in range(depth)]
            parts[depth].append(slope * (depth - np.arange(1, depth + 1)) + noise)
    expected = []
    for seed in range(len(slopes)):
        design = [
            [d - b, *np.eye(len(depths))[k]] for k, d in enumerate(depths) for b in range(1, d + 1)
        ]
        values = np.concatenate([parts[depth][seed] for depth in depths])
        expected.append(np.linalg.lstsq(np.array(design), values, rcond=None)[0][0])
    slope = made.verdict.slope
    assert slope.mean == pytest.approx(np.mean(expected), rel=1e-9)
    half = stats.t.ppf(0.975, 3) * np.std(expected, ddof=1) / 2
    assert slope.high - slope.mean == pytest.approx(half, rel=1e-9)
    assert slope.n == 4


def test_a_seed_without_a_norm_is_left_out_and_counted():
    made = families.probe([-0.3, -0.2, -0.25])
    first = (made.table["seed"] == 1) & (made.table["layer"] == 2)
    made.table.loc[first, NORM] = -np.inf
    slope = made.verdict.slope
    assert (slope.n, slope.excluded) == (2, 1)
    assert slope.mean == pytest.approx(-0.275)


@pytest.mark.parametrize(
    "slopes, trend",
    [([-0.9, -0.91], "vanishing"), ([0.9, 0.91], "exploding"), ([0.01, 0.02], "kept")],
)
def test_the_trend_is_that_of_the_deepest_nets(slopes, trend):
    verdict = families.probe(slopes, (2, 6)).verdict
    assert verdict.trend == trend and verdict.sentence.lower().startswith(trend)
    # Between two blocks less than a decade is kept, whatever the slope.
    assert verdict.by_depth[2].trend == "kept"
    assert ("Other depths: kept at 2." in verdict.sentence) == (trend != "kept")
    assert f"{np.mean(slopes):.3f}" in verdict.sentence.replace("−", "-")


def test_one_block_has_no_slope():
    verdict = families.probe([0.1, 0.2], (1,)).verdict
    assert math.isnan(verdict.slope.mean) and "No slope: one block" in verdict.sentence


# What is drawn and fed


def test_slopes_are_those_of_gradients_taken_by_hand(found):
    """δ of every block by autograd in float64 sums, from the same draws."""
    expected = []
    for seed in range(4):
        moment = square = 0.0
        for depth in (3, 5):
            torch.manual_seed(seed)
            model, kept = Chain(depth), []
            x = X
            for one in model.maps:
                z = one(x)
                z.retain_grad()
                kept.append(z)
                x = torch.tanh(z)
            F.cross_entropy(model.head(x), Y).backward()
            norms = [float(torch.log10(z.grad.double().norm())) for z in kept]
            place = np.arange(depth) - (depth - 1) / 2
            moment, square = moment - place @ norms, square + place @ place
        expected.append(moment / square)
    assert found.verdict.slope.mean == pytest.approx(np.mean(expected), rel=1e-6)


def test_depths_are_paired_by_seed_and_blocks_numbered(found):
    rows = found.table[found.table["parameter"].eq("weight").fillna(False)]
    first = rows[rows["module"] == "maps.0"].pivot(
        index="seed", columns="depth", values="W_log10_norm"
    )
    assert (first[3] == first[5]).all() and first[3].nunique() == 4
    assert set(found.table.loc[found.table["module"] == "head", "block"].isna()) == {True}
    blocks = found.table.loc[found.table["module"] == "maps.2", "block"]
    assert set(blocks) == {3}
    assert found.table.groupby("depth")["run"].nunique().eq(1).all()
    assert found.table["run"].nunique() == 2


def test_the_same_probe_gives_the_same_bits_and_leaves_streams_alone(found):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    again = probed(seeds=4)
    assert torch.equal(torch.get_rng_state(), before)
    pd.testing.assert_frame_equal(again.table, found.table, check_exact=True)


def test_more_seeds_keep_those_there_were(found):
    two = probed(seeds=2, depths=(5,)).table
    rows = found.table[(found.table["seed"] < 2) & (found.table["depth"] == 5)]
    assert (two[NORM].dropna().to_numpy() == rows[NORM].dropna().to_numpy()).all()


def test_make_may_take_the_seed():
    given = []

    def make(depth, *, seed):
        given.append((depth, seed))
        return Chain(depth)

    probed(make, depths=(2, 3), seeds=2, seed=7)
    assert set(given) == {(2, 7), (2, 8), (3, 7), (3, 8)}


class Keywords(Chain):
    def forward(self, x=None, labels=None):
        output = super().forward(x)
        return {"logits": output, "loss": F.cross_entropy(output, labels)}


class Two(Chain):
    def forward(self, a, b):
        return super().forward(a + b)


@pytest.mark.parametrize(
    "make, batch, loss",
    [
        (Chain, lambda seed: (X, Y), F.cross_entropy),
        (Keywords, {"x": X, "labels": Y}, None),
        (Keywords, {"x": X, "labels": Y}, lambda output, batch: output["loss"]),
        (Two, ((X / 2, X / 2), Y), F.cross_entropy),
        (Chain, X, lambda output, batch: F.cross_entropy(output, Y)),
    ],
)
def test_every_form_of_a_batch_gives_the_same_norms(found, make, batch, loss):
    norms = probed(make, seeds=2, depths=(3,), batch=batch, loss=loss).table[NORM].dropna()
    rows = found.table[(found.table["seed"] < 2) & (found.table["depth"] == 3)][NORM].dropna()
    np.testing.assert_allclose(norms.to_numpy(), rows.to_numpy(), rtol=1e-6)


def test_a_batch_of_its_own_for_each_seed():
    given = []

    def batch(seed):
        given.append(seed)
        return X * (1 + seed), Y

    probed(batch=batch, depths=(2, 3), seeds=2, seed=4)
    assert given == [4, 5, 4, 5]


def test_settings_and_the_name_are_columns():
    table = probed(seeds=1, depths=(2,), name="mine", settings={"init": "lecun"}).table
    assert set(table["network"]) == {"mine"} and set(table["init"]) == {"lecun"}
    assert set(table["depth"]) == {2} and set(table["seeds"]) == {1}


def test_exponents_reach_depths_where_float32_ends():
    found = probed(lambda d: Chain(d, gain=1e-2), depths=(30,), seeds=2, exponents=True)
    assert found.verdict.trend == "vanishing"
    assert found.verdict.slope.mean == pytest.approx(-2.0, abs=0.2)
    bare = probed(lambda d: Chain(d, gain=1e-2), depths=(30,), seeds=2)
    assert bare.verdict.slope.excluded == 2
    assert "underflow" in set(bare.table["status"])


# The house


def test_the_table_serves_judge_figures_waterfall_and_folder(found, tmp_path):
    from flowlab import figures
    from flowlab.figures.waterfall import waterfall
    from flowlab.modules.account import account

    deepest = found.table[found.table["depth"] == 5]
    (run,) = deepest["run"].unique()
    verdict = judge(deepest, found.prediction[found.prediction["run"] == run])
    assert (verdict.first, verdict.last) == (1, 5)
    assert verdict == found.verdict.deepest
    assert figures.draw(found.table, found.prediction).axes
    assert found.plot(tmp_path / "probe") and (tmp_path / "probe.png").exists()
    gains = account(deepest)
    assert waterfall(gains).axes
    assert gains.groupby("seed")["log10_gain"].sum().to_numpy() == pytest.approx(
        gains.groupby("seed")["log10_end_to_end"].first().to_numpy(), rel=1e-12
    )
    folder = found.save(tmp_path)
    kept = flowlab.load(folder)
    assert sorted(kept["depth"].unique()) == [3, 5]
    ranked = flowlab.compare(folder)
    assert set(ranked["over"]) == {"2 layers", "4 layers"}
    assert ranked.set_index("depth")["theory"].notna().all()


# Bad input


@pytest.mark.parametrize(
    "bad, line",
    [
        ({"depths": ()}, r"depths must be different numbers, at least one; got \[\]"),
        ({"depths": (3, 3)}, r"depths must be different numbers, at least one; got \[3, 3\]"),
        ({"depths": (0, 3)}, "depth must be at least 1; got 0"),
        ({"seeds": 0}, "seeds must be at least 1; got 0"),
        ({"seed": -1}, "seed must be at least 0; got -1"),
        ({"batch": None}, "batch must be .* got None"),
        ({"loss": None}, "loss must be a function of .* got None and an output of type Tensor"),
        ({"loss": lambda o, t: o}, r"loss must return a single number .* got \(24, 4\)"),
        ({"make": lambda depth: depth}, "make must return a torch.nn.Module; got int"),
        ({"kept_within": 0}, "kept_within must be a finite number above 0; got 0"),
        ({"settings": {"colour": "red"}}, "setting must be a known name; got colour.*"),
    ],
)
def test_bad_input_is_one_line(bad, line):
    with pytest.raises(InputError, match=f"^{line}$"):
        probed(**bad)
