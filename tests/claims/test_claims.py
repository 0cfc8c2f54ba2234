"""Every claim reads as expected, and reads otherwise once an error is planted."""

import json
from dataclasses import replace
from math import isfinite, isnan, log10, nan, sqrt
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from experiments import claims as command
from flowlab import claims, initializers, studies
from flowlab.analysis.statistics import DELTA
from flowlab.claims import chains, compare, parity, residual, suite
from flowlab.claims.claim import CONDITIONAL, FAILS, HOLDS, OPEN
from flowlab.claims.trial import Trial
from flowlab.errors import InputError
from flowlab.kernel import Kernel
from flowlab.layers import Linear
from flowlab.numerics import scale
from flowlab.storage import tables

SEEDS = 32
CLAIMS = claims.load()
THEMES = (
    *("adjoints", "chains", "initialization", "parity", "rates", "residual", "softmax"),
    "transposes",
)


def verdict(id: str) -> str:
    return CLAIMS[id].check(Trial(0, SEEDS)).verdict


# --- errors to plant ----------------------------------------------------------------------------


def tilted(factor, column=DELTA):
    """‖δ‖² is measured ``factor`` times too large for each layer travelled backward."""

    def plant(patch):
        measure = Trial.measure

        def wrong(self, *args, **axes):
            table = measure(self, *args, **axes)
            travelled = table["layer"].max() - table["layer"]
            return table.assign(**{column: table[column] + travelled * log10(factor) / 2})

        patch.setattr(Trial, "measure", wrong)

    return plant


def frozen(patch):
    """Every seed repeats the first one's norms, but for rounding."""
    measure = Trial.measure

    def wrong(self, *args, **axes):
        table = measure(self, *args, **axes)
        first = table.loc[table["seed"] == self.seed, DELTA].to_numpy()
        repeated = np.tile(first, table["seed"].nunique())
        return table.assign(**{DELTA: repeated * (1 + 1e-9 * table["seed"])})

    patch.setattr(Trial, "measure", wrong)


def corrupt(ending, factor=1 + 1e-6):
    """What a pass gives under names that end so is ``factor`` times too large."""

    def plant(patch):
        run = Trial.run

        def wrong(self, *args):
            got = run(self, *args)
            gradients = {
                path: g * (factor if path.endswith(ending) else 1)
                for path, g in got.gradients.items()
            }
            return replace(got, dx=got.dx * (factor if ending == "dx" else 1), gradients=gradients)

        patch.setattr(Trial, "run", wrong)

    return plant


def mutant_layer(factor):
    """Linear's own pullback is off by a factor."""

    def plant(patch):
        pullback = Linear.pullback

        def wrong(self, *args):
            dx, gradients = pullback(self, *args)
            return dx * factor, gradients

        patch.setattr(Linear, "pullback", wrong)

    return plant


def mute_kernels(patch):
    """Kernels refuse no shape."""
    patch.setattr(Kernel, "__call__", lambda self, *arrays: None)


def scheme(name, **change):
    """An initializer's variance is wrong."""

    def plant(patch):
        patch.setitem(initializers.SCHEMES, name, replace(initializers.SCHEMES[name], **change))

    return plant


def stretched_orthogonal(patch):
    fill = initializers.fill_orthogonal.run

    def wrong(seeds, layer, out, gain, *rest):
        fill(seeds, layer, out, 1.01 * gain, *rest)

    patch.setattr(initializers, "fill_orthogonal", SimpleNamespace(run=wrong))


def clipped_by_value(patch):
    def wrong(gradients, most):
        return {k: np.clip(g, -0.1, 0.1) for k, g in gradients.items()}

    patch.setattr(chains, "clip_by_norm", wrong)


def miscounted(patch):
    right = scale.renormalise
    patch.setattr(scale, "renormalise", lambda x, norms: right(x, norms) + 1)


def never_renormalised(patch):
    patch.setattr(scale, "renormalise", lambda x, norms: np.zeros(len(x), np.int64))


def unscaled_fixup(patch):
    right = residual.one_step
    patch.setattr(residual, "one_step", lambda trial, blocks, factor: right(trial, blocks, 1.0))


