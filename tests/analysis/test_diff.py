"""Two tables compared: effects, their correction, the first place, and what is said of it."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import flowlab
from flowlab.analysis.diff import VERDICTS, _compared, diff, holm
from flowlab.analysis.pairing import Pair
from flowlab.errors import InputError
from flowlab.schema import DELTA, NORMS

ACTIVATION, DW = "activation_log10_norm", "dW_log10_norm"
SEEDS, DEPTH = 12, 6


def table(run="a", depth=DEPTH, seeds=range(SEEDS), common=0, noise=0.02, columns=NORMS, **more):
    """A run whose networks differ by 1 decade, as seeds have it, and by ``noise`` of its own."""
    shared = np.random.default_rng(common).normal(0, 1, 1000)
    own = np.random.default_rng(sum(map(ord, run)))
    seeds = np.asarray(seeds)
    rows = len(seeds) * depth
    values = {
        name: np.repeat(shared[seeds], depth) + own.normal(0, noise, rows) for name in columns
    }
    places = {
        "seed": np.repeat(seeds, depth),
        "layer": np.tile(np.arange(1, depth + 1), len(seeds)),
    }
    return pd.DataFrame({"run": run, **places, "op": "linear", "status": "ok", **values, **more})


def moved(frame, column, layers, by):
    """The table with a quantity moved by some decades in some layers."""
    at = frame["layer"].isin(layers)
    return frame.assign(**{column: frame[column] + by * at})


def holm_by_definition(p, alpha):
    """Which hypotheses it rejects: the smallest p is held against α/m, the next against α/(m − 1)
    and so on, up to the first that is not below."""
    rejected = np.zeros(len(p), bool)
    for k, place in enumerate(np.argsort(p)):
        if p[place] >= alpha / (len(p) - k):
            break
        rejected[place] = True
    return rejected


# The effect


def test_an_effect_is_that_of_a_paired_t_test():
    a, b = table("a"), moved(table("b"), ACTIVATION, [3, 4], 0.03)
    found = diff(a, b, within=0.0)
    count = len(NORMS) * DEPTH
    assert len(found.table) == count == found.tested
    for row in found.table.itertuples():
        x, y = (t[t["layer"] == row.layer][row.quantity].to_numpy() for t in (a, b))
        test = stats.ttest_rel(x, y)
        ends = test.confidence_interval(1 - 0.05 / count)
        assert row.effect == pytest.approx(np.mean(x - y), rel=1e-12)
        assert row.p == pytest.approx(test.pvalue, rel=1e-9)
        assert (row.low, row.high) == pytest.approx((ends.low, ends.high), rel=1e-9)
        assert row.n == SEEDS and row.largest == pytest.approx(np.abs(x - y).max())
    assert (found.table["parts"] == holm_by_definition(found.table["p"].to_numpy(), 0.05)).all()


def test_pairs_are_seeds_whatever_the_order_of_rows():
    a, b = table("a"), moved(table("b"), ACTIVATION, [2], 0.1)
    whole, mixed = (
        diff(a, b),
        diff(a.sample(frac=1, random_state=1), b.sample(frac=1, random_state=2)),
    )
    pd.testing.assert_frame_equal(whole.table, mixed.table)
    assert whole.first["layer"] == 2  # seeds differ by a decade: unpaired, it would be lost


def test_the_sign_is_that_of_a_minus_b():
    a, b = table("a", noise=0.001), moved(table("b", noise=0.001), DELTA, [4], 0.5)
    assert diff(a, b).first["effect"] == pytest.approx(-0.5, abs=0.01)
    assert diff(b, a).first["effect"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("within", [0.0, 0.04])
def test_a_difference_within_a_margin_is_none(within):
    by = 0.03
    a, b = table("a", noise=0.001), moved(table("b", noise=0.001), ACTIVATION, [2], by)
    found = diff(a, b, within=within)
    assert found.table.set_index(["quantity", "layer"]).loc[(ACTIVATION, 2), "parts"] == (
        by > within
    )
    assert found.within == within


def test_a_margin_is_tested_from_its_edge():
    values = np.random.default_rng(0).normal(0.3, 0.1, (8, 1))
    found = _compared(_pair(values, np.zeros_like(values)), 0.2).iloc[0]
    expected = stats.ttest_1samp(values[:, 0], 0.2).pvalue  # of a mean that lies above the margin
    assert found["p"] == pytest.approx(expected, rel=1e-9)


def test_a_constant_difference_parts_without_a_spread():
    a = table("a")
    found = diff(a, a.assign(**{DELTA: a[DELTA] - 0.25}))
    rows = found.table[found.table["quantity"] == DELTA]
    assert rows["parts"].all() and found.table["parts"].sum() == DEPTH
    assert rows["effect"].to_numpy() == pytest.approx(0.25)
    assert rows["high"].to_numpy() - rows["low"].to_numpy() == pytest.approx(0, abs=1e-12)
    assert found.first["layer"] == DEPTH


# The correction


def test_adjusted_p_values_are_those_of_the_step_down():
    rng = np.random.default_rng(3)
    for _ in range(50):
        p = rng.uniform(0, 1, 9) ** rng.integers(1, 6)
        for alpha in (0.01, 0.05, 0.2):
            assert ((holm(p) < alpha) == holm_by_definition(p, alpha)).all()
    assert holm(np.array([0.01, np.nan, 0.04, 0.03])) == pytest.approx(
        [0.03, np.nan, 0.06, 0.06], nan_ok=True
    )


def _pair(a, b):
    kinds = np.full(a.shape, "ok", dtype=object)
    return Pair(DELTA, pd.DataFrame({"place": range(a.shape[1])}), a, b, kinds, kinds)


@pytest.mark.parametrize("shared", [0.0, 0.9])
def test_without_an_effect_a_false_parting_is_as_rare_as_the_level_says(shared):
    """The share of families with one at least, for layers that are independent and that are not."""
    families, size, seeds, level = 2000, 20, 6, 0.95
    rng = np.random.default_rng(5)
    noise = rng.normal(size=(seeds, families, size))
    common = rng.normal(size=(seeds, families, 1))
    values = (np.sqrt(shared) * common + np.sqrt(1 - shared) * noise).reshape(seeds, -1)
    p = _compared(_pair(values, np.zeros_like(values)), 0.0)["p"].to_numpy().reshape(families, size)
    false = np.mean([(holm(row) < 1 - level).any() for row in p])
    error = np.sqrt(level * (1 - level) / families)
    assert false <= 1 - level + 3 * error
    if not shared:  # of independent tests it is known
        expected = 1 - (1 - (1 - level) / size) ** size
        assert false == pytest.approx(expected, abs=3 * error)


@pytest.mark.parametrize("layer", [1, 3, DEPTH])
def test_a_planted_effect_is_found_in_its_layer(layer):
    later, earlier = range(layer, DEPTH + 1), range(1, layer + 1)
    a = table("a")
    found = diff(a, moved(table("b"), ACTIVATION, later, 0.2))
    assert found.verdict == "parts"
    assert (found.first["quantity"], found.first["layer"]) == (ACTIVATION, layer)
    assert found.forward.equals(found.first) and found.backward is None
    found = diff(a, moved(table("b"), DELTA, earlier, 0.2))
    assert (found.first["quantity"], found.first["layer"]) == (DELTA, layer)
    assert found.forward is None and found.backward.equals(found.first)
    both = moved(moved(table("b"), DELTA, earlier, 0.2), ACTIVATION, later, 0.2)
    found = diff(a, both)
    assert found.forward["layer"] == layer == found.backward["layer"]
    assert found.first["quantity"] == ACTIVATION


# The order


def test_rows_stand_in_the_order_of_computation():
    order = diff(table("a", depth=2), table("b", depth=2)).table[["quantity", "layer"]]
    backward = [DELTA, DW, "db_log10_norm", "dX_log10_norm"]
    expected = [(ACTIVATION, 1), (ACTIVATION, 2)]
    expected += [(name, layer) for layer in (2, 1) for name in backward]
    assert list(order.itertuples(index=False, name=None)) == expected


def test_of_the_operations_of_a_layer_the_last_goes_backward_first():
    ops = ["conv", "norm", "out"]

    def of(run):
        rows = pd.concat([table(run, depth=2, op=op) for op in ops])
        return rows.sort_values(["seed", "layer"], kind="stable", ignore_index=True)

    rows = diff(of("a"), of("b"), columns=[ACTIVATION, DELTA, DW]).table
    forward = rows[rows["direction"] == "forward"]
    assert list(forward["op"]) == ops * 2 and list(forward["layer"]) == [1, 1, 1, 2, 2, 2]
    backward = rows[rows["direction"] == "backward"]
    assert list(backward["op"]) == [op for op in ops[::-1] for _ in (DELTA, DW)] * 2
    assert list(backward["quantity"]) == [DELTA, DW] * 6


def test_steps_come_before_layers():
    def trained(run):
        steps = (
            table(run).assign(step=pd.array([step] * SEEDS * DEPTH, "Int64")) for step in (1, 2, 5)
        )
        return pd.concat(steps, ignore_index=True)

    a, b = trained("a"), trained("b")
    b[DELTA] += 0.3 * ((b["step"] == 2) & (b["layer"] == 1))
    b[ACTIVATION] += 0.3 * (b["step"] == 5)
    found = diff(a, b)
    assert (found.first["step"], found.first["quantity"], found.first["layer"]) == (2, DELTA, 1)
    assert found.tested == 3 * len(NORMS) * DEPTH and "step 2" in found.sentence


# What is equal, and what cannot be decided


def test_equal_tables_are_said_to_be_equal():
    a = table("a")
    a.loc[3, DELTA], a.loc[3, "status"] = -np.inf, "zero"
    found = diff(a, a.copy())
    assert found.verdict == "equal" and found.first is None and not found.table["parts"].any()
    assert found.sentence == "The tables are equal in every bit: 30 comparisons over 12 seeds."
    b = a.copy()
    b.loc[7, DW] = np.nextafter(b.loc[7, DW], 9)
    assert diff(a, b).verdict == "rounding"


@pytest.mark.parametrize(
    "dtypes, within", [(("float64", "float64"), 6.2e-15), (("float32", "float64"), 3.3e-6)]
)
def test_rounding_is_that_of_the_coarser_type(dtypes, within):
    a, b = (table("a", dtype=dtype) for dtype in dtypes)
    found = diff(a, b.assign(**{DELTA: b[DELTA] + 0.9 * within}))
    assert found.within == pytest.approx(within, rel=0.01) and found.verdict == "rounding"
    assert "equal to rounding" in found.sentence
    assert diff(a, b.assign(**{DELTA: b[DELTA] + 1.1 * within})).verdict == "parts"


def test_what_is_not_shown_is_not_called_equal():
    found = diff(table("a"), table("b"))
    assert found.verdict == "undecided" and found.first is None
    assert found.sentence.startswith("The tables are not shown to part: of 30 comparisons")
    bound = found.table[["low", "high"]].abs().to_numpy().max()
    assert f"none is beyond ±{bound:.2g} decades" in found.sentence


def test_one_seed_gives_no_interval_and_no_verdict():
    a, b = table("a", seeds=[3]), moved(table("b", seeds=[3]), DW, [2], 5.0)
    found = diff(a, b)
    assert found.verdict == "one seed" and found.first is None
    assert found.table[["low", "high", "p", "adjusted"]].isna().all(axis=None)
    assert "one seed gives no interval and no verdict" in found.sentence
    assert found.largest(1).iloc[0][["quantity", "layer"]].tolist() == [DW, 2]
    assert diff(a, a.copy()).verdict == "equal"


def test_where_differences_begin_is_said_even_if_they_are_not_shown():
    a = table("a", seeds=range(2))
    b = a.copy()
    rng = np.random.default_rng(0)
    b[DELTA] += rng.normal(0, 1, len(b)) * (b["layer"] <= 2)
    sentence = diff(a, b).sentence
    assert sentence.endswith("Up to dX of layer 3 (linear) they are equal in every bit.")


def test_what_parts_is_listed_before_what_only_differs():
    a, b = table("a", noise=0.001), table("b", noise=0.001)
    b[DW] += np.where(b["seed"] % 2, 3.0, -2.0) * (b["layer"] == 2)  # large, and not shown
    b[DELTA] += 0.1 * (b["layer"] == 4) + 0.2 * (b["layer"] == 3)
    b.loc[(b["layer"] == 6) & (b["seed"] == 0), ["db_log10_norm", "status"]] = [-np.inf, "zero"]
    rows = diff(a, b).largest(4)
    assert list(rows["layer"]) == [6, 3, 4, 2] and list(rows["parts"]) == [True] * 3 + [False]
    assert not len(diff(a, a.copy()).largest())


# Statuses


def test_a_value_in_one_table_alone_is_a_parting():
    a, b = table("a"), table("a")
    b.loc[b["layer"].eq(4) & (b["seed"] < 3), [DELTA, "status"]] = [np.nan, "nonfinite"]
    found = diff(a, b)
    assert found.verdict == "parts" and found.table["parts"].sum() == 1
    first = found.first
    assert (first["layer"], first["n"], first["unlike"]) == (4, SEEDS - 3, 3)
    assert (first["status_a"], first["status_b"]) == ("ok", "3 nonfinite, 9 ok")
    assert "where the status is ok against 3 nonfinite, 9 ok" in found.sentence


@pytest.mark.parametrize(
    "value, status", [(-np.inf, "zero"), (np.nan, "unused"), (np.inf, "nonfinite")]
)
def test_a_row_that_is_ok_in_one_table_alone_parts_in_every_seed(value, status):
    a, b = table("a"), table("a")
    b.loc[b["layer"] == 2, [DW, "status"]] = [value, status]
    found = diff(a, b)
    assert found.table[found.table["parts"]][["quantity", "layer", "n"]].to_numpy().tolist() == [
        [DW, 2, 0]
    ]
    assert found.first["status_b"] == status and np.isnan(found.first["effect"])
    assert diff(b, b.copy()).verdict == "equal"  # unknown in both is no parting


def test_a_finite_cotangent_that_underflowed_parts():
    a, b = table("a"), table("a")
    b.loc[b["layer"] == 1, "status"] = "underflow"
    found = diff(a, b, columns=[ACTIVATION, DELTA])
    assert found.table["parts"].sum() == 1
    assert found.first[["quantity", "status_b"]].tolist() == [DELTA, "underflow"]


def test_one_seed_may_part_by_its_status():
    a, b = table("a", seeds=[0]), table("a", seeds=[0])
    b.loc[b["layer"] == 3, [DELTA, "status"]] = [-np.inf, "zero"]
    assert diff(a, b).verdict == "parts"


# What is said


def test_runs_are_named_by_what_sets_them_apart():
    a, b = table("a", init="he", depth=9), table("b", init="xavier", depth=9)
    assert diff(a, b).labels == ("init=he", "init=xavier")
    assert "(init=he minus init=xavier; 95 % intervals, corrected for" in diff(a, b).sentence
    mine = (table(run, variant=run * 2, experiment=run) for run in "ab")
    assert diff(*mine).labels == ("variant=aa", "variant=bb")
    kept = (table("a", experiment=experiment) for experiment in "xy")
    assert diff(*kept).labels == ("experiment=x", "experiment=y")
    assert diff(table("a"), table("b")).labels == ("run a", "run b")
    assert diff(table("a"), table("a")).labels == ("a", "b")


def test_what_is_left_out_is_in_the_sentence():
    a, b = table("a", depth=4, seeds=range(8)), table("b", depth=3, seeds=range(5, 9))
    found = diff(a, b)
    assert found.seeds == (5, 6, 7)
    assert found.sentence.endswith(
        "Seeds of table_a alone: 0, 1, 2, 3, … (5 in all). Seeds of table_b alone: 8. "
        "1 place of table_a alone: layer 4 (linear)."
    )


def test_it_prints_as_its_sentence_and_shows_itself_in_a_notebook():
    found = diff(table("a"), moved(table("b"), DELTA, [3], 0.3))
    assert str(found) == repr(found) == found.sentence
    html = found._repr_html_()
    assert html.startswith("<p>The tables part first at δ of layer 3 (linear), by −0.")
    assert html.count("<tr>") == 6 and "not shown" in html


@pytest.mark.parametrize("verdict", VERDICTS)
def test_every_verdict_has_its_sentence(verdict):
    a = table("a")
    other = {
        "equal": a,
        "rounding": moved(a, DW, [1], 1e-9),
        "parts": moved(a, DW, [1], 1.0),
        "undecided": table("b"),
        "one seed": table("b", seeds=[0]),
    }
    found = diff(a, other[verdict])
    assert found.verdict == verdict
    assert found.sentence.startswith("The tables ") and ".." not in found.sentence
    assert "nan" not in found.sentence and "None" not in found.sentence


# What cannot be asked


@pytest.mark.parametrize(
    "change, message",
    [
        ({"level": 1.0}, "level must lie strictly between 0 and 1; got 1.0"),
        ({"within": -1.0}, "within must be a finite number of at least 0; got -1.0"),
        ({"within": np.nan}, "within must be a finite number of at least 0; got nan"),
        ({"columns": ["seed"]}, "columns must be one of activation_log10_norm, .*; got seed"),
        ({"columns": []}, "columns must name at least one norm; got none"),
        ({"on": "modul"}, "on must be .*; got modul"),
    ],
)
def test_what_cannot_be_asked(change, message):
    with pytest.raises(InputError, match=message):
        diff(table("a"), table("b"), **change)


def test_what_is_no_table_of_one_run():
    a = table("a")
    with pytest.raises(InputError, match="table_b must be a DataFrame; got a str"):
        diff(a, "b")
    with pytest.raises(InputError, match="table_b must hold at least one row; got none"):
        diff(a, a.iloc[:0])
    with pytest.raises(InputError, match="table_a must hold one run; got 2: filter it first"):
        diff(pd.concat([a, table("b")]), a)
    with pytest.raises(InputError, match=r"column of table_b must be one of .*; got layer"):
        diff(a, a.drop(columns="layer"))
    with pytest.raises(InputError, match="tables must hold one of activation_log10_norm"):
        diff(a[["seed", "layer"]], a[["seed", "layer"]])


def test_measured_runs_are_compared():
    settings = {"depth": 5, "width": 16, "batch_size": 16, "seeds": 4}
    a = flowlab.measure(init="he", **settings)
    assert flowlab.diff(a, flowlab.measure(init="he", **settings)).verdict == "equal"
    finer = flowlab.diff(a, flowlab.measure(init="he", dtype="float64", **settings))
    assert finer.verdict == "rounding" and finer.labels == ("dtype=float32", "dtype=float64")
    other = flowlab.diff(a, flowlab.measure(init="he", skip="identity", **settings))
    assert other.verdict == "parts" and other.first["layer"] == 1
