"""A test of gradient flow passes, fails or is inconclusive, each at its rate."""

from types import SimpleNamespace

import numpy as np
import pytest

import flowlab
from flowlab import InputError
from flowlab.analysis.statistics import mean_interval
from flowlab.modules import assertion
from flowlab.modules.assertion import FlowFailed, FlowInconclusive
from tests.support import families

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

WITHIN = 0.02


def asserted(monkeypatch, slopes):
    """What assert_flow makes of seeds with these slopes."""
    made = families.probe(slopes, (3,))
    monkeypatch.setattr(assertion, "probe", lambda *given, **more: made)
    return flowlab.assert_flow(None, batch=0, within=WITHIN)


def outcome(monkeypatch, slopes):
    """The outcome of seeds whose table is not looked at: a thousand of them take a moment."""
    made = SimpleNamespace(
        verdict=SimpleNamespace(slope=mean_interval(slopes), sentence=""), table=None
    )
    monkeypatch.setattr(assertion, "probe", lambda *given, **more: made)
    monkeypatch.setattr(assertion, "_worst", lambda table: "")
    try:
        flowlab.assert_flow(None, batch=0, within=WITHIN)
    except FlowFailed:
        return "failed"
    except FlowInconclusive:
        return "inconclusive"
    return "passed"


@pytest.mark.parametrize(
    "slopes, expected",
    [
        ([0.001, -0.002, 0.0005, 0.003], "passed"),
        ([0.018, 0.0181, 0.0179, 0.018], "passed"),  # inside, and shown to be
        ([0.1, 0.11, 0.12, 0.1], "failed"),
        ([-0.0201, -0.0202, -0.0203, -0.0202], "failed"),
        ([0.03, -0.04, 0.05, -0.02], "inconclusive"),  # no difference found is not equivalence
        ([0.019, 0.022, 0.018, 0.021], "inconclusive"),
    ],
)
def test_outcomes(monkeypatch, slopes, expected):
    assert outcome(monkeypatch, slopes) == expected


def test_the_outcomes_are_assertion_errors_of_their_own():
    assert issubclass(FlowFailed, AssertionError) and issubclass(FlowInconclusive, AssertionError)
    assert not issubclass(FlowFailed, FlowInconclusive)
    assert not issubclass(FlowInconclusive, FlowFailed)


@pytest.mark.parametrize("true, wrong", [(WITHIN, "passed"), (-WITHIN, "passed"), (0.0, "failed")])
def test_errors_are_as_rare_as_stated(monkeypatch, true, wrong):
    """On the border it passes in at most 5 % of the cases, in the middle it fails in 5 % at most:
    over 1000 ensembles, within three standard errors."""
    rng = np.random.default_rng(11)
    count = sum(
        outcome(monkeypatch, true + 0.01 * rng.normal(size=6)) == wrong for _ in range(1000)
    )
    assert count / 1000 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1000)


def test_it_passes_where_the_slope_is_small(monkeypatch):
    rng = np.random.default_rng(5)
    found = [outcome(monkeypatch, 0.004 * rng.normal(size=8)) for _ in range(40)]
    assert found.count("passed") >= 38


def test_the_seeds_that_would_decide_do_decide(monkeypatch):
    rng = np.random.default_rng(2)
    slopes = 0.003 + 0.03 * rng.normal(size=6)
    with pytest.raises(
        FlowInconclusive, match=r"about ([0-9,]+) more seeds would decide"
    ) as caught:
        asserted(monkeypatch, slopes)
    more = int(str(caught.value).split("about ")[1].split(" more")[0].replace(",", ""))
    # Seeds with the same mean and spread, as many more.
    repeated = np.resize(slopes, 6 + more)
    repeated = slopes.mean() + (repeated - repeated.mean()) * slopes.std(ddof=1) / repeated.std(
        ddof=1
    )
    assert outcome(monkeypatch, repeated) in ("passed", "failed")
    fewer = repeated[: (6 + more) // 2]
    fewer = slopes.mean() + (fewer - fewer.mean()) * slopes.std(ddof=1) / fewer.std(ddof=1)
    assert outcome(monkeypatch, fewer) == "inconclusive"


def test_the_message_has_the_sentence_and_the_worst_rows(monkeypatch):
    with pytest.raises(FlowFailed) as caught:
        asserted(monkeypatch, [0.9, 0.91, 0.92])
    text = str(caught.value)
    first, *rest = text.splitlines()
    assert first.startswith("failed: the slope must lie within ±0.02 decades a layer; got 0.91")
    assert "Exploding: log10‖δ‖ changes by" in first
    assert rest[0] == "Worst rows:" and "(blocks.1 to blocks.0)" in text


def test_norms_that_are_not_known_fail_and_are_named(monkeypatch):
    made = families.probe([0.0, 0.001, 0.0], (3,), status="nonfinite")
    broken = (made.table["layer"] == 1) & (made.table["seed"] == 0)
    made.table.loc[broken, "delta_log10_norm"] = np.nan
    monkeypatch.setattr(assertion, "probe", lambda *given, **more: made)
    with pytest.raises(FlowFailed, match=r"1 of 3 seeds have norms") as caught:
        flowlab.assert_flow(None, batch=0)
    assert "layer 1 blocks.0 (Block): nonfinite" in str(caught.value)


def test_one_seed_is_inconclusive(monkeypatch):
    with pytest.raises(FlowInconclusive, match="from one seed, which has no interval: seeds=2"):
        asserted(monkeypatch, [0.0])


def test_within_must_be_a_number_above_zero():
    with pytest.raises(InputError, match=r"^within must be a finite number above 0; got 0$"):
        flowlab.assert_flow(None, batch=0, within=0)


def make(depth, gain=2**0.5):
    model = nn.Sequential()
    for _ in range(depth):
        model.append(nn.Linear(48, 48)).append(nn.ReLU())
        nn.init.normal_(model[-2].weight, std=gain / 48**0.5)
        nn.init.zeros_(model[-2].bias)
    return model.append(nn.Linear(48, 4))


def test_it_runs_as_it_is_written():
    x = torch.randn(16, 48, generator=torch.Generator().manual_seed(0))
    batch, criterion = (x, torch.arange(16) % 4), nn.CrossEntropyLoss()
    found = flowlab.assert_flow(
        make, depths=(4, 12), seeds=8, batch=batch, loss=criterion, within=0.04
    )
    assert found.verdict.slope.n == 8
    with pytest.raises(FlowFailed):
        flowlab.assert_flow(lambda d: make(d, 1.0), (4, 12), 4, batch, F.cross_entropy, within=0.04)
