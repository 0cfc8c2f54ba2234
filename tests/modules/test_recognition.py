"""Theory for a user's chains: that of the laboratory's own, and true of what is measured."""

import math
from itertools import pairwise

import numpy as np
import pytest

import flowlab
from flowlab.schema import DELTA

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

STREAM = torch.Generator().manual_seed(3)
WIDTH, CLASSES = 32, 5


def dense(initialize, f):
    def make(depth):
        sizes = [12, *[WIDTH] * (depth - 1), CLASSES]
        model = nn.Sequential()
        for k, (i, o) in enumerate(pairwise(sizes)):
            model.append(nn.Linear(i, o))
            if initialize is not None:
                initialize(model[-1].weight)
                nn.init.zeros_(model[-1].bias)
            if k < depth - 1:
                model.append(f())
        return model

    return make


def convolutions(f, padding_mode="zeros"):
    def make(depth):
        model = nn.Sequential()
        for k in range(depth - 1):
            map_ = nn.Conv2d(8 if k else 1, 8, 3, padding=1, padding_mode=padding_mode)
            model.append(map_).append(f())
        return (
            model.append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten()).append(nn.Linear(8, CLASSES))
        )

    return make


X = torch.randn(20, 12, generator=STREAM)
IMAGES = torch.randn(20, 1, 6, 6, generator=STREAM)
Y = torch.arange(20) % CLASSES
OWN = {
    "he": (dense(nn.init.kaiming_normal_, nn.ReLU), "relu", {}),
    "xavier": (dense(nn.init.xavier_normal_, nn.Tanh), "tanh", {}),
    "torch_default": (dense(None, nn.GELU), "gelu", {}),
    "orthogonal": (dense(nn.init.orthogonal_, nn.Tanh), "tanh", {}),
    "cnn": (convolutions(nn.Tanh), "tanh", {"name": "cnn", "padding": "zeros"}),
    "circular": (convolutions(nn.ReLU, "circular"), "relu", {"name": "cnn", "padding": "circular"}),
}


@pytest.mark.parametrize("kind", OWN)
def test_a_chain_has_the_prediction_of_the_laboratorys_own_net(kind):
    make, activation, network = OWN[kind]
    x = IMAGES if network else X
    found = flowlab.probe(make, (5,), 2, (x, Y), F.cross_entropy).prediction
    assert found["silent_because"].isna().all()
    scheme = "torch_default" if network else kind
    settings = {"network": network, "width": 8} if network else {"width": WIDTH}
    flat = x.reshape(len(x), -1).numpy()
    data = flowlab.data.arrays(flat, Y.numpy(), standardise=False)
    own = flowlab.predict(
        init=scheme, activation=activation, depth=5, batch_size=20, data=data, **settings
    )
    expected = own.dropna(subset=DELTA).drop_duplicates("layer", keep="last")
    maps = found.dropna(subset=DELTA)
    assert len(maps) == 5
    for name in (DELTA, f"{DELTA}_sd", "dX_log10_norm"):
        if kind == "orthogonal" and name == "dX_log10_norm":
            continue  # the scheme of the first map differs where it is not square
        np.testing.assert_allclose(
            maps[name].to_numpy(float), expected[name].to_numpy(float), rtol=1e-6, atol=1e-6
        )


@pytest.mark.parametrize("kind", ["he", "xavier", "orthogonal", "circular"])
def test_the_prediction_is_true_of_what_is_measured(kind):
    """Against the mean over seeds, within four standard errors and theory's own error.

    The upstream gradient is a Gaussian's, independent of the forward pass, as theory takes it.
    """
    make, _, network = OWN[kind]
    x = IMAGES if network else X

    def batch(seed):
        stream = torch.Generator().manual_seed(100 + seed)
        return x, torch.randn(20, CLASSES, generator=stream)

    found = flowlab.probe(make, (8,), 24, batch, lambda output, upstream: (output * upstream).sum())
    verdict = found.verdict.deepest
    spread = verdict.difference.se
    assert abs(verdict.difference.mean) < 4 * spread + verdict.theory_error
    # The check can fail: a wrong variance moves it beyond.
    wrong = found.prediction.copy()
    wrong[DELTA] += 0.15 * (8 - wrong["layer"].rank(method="dense"))
    other = flowlab.judge(found.table, wrong)
    assert abs(other.difference.mean) > 4 * spread + verdict.theory_error


def test_of_another_loss_the_level_is_the_measured_one():
    def loss(output, target):
        return (output - 1).square().mean()

    make = OWN["he"][0]
    found = flowlab.probe(make, (4, 8), 6, (X, Y), loss)
    assert found.prediction["silent_because"].isna().all()
    for depth in (4, 8):
        top = found.table[(found.table["depth"] == depth) & found.table["parameter"].isna()]
        top = top[top["layer"] == top["layer"].max()][DELTA].mean()
        foreseen = found.prediction[found.prediction["depth"] == depth].dropna(subset=DELTA)
        assert foreseen[DELTA].iloc[-1] == pytest.approx(top, rel=1e-12)
    assert found.prediction["dW_log10_norm"].isna().all()


@pytest.mark.parametrize(
    "make, why",
    [
        (lambda d: nn.Sequential(*(nn.Conv2d(1, 1, 5) for _ in range(d))), "odd kernels that keep"),
        (
            lambda d: nn.TransformerEncoder(
                nn.TransformerEncoderLayer(12, 2, 8, 0.0, batch_first=True),
                d,
                enable_nested_tensor=False,
            ),
            "LayerNorm",
        ),
    ],
)
def test_silence_has_its_reason(make, why):
    x = torch.randn(2, 1, 30, 30) if "odd" in why else torch.randn(2, 3, 12)
    found = flowlab.probe(make, (2, 3), 1, x, lambda output, _: output.square().mean())
    (because,) = found.prediction["silent_because"].unique()
    assert why in because and found.prediction[DELTA].isna().all()
    assert because in found.verdict.sentence
    assert math.isfinite(found.verdict.slope.mean)
