"""The benchmark of the probe: all forms find the same norms, and floors are what they say."""

import importlib.util

import numpy as np
import pandas as pd
import pytest

from experiments.benchmarks import nets_jax, nets_torch, probe

SEEDS, DEPTH, BATCH, WIDTH = 2, 4, 5, 8
OF = ("h", "delta", "dX", "dW", "db")


@pytest.fixture(scope="module")
def drawn():
    """(W (depth, S, w, w), x, d (S, B, w)) in float32."""
    rng = np.random.default_rng(0)
    W = rng.standard_normal((DEPTH, SEEDS, WIDTH, WIDTH), np.float32)
    return W, *rng.standard_normal((2, SEEDS, BATCH, WIDTH), np.float32)


@pytest.fixture(scope="module")
def norms(drawn):
    """(S, depth, 5) in float64."""
    W, x, d = (a.astype(np.float64) for a in drawn)
    found = np.empty((SEEDS, DEPTH, len(OF)))
    for s in range(SEEDS):
        hs, dy = [x[s]], d[s]
        for layer in range(DEPTH):
            z = hs[-1] @ W[layer, s]
            hs.append(np.maximum(z, 0) if layer < DEPTH - 1 else z)
        for layer in reversed(range(DEPTH)):
            delta = dy if layer == DEPTH - 1 else dy * (hs[layer + 1] > 0)
            dy = delta @ W[layer, s].T
            arrays = hs[layer + 1], delta, dy, hs[layer].T @ delta, delta.sum(0)
            found[s, layer] = [np.linalg.norm(a) for a in arrays]
    return found


class Given:
    """The same nets in PyTorch, in place of drawn ones."""

    def __init__(self, drawn):
        import torch

        self.W, self.x, self.d = (torch.tensor(a) for a in drawn)

    def all(self):
        return [w.clone() for w in self.W], self.x.clone(), self.d.clone()

    def each(self):
        for s in range(SEEDS):
            yield [w[s].clone() for w in self.W], self.x[s].clone(), self.d[s].clone()


def by_seed(found):
    """(S, depth, 5), from nets one after another or from layers with all nets."""

    def plain(nest):
        return nest.detach().numpy() if hasattr(nest, "detach") else [plain(one) for one in nest]

    array = np.array(plain(found), np.float64)
    if array.shape[:2] != (SEEDS, DEPTH):
        array = np.moveaxis(array.reshape(DEPTH, len(OF), SEEDS), 2, 0)
    return array.reshape(SEEDS, DEPTH, len(OF))


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="needs torch")
def test_every_form_of_pytorch_finds_the_norms(drawn, norms):
    forms = nets_torch.forms(gram=True, compiled=False)
    assert len(forms) == 5
    for name, form in forms.items():
        np.testing.assert_allclose(by_seed(form(Given(drawn))), norms, rtol=2e-6, err_msg=name)


def test_every_form_of_jax_finds_the_norms(drawn, norms):
    W, x, d = drawn
    for form in (nets_jax.unrolled, nets_jax.scanned):
        for weight_norm in (nets_jax.by_product, nets_jax.by_gram):
            found = [form(W[:, s], x[s], d[s], weight_norm) for s in range(SEEDS)]
            np.testing.assert_allclose(found, norms, rtol=2e-6)


def test_jax_draws_under_he():
    forms = nets_jax.forms(64, 3, 5, 32, gram=True)
    shapes = {name: np.shape(form()) for name, form in forms.items()}
    assert shapes == dict.fromkeys(forms, (3, 5, len(OF))) and len(forms) == 8
    found = np.array(forms["jax scan, vmap"]())
    np.testing.assert_allclose(
        found, np.array(forms["jax unrolled, Gram, net by net"]()), rtol=1e-4
    )
    assert found[:, 0, 0] == pytest.approx(np.full(3, (32 * 64) ** 0.5), rel=0.2)  # E‖h‖² = ‖x‖²


@pytest.mark.parametrize("products", [probe.three_products, probe.gram_products])
def test_a_floor_makes_its_products(products):
    given = probe.operands(products, 2, 6, 3)
    products(*given)
    x, W, dy, y, dx, of_weights = given[:6]
    t = (0, 2, 1)
    dW = x.transpose(t) @ dy
    if products is probe.gram_products:
        dW = (dW * dW).sum((1, 2))
    for found, right in zip([y, dx, of_weights], [x @ W, dy @ W.transpose(t), dW], strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-6)


def test_a_floor_passes_every_layer_of_every_net(monkeypatch):
    passed = []
    monkeypatch.setattr(
        probe.three_products, "run", lambda x, *others: passed.append(len(x)), raising=False
    )
    probe.floor(probe.three_products, 6, 5, 7, 3, 2)()
    assert sum(passed) == 5 * 7


def table(*rows):
    columns = ["width", "batch", "ratio", "low", "high", "rounds", "form"]
    return pd.DataFrame([(64, 32, r, 0.9 * r, 1.1 * r, n, f) for f, r, n in rows], columns=columns)


def test_report_takes_the_smaller_floor_and_the_fastest_forms():
    rows = [(probe.OURS, 1.0, 3), (probe.THREE, 0.7, 3), (probe.WITH_GRAM, 0.5, 3)]
    rows += [
        ("torch a", 3.0, 3),
        ("torch.compile", 2.0, 3),
        ("jax a", 4.0, 1),
        ("jax b", np.nan, 0),
    ]
    assert probe.report(table(*rows)) == (
        "width 64, batch 32: 50% of the time is products alone: two, half Grams; "
        "2.00x [1.80, 2.20] faster than torch.compile; 4.00x [3.60, 4.40] faster than jax a; "
        "left out for want of time: jax b"
    )


def test_report_notices_a_floor_that_counts_too_much():
    text = probe.report(table((probe.OURS, 1.0, 3), (probe.THREE, 1.3, 3)))
    assert "130% of the time" in text and "needs fewer" in text
    assert "fewer" not in probe.report(table((probe.OURS, 1.0, 3), (probe.THREE, 0.9, 3)))


def test_rows_of_every_case(said, monkeypatch):
    monkeypatch.setattr(probe.importlib.util, "find_spec", lambda name: None)
    shape = {"widths": (8, 512), "batches": (16, 4), "seeds": 3, "depth": 3, "rounds": 2}
    found = pd.DataFrame(probe.rows(said.append, **shape, threads=1))
    cases = found.groupby(["width", "batch"], sort=False)["form"].agg(list).to_dict()
    gram = [probe.OURS, probe.THREE, probe.WITH_GRAM]
    assert cases == {(8, 16): gram[:2], (512, 16): gram, (512, 4): gram}
    assert set(found.loc[found["width"] == 8, "seeds"]) == {3}
    assert set(found.loc[found["width"] == 512, "seeds"]) == {1}
    assert (found["rounds"] == 2).all() and (found["seconds"] > 0).all()