PLANTS = {
    "S1": [corrupt("W"), corrupt("dx"), corrupt("b"), mute_kernels],
    "S2": [mutant_layer(1 + 1e-6), mutant_layer(nan)],
    "S6": [tilted(1.1), scheme("normal", numerator=1.3)],
    "S7": [scheme("literal", power=1.0, numerator=2.0), tilted(1.3)],
    "S15": [mutant_layer(1 + 1e-6), mutant_layer(nan), corrupt("W")],
    "A1": [corrupt("dx"), corrupt("W"), corrupt("b")],
    "A2": [corrupt("dx", 1.2), corrupt("W", 1.2), corrupt("b", 1.2), scheme("he", numerator=3.0)],
    "A3": [corrupt("2.W")],
    "A5": [corrupt("W"), corrupt("b")],
    "A8": [corrupt("dx")],
    "A9": [corrupt("dx")],
    "A10": [clipped_by_value],
    "A11": [tilted(1 + 1e-9), stretched_orthogonal],
    "A13": [miscounted, never_renormalised],
    "I2": [corrupt("dx", 1.5), scheme("he", numerator=3.0)],
    "I3": [tilted(1.1), tilted(1.1, "dW_log10_norm")],
    "R2": [frozen],
    "R3": [corrupt("dx"), corrupt("alpha")],
    "R4": [corrupt("W", 1.3), unscaled_fixup],
    "R5": [corrupt("dx", 3.0)],
    "I1-orthogonal": [stretched_orthogonal],
}
for _id in CLAIMS:
    if _id.startswith("I1-") and _id != "I1-orthogonal":
        _name = _id.removeprefix("I1-")
        PLANTS[_id] = [scheme(_name, numerator=1.1 * initializers.SCHEMES[_name].numerator)]
    if _id.startswith("M1-"):
        PLANTS[_id] = [tilted(1.1)]


def test_every_claim_has_a_plant():
    """Claims of other files bring their own tests."""
    own = {
        id
        for id, claim in CLAIMS.items()
        if getattr(claim.check, "func", claim.check).__module__.split(".")[-1] in THEMES
    }
    assert own == set(PLANTS)


@pytest.mark.parametrize("id", PLANTS)
def test_verdict(id):
    claim = CLAIMS[id]
    finding = claim.check(Trial(0, SEEDS))
    assert finding.verdict in claim.expected
    if id == "S15":
        assert finding.verdict == HOLDS
    if finding.verdict == HOLDS:
        assert abs(finding.measured - finding.predicted) <= finding.tolerance
    assert isnan(finding.low) or finding.low <= finding.measured <= finding.high
    assert finding.sentence.endswith(".") and "\n" not in finding.sentence


@pytest.mark.parametrize(
    "id, plant", [(id, plant) for id, plants in PLANTS.items() for plant in plants]
)
def test_planted_error_turns_the_verdict(id, plant, monkeypatch):
    plant(monkeypatch)
    found = verdict(id)
    assert found == FAILS if id in ("S2", "S15") else found not in CLAIMS[id].expected


def test_expected_verdicts():
    assert CLAIMS["S7"].expected == (FAILS,)
    assert CLAIMS["S15"].expected == (HOLDS, OPEN)
    for id in ("S1", "S2", "S6"):
        assert CLAIMS[id].expected == (HOLDS,)


def test_no_framework_is_inconclusive(monkeypatch):
    monkeypatch.setattr(parity, "find_spec", lambda name: None)
    finding = CLAIMS["S15"].check(Trial(0, 2))
    assert finding.verdict == OPEN and isnan(finding.measured)


# --- comparisons --------------------------------------------------------------------------------


def test_mean_takes_the_larger_standard_error():
    values = np.array([1.0, 2.0, 3.0, 4.0])
    se = values.std(ddof=1) / 2
    assert compare.mean("", values, 2.5).tolerance == pytest.approx(4 * se)
    assert compare.mean("", values, 2.5, sd=10).tolerance == pytest.approx(20)
    assert compare.mean("", values, 2.5, allowance=1).tolerance == pytest.approx(4 * se + 1)
    assert compare.mean("", values, 2.5 + 4.1 * se).verdict == FAILS
    assert compare.mean("", values, 2.5 + 3.9 * se).verdict == HOLDS


def test_rate_of_sums_of_logs():
    logs = np.log(2.0) * 5 + np.array([-0.1, 0.1, -0.1, 0.1])
    got = compare.rate("", logs, 5, np.log(2.0) * 5)
    assert got.measured == pytest.approx(2) and got.predicted == pytest.approx(2)
    assert got.tolerance == pytest.approx(2 * 4 * logs.std(ddof=1) / 2 / 5)
    assert got.low < 2 < got.high


def test_variance_has_the_error_of_a_chi_square():
    values = np.random.default_rng(0).standard_normal(201)
    got = compare.variance("", values, 1.0)
    assert got.measured == pytest.approx(values.var(ddof=1))
    assert got.tolerance == pytest.approx(4 * sqrt(2 / 200))


def test_what_cannot_be_kept_apart_is_inconclusive():
    assert compare.Comparison("", 1.0, 1.1, 0.5, against=1.4).verdict == OPEN
    assert compare.Comparison("", 1.0, 1.1, 0.5, against=1.6).verdict == HOLDS
    assert compare.Comparison("", 1.0, 1.6, 0.5, against=1.4).verdict == FAILS
    assert compare.Comparison("", 1.0, nan, 0.5).verdict == OPEN
    assert compare.mean("", [1.0], 1.0).verdict == OPEN
    assert compare.identity("", [0.0, nan]).verdict == FAILS
    assert compare.mean("", [1.0, 1.1, np.inf], 1.0).verdict == OPEN


