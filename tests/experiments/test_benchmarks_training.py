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
    columns = ["width", "optimizer", "seconds", "ratio", "low", "high", "rounds", "form"]
    given = [(w, o, 0.1, ratio, ratio, ratio, 3, form) for w, o, form, ratio in rows]
    return pd.DataFrame(given, columns=columns)


def test_the_faster_peer_counts():
    rows = [(64, "sgd", "torch a", 2.0), (64, "sgd", "jax", 0.5), (128, "adam", "jax", 1.5)]
    ours = [(64, "sgd", training.OURS, 1.0), (128, "adam", training.OURS, 1.0)]
    sentence = training.report(table(*ours, *rows, (64, "sgd", training.LOGGED, 1.05)))
    assert "64 sgd 0.50 (jax), 128 adam 1.50 (jax); flowlab is behind in 1 of 2 rows" in sentence
    assert "Logging at the default spacing adds 5.0 %. torch.compile took no part" in sentence
    assert "behind nowhere" in training.report(table(rows[0], rows[2]))


def test_what_was_left_out_is_said():
    found = table((64, "sgd", "torch a", 2.0), (64, "sgd", "jax", 1.5))
    found.loc[1, "rounds"] = 0
    assert training.report(found).endswith("Left out for want of time: jax.")
    assert "2.00 (torch a)" in training.report(found)


def test_every_peer_is_measured_beside_ours(monkeypatch, said):
    monkeypatch.setattr(training, "_LONG_ENOUGH", 0.001)
    for forms in (training.TORCH, training.JAX):
        for name in list(forms)[:-1]:
            monkeypatch.delitem(forms, name)
    shape = {"seeds": 2, "depth": 3, "batch": 128, "rounds": 2, "threads": 1, "compiled": 0}
    found = pd.DataFrame(training.rows(said.append, (8,), ("momentum",), **shape))
    libraries = [form.split()[0].split(".")[0] for form in found["form"]]
    assert sorted(libraries) == ["flowlab", "flowlab,", "jax", "torch"]
    assert (found["low"] <= found["ratio"]).all() and (found["ratio"] <= found["high"]).all()
    assert (found[["seconds", "ratio"]] > 0).all().all()


def test_unknown_optimizer(said):
    with pytest.raises(InputError, match="momentum"):
        next(training.rows(said.append, optimizers=("momentun",)))
