"""The benchmark of layers: all its forms do the same work, and its table says who leads."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest

from experiments.benchmarks import layers
from flowlab.errors import InputError

SEEDS, THREADS = 3, 2


def leaves(tree):
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, (tuple, list)):
        return [tree]
    return [leaf for one in tree for leaf in leaves(one)]


def summary(result, tokens):
    """(y, dx) of all networks, flat, and ‖gradients‖, whichever way a form divides the networks."""
    y = np.concatenate([np.ravel(_numpy(y)) for y, _, _ in result])
    dx = None if tokens else np.concatenate([np.ravel(_numpy(dx)) for _, dx, _ in result])
    gradients = [_numpy(g) for _, _, given in result for g in leaves(given)]
    return y, dx, np.sqrt(sum(float(np.sum(g.astype(float) ** 2)) for g in gradients))


def _numpy(a):
    return np.asarray(a.detach() if hasattr(a, "detach") else a)


@pytest.mark.parametrize("name", layers.CASES)
def test_all_forms_do_the_same_work(name):
    twin, case = layers.CASES[name]
    tokens = case.below > 0
    with ThreadPoolExecutor(THREADS) as pool:
        forms = layers.forms_of(twin, case, case.tiny, SEEDS, THREADS, pool)
        results = {form: summary(run(2), tokens) for form, run in forms.items()}
    assert len(forms) >= 3  # JAX's two at least
    y, dx, gradients = results.pop(layers.OURS)
    for form, (their_y, their_dx, their_gradients) in results.items():
        assert np.linalg.norm(their_y - y) <= 1e-5 * np.linalg.norm(y), form
        if not tokens:
            assert np.linalg.norm(their_dx - dx) <= 1e-5 * np.linalg.norm(dx), form
        assert their_gradients == pytest.approx(gradients, rel=1e-5), form


def table(**ratios):
    rows = [
        (name, "2x8", 0.1, ratio, ratio, ratio, 3, "jax vmap") for name, ratio in ratios.items()
    ]
    columns = ["layer", "size", "seconds", "ratio", "low", "high", "rounds", "form"]
    ours = pd.DataFrame([("gru", "2x8", 0.1, 1.0, 1.0, 1.0, 3, layers.OURS)], columns=columns)
    return pd.concat([ours, pd.DataFrame(rows, columns=columns)], ignore_index=True)


def test_report_names_where_flowlab_is_behind():
    assert layers.report(table(linear=2.0, gru=1.0)) == "flowlab is behind nowhere."
    sentence = layers.report(table(linear=0.9, gru=2.0, lstm=0.5))
    worst = "lstm 2x8 (0.50 of jax vmap), linear 2x8 (0.90 of jax vmap)"
    assert sentence == f"flowlab is behind in 2 of 3 rows: {worst}."


def test_report_says_what_was_left_out():
    found = table(linear=2.0, gru=1.5)
    found.loc[2, ["rounds", "ratio"]] = 0, np.nan
    assert layers.report(found).startswith("flowlab is behind nowhere. 1 forms were left out")
    assert layers.report(table()) == "No peer is installed."


def test_a_peer_twice_as_slow_has_the_ratio_two(monkeypatch, clock, said):
    """Every peer counts by its fastest form, in units of flowlab's time."""
    seconds = {layers.OURS: 0.012, "torch a": 0.048, "torch b": 0.024, "jax": 0.006}

    def forms(*_):
        return {name: lambda n, s=s: clock(n * s) for name, s in seconds.items()}

    monkeypatch.setattr(layers, "forms_of", forms)
    found = list(layers.rows(said.append, ("relu",), rounds=3))
    for size in ("128x128", "128x1024"):
        of = {row["form"]: row for row in found if row["size"] == size}
        assert {name: row["ratio"] for name, row in of.items()} == pytest.approx(
            {layers.OURS: 1, "torch b": 2, "jax": 0.5}
        )
        assert of["torch b"]["seconds"] == pytest.approx(0.024)
    assert "relu 128x128: torch a" in said


def test_unknown_layer(said):
    with pytest.raises(InputError, match="lstm"):
        next(layers.rows(said.append, ("lsmt",)))
