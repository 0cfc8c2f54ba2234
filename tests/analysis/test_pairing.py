"""Rows of two tables joined: by what names them, by position, and what is left out."""

import numpy as np
import pandas as pd
import pytest

from flowlab.analysis.pairing import pair, place_words
from flowlab.errors import InputError
from flowlab.modules.table import named, of_rows
from flowlab.schema import DELTA

ACTIVATION, DW = "activation_log10_norm", "dW_log10_norm"


def chain(*paths, seeds=(0, 1), shift=0.0, step=None):
    """The table of a model of linear modules: a row of each module and one of its weight."""

    def rows(seed):
        for layer, path in enumerate(paths, 1):
            one = {"layer": layer, "op": "Linear", "module": path, "status": "ok"}
            yield one | {"use": 1, ACTIVATION: layer + shift, DELTA: -layer + seed + shift}
            yield one | {"parameter": "weight", DW: 10 * layer + shift}

    return named(pd.concat([of_rows(list(rows(seed)), seed=seed, step=step) for seed in seeds]))


def laboratory(depth, seeds=(0, 1), **more):
    """A table of the laboratory: all quantities in one row of each layer."""
    rows = [(seed, layer) for seed in seeds for layer in range(1, depth + 1)]
    seed, layer = np.array(rows).T
    norms = {ACTIVATION: layer + 0.0, DELTA: seed - layer + 0.0, DW: 10.0 * layer}
    return pd.DataFrame(
        {"seed": seed, "layer": layer, "op": "linear", "status": "ok", **norms, **more}
    )


def found(*tables, columns=(ACTIVATION, DELTA, DW), **more):
    pairing = pair(*tables, columns, **more)
    return pairing, {one.quantity: one for one in pairing.pairs}


def test_modules_are_joined_by_their_paths_whatever_their_layers():
    a, b = chain("in", "mid", "out"), chain("in", "new", "mid", "out", shift=100.0)
    pairing, pairs = found(a, b)
    assert pairing.by == "module, use, parameter" and pairing.seeds == (0, 1)
    assert list(pairs[ACTIVATION].places["module"]) == ["in", "mid", "out"]
    assert list(pairs[ACTIVATION].places["layer_b"]) == [1, 3, 4]
    assert pairs[ACTIVATION].a.tolist() == [[1, 2, 3]] * 2
    assert pairs[ACTIVATION].b.tolist() == [[101, 103, 104]] * 2
    assert pairs[DELTA].a.tolist() == [[-1, -2, -3], [0, -1, -2]]
    assert list(pairs[DW].places["parameter"]) == ["weight"] * 3
    assert pairing.notes == (
        "2 places of table_b alone: new (Linear, layer 2), new weight (Linear, layer 2)",
    )


def test_the_laboratory_and_a_model_are_joined_by_position():
    mine = chain("in", "mid", "out", shift=100.0)
    pairing, pairs = found(laboratory(3), mine)
    assert pairing.by == "position" and pairing.notes == ()
    for quantity, one in pairs.items():
        assert (one.b - one.a == 100).all(), quantity
    _, swapped = found(mine, laboratory(3))
    assert (swapped[DW].a - swapped[DW].b == 100).all()


def test_by_position_a_quantity_must_be_in_as_many_places():
    mine = chain("in", "mid", "out")
    mine.loc[mine["module"] == "mid", DW] = np.nan
    pairing, pairs = found(laboratory(3), mine)
    assert {*pairs} == {ACTIVATION, DELTA}
    assert pairing.notes == ("not joined: dW_log10_norm, 3 places of table_a, 2 of table_b",)
    with pytest.raises(
        InputError, match="tables must share a quantity, joined by position; got not joined: act"
    ):
        found(laboratory(4), chain("in", "out"))


def test_models_without_a_common_path_are_joined_by_position():
    pairing, pairs = found(chain("a.0", "a.1"), chain("b/0", "b/1", shift=1.0))
    assert pairing.by == "position"
    assert (pairs[DW].b - pairs[DW].a == 1).all()


def test_rows_are_joined_by_what_is_asked():
    a, b = chain("in", "mid", "out"), chain("in", "new", "mid", shift=100.0)
    _, pairs = found(a, b, on="position")
    assert pairs[ACTIVATION].b.tolist() == [[101, 102, 103]] * 2
    pairing, pairs = found(a, b, on=["layer", "parameter"])
    assert pairing.by == "layer, parameter"
    assert pairs[DW].b.tolist() == [[110, 120, 130]] * 2
    with pytest.raises(InputError, match="tables must share a place by module; got none"):
        found(a, chain("x", "y", "z"), on="module")


def test_equal_names_are_kept_apart_by_their_order():
    a = pd.concat([laboratory(2), laboratory(2).assign(**{DW: 5.0})])
    _, pairs = found(a, a)
    assert pairs[DW].a.shape == (2, 4) and sorted(pairs[DW].a[0]) == [5, 5, 10, 20]
    assert (pairs[DW].a == pairs[DW].b).all()


