"""The benchmark of layers: all its forms do the same work, and its table says who leads."""

import time
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
    rows = [(name, "2x8", 0.1, "jax vmap", ratio, ratio, ratio) for name, ratio in ratios.items()]
    return pd.DataFrame(rows, columns=["layer", "size", "seconds", "peer", "ratio", "low", "high"])


def test_report_names_where_flowlab_is_behind():
    assert layers.report(table(linear=2.0, gru=1.0)) == "flowlab is behind nowhere."
    sentence = layers.report(table(linear=0.9, gru=2.0, lstm=0.5))
    worst = "lstm 2x8 (0.50 of jax vmap), linear 2x8 (0.90 of jax vmap)"
    assert sentence == f"flowlab is behind in 2 of 3 rows: {worst}."


def test_a_peer_twice_as_slow_has_the_ratio_two(monkeypatch):
    """Every peer counts by its fastest form, in units of flowlab's time."""
    seconds = {layers.OURS: 0.012, "torch a": 0.048, "torch b": 0.024, "jax": 0.006}

    def forms(*_):
        return {name: lambda n, s=s: time.sleep(n * s) for name, s in seconds.items()}

    monkeypatch.setattr(layers, "forms_of", forms)
    found = layers.layers(("relu",), rounds=3).set_index("peer")
    assert list(found.index) == ["torch b", "jax"] * 2
    assert list(found["size"].unique()) == ["128x128", "128x1024"]
    assert found["seconds"].to_numpy() == pytest.approx(0.012, rel=0.5)
    assert found["ratio"].loc["torch b"].to_numpy() == pytest.approx(2, rel=0.3)
    assert found["ratio"].loc["jax"].to_numpy() == pytest.approx(0.5, rel=0.3)
    assert (found["low"] <= found["ratio"]).all() and (found["ratio"] <= found["high"]).all()


def test_unknown_layer():
    with pytest.raises(InputError, match="lstm"):
        layers.layers(("lsmt",))
