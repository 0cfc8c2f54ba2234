"""The benchmark of training: all its forms do the same work, and its sentence says who leads."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest

from experiments.benchmarks import training
from flowlab.errors import InputError


@pytest.mark.parametrize("optimizer", training.OPTIMIZERS)
def test_all_forms_train_alike(optimizer):
    settings = training.made(optimizer, width=16, depth=4, batch_size=8, seeds=3)
    changes = {}
    with ThreadPoolExecutor(2) as pool:
        for name, build in training.forms_of(settings, optimizer, 2, pool, compiled=0).items():
            form = build()
            before = [np.array(W) for W in form.weights()]
            form.run(2)
            form.run(1)
            pairs = zip(form.weights(), before, strict=True)
            changes[name] = np.concatenate([(after - W).ravel() for after, W in pairs])
    ours = changes.pop(training.OURS)
    assert len(changes) >= 4 and np.linalg.norm(ours) > 0.01
    for name, change in changes.items():
        assert np.linalg.norm(change - ours) < 1e-4 * np.linalg.norm(ours), name


def table(*rows):
    columns = ["width", "optimizer", "seconds", "peer", "ratio", "low", "high"]
    given = [(w, o, 0.1, peer, ratio, ratio, ratio) for w, o, peer, ratio in rows]
    return pd.DataFrame(given, columns=columns)


def test_the_faster_peer_counts():
    rows = [(64, "sgd", "torch a", 2.0), (64, "sgd", "jax", 0.5), (128, "adam", "jax", 1.5)]
    sentence = training.report(table(*rows, (64, "sgd", training.LOGGED, 1.05)))
    assert "64 sgd 0.50 (jax), 128 adam 1.50 (jax); flowlab is behind in 1 of 2 rows" in sentence
    assert sentence.endswith("Logging at the default spacing adds 5.0 %.")
    assert "behind nowhere" in training.report(table(rows[0], rows[2]))


def test_every_peer_is_measured_beside_ours(monkeypatch):
    monkeypatch.setattr(training, "_LONG_ENOUGH", 0.001)
    for forms in (training.TORCH, training.JAX):
        for name in list(forms)[:-1]:
            monkeypatch.delitem(forms, name)
    shape = {"seeds": 2, "depth": 3, "batch": 128, "rounds": 2, "threads": 1, "compiled": 0}
    found = training.training((8,), ("momentum",), **shape)
    assert [peer.split()[0].split(".")[0] for peer in found["peer"]] == ["torch", "jax", "flowlab,"]
    assert (found["low"] <= found["ratio"]).all() and (found["ratio"] <= found["high"]).all()
    assert (found[["seconds", "ratio"]] > 0).all().all()


def test_unknown_optimizer():
    with pytest.raises(InputError, match="momentum"):
        training.training(optimizers=("momentun",))