def test_the_worst_speaks():
    good, better = (compare.Comparison("", 0.0, m, 1.0) for m in (0.5, 0.1))
    failed, unsure = (compare.Comparison("", 0.0, m, 1.0) for m in (2.0, nan))
    assert compare.worst((better, good)) is good
    assert compare.worst((good, unsure, better)) is unsure
    assert compare.worst((good, unsure, failed)) is failed
    exact = compare.Comparison("", 0.0, 0.0, 0.0)
    assert compare.worst((exact, good)) is good


# --- the suite and its command ------------------------------------------------------------------


def test_run_gives_one_row_each():
    reported = []
    table = claims.run(seed=3, seeds=8, only="A9,A1", report=lambda *row: reported.append(row))
    assert list(table["id"]) == ["A1", "A9"] and list(table.columns) == list(suite.COLUMNS)
    assert table["as_expected"].all() and [row[1:] for row in reported] == [(1, 2), (2, 2)]
    pd.testing.assert_frame_equal(table, claims.run(seed=3, seeds=8, only="A1,A9"))


def test_families_letters_and_order():
    assert set(claims.select("A11")) == {"A11", "A11-convolution", "A11-recurrence"}
    assert {"S1", "S2", "S15"} <= set(claims.select("S"))
    ids = list(CLAIMS)
    assert ids.index("S2") < ids.index("S15") < ids.index("A1") < ids.index("A10")


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["only=S77"], "did you mean S7?"),
        (["sed=1"], "did you mean seed?"),
        (["seed=x"], "error: seed must be an integer; got x\n"),
        (["seed=-1"], "error: seed must be at least 0; got -1\n"),
        (["seeds=1"], "error: seeds must be at least 2, for an interval; got 1\n"),
        (["S7"], "error: options are written key=value; got S7\n"),
    ],
)
def test_bad_input_is_one_line(arguments, line, capsys, tmp_path):
    assert command.main([*arguments, f"results_dir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1


def test_the_command_measures_findings_of_studies(tmp_path, capsys):
    assert command.main([f"results_dir={tmp_path}", "seeds=4", "only=R1-mix,A9"]) == 0
    assert "R1-mix" in capsys.readouterr().out


@pytest.fixture
def two_claims(monkeypatch):
    few = {id: CLAIMS[id] for id in ("A1", "A9")}
    monkeypatch.setattr(suite, "load", lambda: few)


def test_command_writes_the_table(two_claims, tmp_path, capsys):
    assert command.main([f"results_dir={tmp_path}", "seeds=4"]) == 0
    folder = tmp_path / "claims"
    assert sorted(p.name for p in folder.iterdir()) == ["claims.csv", "claims.parquet"]
    table = pd.read_parquet(folder / "claims.parquet")
    assert list(table["id"]) == ["A1", "A9"] and set(table["verdict"]) == {HOLDS}
    pd.testing.assert_frame_equal(pd.read_csv(folder / "claims.csv"), table, check_dtype=False)
    stored = tables.metadata(folder / "claims.parquet")
    assert stored["settings"] == {"seed": 0, "seeds": 4, "only": None}
    assert {"python", "numpy", "flowlab"} <= stored["versions"].keys()
    assert stored["command"].startswith("python -m experiments.claims")
    assert json.dumps(stored)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= command.WIDTH + len(str(tmp_path))
    assert "Every verdict is as expected." in printed


def test_command_reports_a_contradiction(two_claims, tmp_path, capsys, monkeypatch):
    corrupt("dx")(monkeypatch)
    assert command.main([f"results_dir={tmp_path}", "only=A9"]) == 1
    assert "A9 was expected to read 'holds' and reads 'does not hold'." in capsys.readouterr().out
    assert not (tmp_path / "claims").exists()


def test_claims_are_printed_at_120_columns(capsys):
    studies.load()
    for index, claim in enumerate(claims.load().values(), 1):
        assert claim.statement and claim.source
        row = dict.fromkeys(suite.COLUMNS, -0.01234567)
        row |= {"id": claim.id, "statement": claim.statement, "sentence": "x " * 200}
        row |= {"verdict": CONDITIONAL, "expected": HOLDS, "as_expected": True}
        command.show(row, index, 100)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= command.WIDTH


def test_a_claim_is_registered_once():
    with pytest.raises(ValueError, match="S1 is registered twice"):
        claims.claim("S1", "again", "nowhere")(lambda trial: None)


def test_seeds_must_be_enough():
    with pytest.raises(InputError, match=r"^seeds must be at least 2"):
        claims.run(seeds=1)
    assert isfinite(compare.mean("", [1.0, 1.1], 1.0).tolerance)
