"""The ledger against plain NumPy, the measured end-to-end norm, and intervention."""

import json
import sys
from functools import partial
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

import flowlab.instruments.ledger
from experiments import command
from experiments.ledger import _replacement, compare, run
from flowlab.analysis.statistics import mean_interval
from flowlab.errors import InputError
from flowlab.figures.waterfall import caption, complete, largest, totals, waterfall
from flowlab.instruments.ledger import (
    IdentityJacobian,
    gains,
    imbalance,
    operations,
    replace_jacobian,
)
from flowlab.layer import Workspace
from flowlab.layers import Linear
from flowlab.measurement.ensemble import measure
from flowlab.measurement.setup import Batches
from flowlab.networks import build
from flowlab.numerics.scale import log2_norm
from flowlab.settings import SKIPS, make
from flowlab.storage import tables
from tests.support import naive

SMALL = {"width": 6, "batch_size": 5, "seeds": 3, "upstream": "gaussian", "data": "gaussian"}


def weights_and_cotangents(settings):
    """{seed: {layer: [W in forward order]}}, inputs and upstream, as a watch sees them."""
    weights, upstream, batches = {}, {}, Batches(settings)

    def watch(seeds, layer):
        def report(op, tape, dy, dx, gradients):
            for k, seed in enumerate(seeds):
                upstream.setdefault(int(seed), dy[k].copy())
                if gradients:
                    own = weights.setdefault(int(seed), {}).setdefault(layer, [])
                    own.insert(0, tape["W"][k].copy())

        return report

    measure(settings, batches=batches, watch=watch)
    return weights, batches, upstream


def log_gain(dx, dy):
    return np.log10(np.linalg.norm(dx) / np.linalg.norm(dy))


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_a_chain_against_numpy(activation):
    settings = make(depth=4, activation=activation, dtype="float64", **SMALL)
    weights, batches, upstream = weights_and_cotangents(settings)
    table = gains(settings)
    phi, slope = naive.ACTIVATIONS[activation]
    for seed, own in weights.items():
        x, z = batches([seed])[0][0], []
        for layer in range(1, 5):
            z.append(x @ own[layer][0])
            x = phi(z[-1])
        dy, expected = upstream[seed], []
        for layer in range(4, 0, -1):
            if layer < 4:
                dz = slope(z[layer - 1]) * dy
                expected.append((layer, activation, "activation", log_gain(dz, dy)))
                dy = dz
            dx = dy @ own[layer][0].T
            expected.append((layer, "linear", "linear", log_gain(dx, dy)))
            dy = dx
        rows = table[table["seed"] == seed]
        columns = ["layer", "op", "kind", "log10_gain"]
        expected = pd.DataFrame(expected, columns=columns)
        assert rows["position"].tolist() == list(range(1, 8))
        assert rows[columns[:3]].to_numpy().tolist() == expected[columns[:3]].to_numpy().tolist()
        np.testing.assert_allclose(rows["log10_gain"], expected["log10_gain"], rtol=1e-11)
        np.testing.assert_allclose(rows["log10_cumulative"], rows["log10_gain"].cumsum())
        change = log_gain(dy, upstream[seed])
        np.testing.assert_allclose(rows["log10_end_to_end"], change, rtol=1e-11)