def test_quantities_of_one_table_alone_are_named():
    a, b = laboratory(2), laboratory(2)
    b.loc[b["layer"] == 2, DW] = np.nan
    pairing, pairs = found(a, b)
    assert pairs[DW].a.shape == (2, 1)
    assert pairing.notes == ("in table_a alone: dW_log10_norm of layer 2 (linear)",)
    pairing, pairs = found(a, b.drop(columns=ACTIVATION))
    assert ACTIVATION not in pairs
    assert (
        "in table_a alone: activation_log10_norm of layer 1 (linear), layer 2 (linear)"
        in pairing.notes
    )


def test_where_a_status_hides_a_value_it_is_not_absent():
    a, b = laboratory(2), laboratory(2)
    b.loc[b["layer"] == 2, [DW, "status"]] = [np.nan, "unused"]
    pairing, pairs = found(a, b)
    assert pairing.notes == () and (pairs[DW].kind_b[:, 1] == "unused").all()
    _, pairs = found(b, b.copy())
    assert pairs[DW].a.shape == (2, 1)  # unknown in both: it may not exist


def test_a_seed_without_a_row_lacks_it():
    a = laboratory(2)
    b = a[(a["seed"] == 0) | (a["layer"] == 1)]
    _, pairs = found(a, b)
    assert pairs[DELTA].kind_b.tolist() == [["ok", "ok"], ["ok", "missing"]]
    assert np.isnan(pairs[DELTA].b[1, 1])


def test_a_table_without_statuses_is_read_by_its_values():
    a = laboratory(3).drop(columns="status")
    a.loc[0, DW], a.loc[1, DW], a.loc[2, DW] = -np.inf, np.inf, np.nan
    _, pairs = found(a, a)
    assert pairs[DW].kind_a[0].tolist() == ["zero", "nonfinite", "missing"]


def test_seeds_are_paired_by_their_numbers():
    pairing, pairs = found(laboratory(1, seeds=(7, 3, 5)), laboratory(1, seeds=(5, 9, 7)))
    assert pairing.seeds == (5, 7)
    assert pairs[DELTA].a.ravel().tolist() == [4, 6] == pairs[DELTA].b.ravel().tolist()
    assert pairing.notes == ("seeds of table_a alone: 3", "seeds of table_b alone: 9")
    with pytest.raises(InputError, match="tables must share at least one seed; got 0, 1 against 2"):
        found(laboratory(1), laboratory(1, seeds=(2,)))


def test_steps_that_both_have_are_compared():
    a, b = (
        pd.concat([chain("in", step=step, shift=step + more) for step in steps]).assign(run="x")
        for steps, more in (((1, 2, 5), 0.0), ((2, 5, 9), 0.5))
    )
    pairing, pairs = found(a, b)
    assert list(pairs[DW].places["step"]) == [2, 5]
    assert (pairs[DW].b - pairs[DW].a == 0.5).all()
    assert pairing.notes == ("steps of table_a alone: 1", "steps of table_b alone: 9")
    with pytest.raises(InputError, match="tables must share a step; got 1, 2, 5 against none"):
        found(a, chain("in"))


def test_single_steps_answer_each_other():
    pairing, pairs = found(chain("in", step=1), chain("in", step=7, shift=2.0))
    assert pairs[DW].b.tolist() == [[12.0]] * 2 and pairs[DW].places["step"].isna().all()
    assert pairing.notes == ("step 1 of table_a against step 7 of table_b",)


def test_rows_of_whole_layers_come_before_single_time_steps():
    times = pd.concat([laboratory(1, time=time, **{}) for time in (1, 2, 3)])
    whole = laboratory(1, time=pd.NA)
    _, pairs = found(pd.concat([whole, times]), whole)
    assert pairs[DW].places["time"].isna().all() and pairs[DW].a.shape == (2, 1)
    pairing, pairs = found(times, times)
    assert list(pairs[DW].places["time"]) == [1, 2, 3] and pairing.by == "layer, op, time"


@pytest.mark.parametrize(
    "place, words",
    [
        ({"layer": 3, "op": "linear"}, "layer 3 (linear)"),
        ({"layer": 2, "op": "state", "time": 5, "step": 8}, "layer 2 (state), time 5, step 8"),
        (
            {"layer": 4, "op": "Linear", "module": "a.fc", "parameter": "weight"},
            "a.fc weight (Linear, layer 4)",
        ),
        (
            {"layer": 4, "op": "Linear", "module": "a.fc", "use": 2},
            "a.fc (Linear, call 2, layer 4)",
        ),
        ({"layer": 9, "module": "", "use": 1, "output": "logits"}, "the model logits (layer 9)"),
        ({"layer": 9}, "layer 9"),
    ],
)
def test_places_have_words(place, words):
    assert place_words(pd.Series(place)) == words