@pytest.mark.parametrize("skip", ["mix", "scaled"])
def test_a_residual_block_against_numpy(skip):
    maps = {"name": "mlp", "branch_maps": 2}
    settings = make(depth=4, skip=skip, activation="tanh", network=maps, dtype="float64", **SMALL)
    weights, batches, upstream = weights_and_cotangents(settings)
    table = gains(settings)
    phi, slope = naive.ACTIVATIONS["tanh"]
    a, s = (1, 0.5**0.5) if skip == "mix" else (3**-0.5, 1)
    for seed, own in weights.items():
        x, seen = batches([seed])[0][0] @ own[1][0], {}
        for layer in (2, 3, 4):
            W1, W2 = own[layer]
            inner = phi(x) @ W1
            seen[layer] = x, inner
            x = s * (x + a * phi(inner) @ W2)
        dy, expected = upstream[seed], []
        for layer in (4, 3, 2):
            W1, W2 = own[layer]
            x, inner = seen[layer]
            path = [s * a * dy]
            path.append(path[-1] @ W2.T)
            path.append(slope(inner) * path[-1])
            path.append(path[-1] @ W1.T)
            path.append(slope(x) * path[-1])
            b = path[-1]
            r = np.linalg.norm(b) / (s * np.linalg.norm(dy))
            c = np.sum(b * dy) / (np.linalg.norm(b) * np.linalg.norm(dy))
            expected += [np.log10(s), np.log10(1 + r**2) / 2]
            expected += [np.log10(1 + 2 * r * c / (1 + r**2)) / 2, np.log10(a)]
            inner_gains = [log_gain(q, p) for p, q in pairwise(path)]
            assert np.isclose(np.log10(a) + sum(inner_gains), np.log10(r))
            expected += inner_gains
            dy = s * dy + b
        expected.append(log_gain(dy @ own[1][0].T, dy))
        rows = table[table["seed"] == seed]
        inner_ops = ["branch_scale", "linear_2", "tanh_2", "linear_1", "tanh_1"]
        names = ["skip", "branch", "interference", *inner_ops] * 3 + ["linear"]
        assert rows["op"].tolist() == names
        assert rows["counted"].tolist() == [*([True] * 3 + [False] * 5) * 3, True]
        np.testing.assert_allclose(rows["log10_gain"], expected, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("skip", SKIPS)
def test_gains_add_up(skip, dtype):
    table = gains(make(depth=7, skip=skip, width=16, batch_size=8, seeds=3, dtype=dtype))
    assert len(imbalance(table)) == 3
    assert imbalance(table).abs().max() < 1e-10 * table["log10_end_to_end"].abs().min()
    last = table[table["counted"]].groupby("seed")["log10_cumulative"].last()
    np.testing.assert_allclose(last, table.groupby("seed")["log10_end_to_end"].first(), rtol=1e-10)


@pytest.mark.parametrize(
    "axes",
    [
        {"network": "transformer", "skip": "identity"},
        {"network": {"name": "transformer", "placement": "post"}, "skip": "none"},
        {"network": "resnet"},
        {"norm": "rms", "skip": "scaled"},
    ],
    ids=["transformer", "post-norm", "resnet", "rms"],
)
def test_gains_add_up_in_every_architecture(axes):
    network = {"width": 8, "batch_size": 4, "seeds": 2, "depth": 4, "dtype": "float64"}
    settings = make(**{**network, **axes})
    table = gains(settings)
    assert imbalance(table).abs().max() < 1e-12
    # The counted gains lead from the last delta to the first layer's input.
    rows = measure(settings)
    first, last = rows["layer"] == 1, rows["layer"] == 4
    end = (
        rows[first].groupby("seed")["dX_log10_norm"].first()
        - rows[last].groupby("seed")["delta_log10_norm"].last()
    )
    whole = table[table["counted"]].groupby("seed")["log10_gain"].sum()
    np.testing.assert_allclose(whole, end, atol=1e-12)


def test_recurrent_nets_are_refused():
    with pytest.raises(InputError, match="network must not be recurrent; got lstm"):
        gains(make(network="lstm", seeds=2, batch_size=4, width=8))


def test_gains_add_up_far_below_the_smallest_number():
    settings = make(depth=1200, width=8, batch_size=4, seeds=2, activation="sigmoid", init="xavier")
    table = gains(settings)
    assert (table["log10_end_to_end"] < -400).all() and (table["status"] == "ok").all()
    assert imbalance(table).abs().max() < 1e-10


def test_a_wrong_gain_does_not_pass(monkeypatch):
    settings = make(depth=5, skip="mix", dtype="float64", **SMALL)
    table = gains(settings)
    table.loc[table["op"] == "branch", "log10_gain"] += 1e-6
    np.testing.assert_allclose(imbalance(table), 4e-6, rtol=1e-6)

    def slightly_wrong(x):
        return log2_norm(x) * (1 + 1e-6)

    monkeypatch.setattr(flowlab.instruments.ledger, "log2_norm", slightly_wrong)
    assert imbalance(gains(settings)).abs().min() > 1e-9


def test_threads_and_parts_change_nothing():
    axes = {**SMALL, "seeds": 5, "depth": 5, "skip": "identity"}
    pd.testing.assert_frame_equal(
        gains(make(threads=1, **axes)), gains(make(threads=2, memory_gib=1e-9, **axes))
    )


def test_zeros_are_marked():
    settings = make(depth=40, width=2, batch_size=1, seeds=6)
    table = gains(settings)
    for _, rows in table.groupby("seed"):
        found = rows["log10_gain"].to_numpy()
        dies = np.flatnonzero(np.isneginf(found))
        if len(dies):
            assert np.isfinite(found[: dies[0]]).all() and np.isnan(found[dies[0] + 1 :]).all()
            assert (rows["status"].iloc[dies[0] :] == "zero").all()
    dead = table.loc[np.isneginf(table["log10_gain"]), "seed"].nunique()
    assert dead > 3
    assert complete(table)["seed"].nunique() == len(imbalance(table)) == 6 - dead


def test_a_branch_that_starts_at_zero_costs_nothing():
    table = gains(make(depth=4, skip="rezero", **SMALL))
    counted = table[table["counted"] & table["layer"].isin([2, 3])]
    assert (counted["log10_gain"] == 0).all()
    assert np.isneginf(table.loc[table["op"] == "scale", "log10_gain"]).all()


@pytest.mark.parametrize(("activation", "gain"), [("silu", 100.0), ("sigmoid", 3e4)])
def test_what_left_the_range_is_marked(activation, gain):
    # Forward values overflow; slopes of saturated units underflow, which is no exact zero.
    init = {"name": "he", "gain": gain}
    table = gains(make(depth=60, activation=activation, init=init, **SMALL))
    unknown = table["status"].isin(["lost", "nonfinite"])
    assert unknown.any() and not (np.isinf(table["log10_gain"]) & unknown).any()


HE = {"depth": 8, "width": 64, "batch_size": 32, "seeds": 32, "upstream": "gaussian"}


def test_replacing_an_activation_does_what_its_entry_says():
    settings = make(**HE)
    before, after = gains(settings), gains(settings, "4.relu")
    entry = before[(before["layer"] == 4) & (before["op"] == "relu")].set_index("seed")
    now = after[(after["layer"] == 4) & (after["op"] == "relu")]
    assert (now["log10_gain"] == 0).all()
    ends = [table.groupby("seed")["log10_end_to_end"].first() for table in (before, after)]
    change, gain = mean_interval(ends[1] - ends[0]), mean_interval(entry["log10_gain"])
    assert abs(gain.mean + np.log10(2) / 2) < 4 * gain.se + 0.01  # He: half the units are off
    assert change.mean > 20 * change.se  # the effect is seen at all
    rest = mean_interval(ends[1] - ends[0] + entry["log10_gain"])
    assert abs(rest.mean) < 4 * rest.se and rest.se < 0.1 * change.mean
    # Above the operation not a bit changes; below it the direction does.
    above = before["position"] < entry["position"].iat[0]
    assert (before["log10_gain"] == after["log10_gain"])[above].all()
    below = before["position"] > entry["position"].iat[0]
    assert (before["log10_gain"] != after["log10_gain"])[below].any()
    assert imbalance(after).abs().max() < 1e-10
    assert after["run"].iat[0] == before["run"].iat[0] + "-without-4.relu"
    assert "entry is now 0" in compare(before, after, "4.relu")


def test_a_replacement_leaves_the_forward_pass_alone():
    settings = make(depth=4, skip="identity", **SMALL)
    network = build(settings)
    replaced = replace_jacobian(network, 2, "relu")
    norms = "activation_log10_norm"
    assert measure(settings)[norms].equals(measure(settings, network=replaced)[norms])
    assert operations(replaced.blocks[1]) == operations(network.blocks[1]) == ["relu", "linear"]
    assert (replaced.blocks[1].a, replaced.blocks[1].s) == (1.0, 1.0)
    table = gains(settings, "2.linear")
    entry = table[(table["layer"] == 2) & (table["op"] == "linear")]
    assert (entry["log10_gain"] == 0).all() and not entry["counted"].any()
    assert (entry["kind"] == "linear").all()


def test_a_replaced_layer_keeps_the_gradients_of_its_parameters():
    rng, layer = np.random.default_rng(0), Linear(3)
    x, dy, W = (rng.standard_normal(shape) for shape in ((2, 4, 3), (2, 4, 3), (2, 3, 3)))
    parameters = {"W": W, "b": np.zeros((2, 3))}
    _, tape = IdentityJacobian(layer).forward(x, parameters, Workspace(np.nan))
    dx, gradients = IdentityJacobian(layer).pullback(dy, tape, Workspace(np.nan))
    assert dx is not dy and np.array_equal(dx, dy)
    np.testing.assert_allclose(gradients["W"], np.swapaxes(x, 1, 2) @ dy)


@pytest.mark.parametrize(
    ("replace", "message"),
    [
        ("relu", "replace must be LAYER.OP, such as 3.relu; got relu"),
        ("2.", "replace must be LAYER.OP, such as 3.relu; got 2."),
        ("0.relu", "layer must be from 1 to 3; got 0"),
        ("4.relu", "layer must be from 1 to 3; got 4"),
        ("2.rleu", "operation of layer 2 must be one of linear, relu; got rleu; did you mean relu"),
        ("1.linear", r"1.linear maps \(5, 64\) to \(5, 6\)"),
    ],
)
def test_bad_replacements(replace, message):
    axes = {**SMALL, "data": "digits"}
    with pytest.raises(InputError, match=message) as error:
        gains(make(depth=3, **axes), replace)
    assert "\n" not in str(error.value)


# The figure and the command


@pytest.fixture(scope="module")
def residual():
    return gains(make(depth=5, skip="identity", **SMALL))


def test_totals_count_what_adds_up(residual):
    whole = totals(residual.assign(all="all"), ["all"])
    ends = mean_interval(residual.groupby("seed")["log10_end_to_end"].first())
    row = whole.iloc[0]
    np.testing.assert_allclose(
        row[["mean", "low", "high"]].astype(float), [ends.mean, ends.low, ends.high]
    )
    assert row["operations"] == 4 * 3 + 1
    kinds = totals(residual, ["kind"]).set_index("kind")
    assert kinds["operations"].to_dict() == {"skip": 4, "branch": 4, "interference": 4, "linear": 1}
    assert np.isclose(kinds["mean"].sum(), ends.mean)


def test_the_largest_operations_are_named():
    table = gains(make(depth=6, **SMALL))
    table.loc[(table["layer"] == 3) & (table["op"] == "relu"), "log10_gain"] -= 5
    picked = largest(table)
    assert (picked.iloc[0]["layer"], picked.iloc[0]["op"]) == (3, "relu")
    assert "Least: relu of layer 3" in caption(table)
    _, _, single = waterfall(table).axes
    assert single.get_yticklabels()[0].get_text() == "relu, layer 3"


@pytest.mark.parametrize(("depth", "bars"), [(5, 9), (30, 59), (50, 2 * 17)])
def test_bars_lead_from_the_upstream_norm_to_the_end(depth, bars):
    table = gains(make(depth=depth, **{**SMALL, "width": 32}))
    steps = waterfall(table).axes[0]
    boxes = sorted(steps.patches, key=lambda bar: -bar.get_x())
    assert len(boxes) == bars
    at = 0.0
    for box in boxes:
        assert np.isclose(box.get_y(), at, atol=1e-12)
        at = box.get_y() + box.get_height()
    assert np.isclose(at, table.groupby("seed")["log10_end_to_end"].first().mean())


def test_figures_of_one_layer_and_one_seed_and_bad_tables(residual):
    waterfall(gains(make(**{**SMALL, "depth": 1, "seeds": 1})))
    with pytest.raises(InputError, match="column must be"):
        waterfall(residual.drop(columns="kind"))
    with pytest.raises(InputError, match="ledger must hold one run; got 2"):
        waterfall(pd.concat([residual, residual.assign(run="other")]))
    with pytest.raises(InputError, match="a seed whose gains are all finite; got none"):
        caption(residual.assign(log10_gain=np.nan))


@pytest.fixture
def call(calling):
    return calling(lambda: command.main(partial(run, replace=_replacement(sys.argv))))


def test_the_command_writes_both_ledgers(call, tmp_path):
    small = ["depth=3", "width=8", "batch_size=8", "seeds=2"]
    code, out, errors = call(*small, "replace=2.relu")
    assert (code, errors) == (0, "")
    assert "Gains add up" in out and "entry is now 0" in out
    folder = tmp_path / "results/single"
    assert pd.read_parquet(folder / "ledger")["run"].nunique() == 2
    intact, replaced = sorted((folder / "ledger").iterdir(), key=lambda path: len(path.name))
    assert replaced.stem == f"{intact.stem}-without-2.relu"
    stored = tables.metadata(replaced)
    assert stored["replaced"] == "2.relu" and stored["settings"]["depth"] == 3
    assert stored["command"] == f"python -m experiments.ledger {' '.join(small)} replace=2.relu"
    drawn = sorted(path.stem for path in (folder / "figures").glob("*.png"))
    assert drawn == ["ledger-mlp-he-depth3", "ledger-mlp-he-depth3-without-2-relu"]
    described = json.loads((folder / f"figures/{drawn[0]}.json").read_text())
    assert described["runs"] == [f"ledger/{intact.name}"]
    account = pd.read_parquet(intact)
    whole = account.groupby("seed")["log10_end_to_end"].first().mean()
    said = f"The gradient changes by {whole:+.2f} decades from output to input: "
    assert described["finding"].startswith(said.replace("-", "−"))
    assert "depth=3, width=8" in described["fixed"] and "Least:" in described["caption"]


def test_a_figure_has_its_digest_where_another_has_its_name(call, tmp_path):
    for _ in range(2):
        for width in (8, 9):
            assert call("depth=2", f"width={width}", "batch_size=8", "seeds=2")[0] == 0
    folder = tmp_path / "results/single"
    tables_of = {path.stem[:6]: path.name for path in (folder / "ledger").iterdir()}
    first, second = sorted((folder / "figures").glob("*.json"), key=lambda path: len(path.name))
    assert first.stem == "ledger-mlp-he-depth2"
    digest = second.stem.removeprefix("ledger-mlp-he-depth2-")
    assert json.loads(second.read_text())["runs"] == [f"ledger/{tables_of[digest]}"]


@pytest.mark.parametrize("bad", ["replace=2,relu", "replace=", "depth=0", "dpeth=3"])
def test_the_command_refuses_in_one_line(bad, call, tmp_path):
    code, out, errors = call("depth=3", bad)
    assert code == 2 and out == "" and errors.startswith("error: ")
    assert len(errors.splitlines()) == 1
    assert not list(tmp_path.rglob("*.parquet"))
