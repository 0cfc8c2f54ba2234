"""Plain chains are recognised by their tensors, and their draws by the moments of weights."""

import math

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from flowlab.modules.chains import chain_of, draw_of  # noqa: E402

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))


def spelt(*behind, first=8, width=8, out=3):
    inner = [nn.Linear(first, width), *behind, nn.Linear(width, width), *behind]
    return nn.Sequential(*inner, nn.Linear(width, out))


class Functional(nn.Module):
    def __init__(self, f, skip=False):
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.f, self.skip = f, skip

    def forward(self, x):
        for one in self.maps[:-1]:
            x = self.f(one(x)) + (x if self.skip else 0)
        return self.maps[-1](x)


class Swish(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)


@pytest.mark.parametrize(
    "model, activation",
    [
        (spelt(nn.ReLU()), "relu"),
        (spelt(nn.ReLU(inplace=True)), "relu"),
        (spelt(nn.Tanh(), nn.Identity(), nn.Dropout(0.0)), "tanh"),
        (spelt(nn.GELU()), "gelu"),
        (spelt(nn.LeakyReLU()), "leaky_relu"),
        (spelt(Swish()), "silu"),
        (spelt(), "identity"),
        (Functional(torch.tanh), "tanh"),
        (Functional(F.elu), "elu"),
        (nn.Sequential(nn.Flatten(), *spelt(nn.SELU())), "selu"),
    ],
)
def test_a_chain_is_recognised_by_what_its_maps_read(model, activation):
    links = chain_of(model, X)
    assert [link.activation for link in links] == [activation, activation, "identity"]
    paths = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    assert [link.path for link in links] == paths


def test_images_are_read_by_their_mean():
    convolutions = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)]
    model = nn.Sequential(*convolutions, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.append(nn.Linear(4, 3))
    links = chain_of(model, torch.randn(3, 1, 5, 5))
    assert [link.pooled for link in links] == [False, False, True]
    assert [link.activation for link in links] == ["relu", "relu", "identity"]
    links = chain_of(
        model[:4].append(nn.Flatten()).append(nn.Linear(100, 3)), torch.randn(3, 1, 5, 5)
    )
    assert [link.pooled for link in links] == [False, False, False]


SHARED = nn.Linear(8, 8)


@pytest.mark.parametrize(
    "model, why",
    [
        (spelt(nn.LayerNorm(8)), "1 is a LayerNorm"),
        (spelt(nn.ReLU(), nn.Tanh()), "2 is the second"),
        (
            nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)),
            "got relu, tanh",
        ),
        (spelt(nn.Dropout(0.5)), "no dropout"),
        (Functional(torch.tanh, skip=True), "does not read what came before it"),
        (Functional(lambda x: torch.tanh(2 * x)), "does not read what came before it"),
        (nn.Sequential(SHARED, nn.ReLU(), SHARED), "0 is called again"),
        (nn.Sequential(nn.Linear(8, 8), nn.ReLU()), "chains that end in a map"),
        (nn.Sequential(nn.ReLU(), nn.Linear(8, 8)), "0 comes before the first"),
        (nn.Sequential(nn.PReLU(), nn.Linear(8, 8)), "0 is a PReLU"),
    ],
)
def test_anything_else_is_named(model, why):
    found = chain_of(model, X)
    assert isinstance(found, str) and why in found


class Trained(nn.Sequential):
    def forward(self, x):
        if not self.training:
            raise RuntimeError("in evaluation")
        return super().forward(x)


def test_a_model_that_does_not_run_in_evaluation_is_no_chain():
    model = Trained(nn.Linear(8, 8), nn.Linear(8, 3))
    assert "raises RuntimeError" in chain_of(model, X)
    assert model.training and not any(module._forward_hooks for module in model.modules())


def test_looking_changes_nothing():
    model = spelt(nn.ReLU(), nn.Dropout(0.0))
    model.train()
    model[1].eval()
    before = [module.training for module in model.modules()]
    chain_of(model, X)
    assert [module.training for module in model.modules()] == before
    assert not any(module._forward_hooks for module in model.modules())


def drawn(initialize, bias=nn.init.zeros_, models=4, width=32):
    torch.manual_seed(0)
    found = [spelt(nn.ReLU(), first=16, width=width, out=4) for _ in range(models)]
    for model in found:
        for module in model:
            if isinstance(module, nn.Linear) and initialize is not None:
                initialize(module.weight)
                bias(module.bias)
    return found, chain_of(found[0], torch.randn(5, 16))


INITIALIZERS = {
    "lecun": lambda w: nn.init.kaiming_normal_(w, nonlinearity="linear"),
    "lecun_uniform": lambda w: nn.init.kaiming_uniform_(w, nonlinearity="linear"),
    "he": lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu"),
    "he_uniform": lambda w: nn.init.kaiming_uniform_(w, nonlinearity="relu"),
    "xavier": nn.init.xavier_normal_,
    "xavier_uniform": nn.init.xavier_uniform_,
    "torch_default": None,
}


@pytest.mark.parametrize("scheme", INITIALIZERS)
def test_a_scheme_is_named_by_its_variances_and_distribution(scheme):
    models, links = drawn(INITIALIZERS[scheme])
    draw = draw_of(models, links)
    assert draw.scheme == scheme and not draw.orthogonal
    # What the scheme says, not what was drawn: fan_in Var(W).
    gain2 = {"lecun": 1, "he": 2, "torch": 1 / 3}.get(scheme.split("_")[0])
    fans = [(16, 32), (32, 32), (32, 4)]
    expected = [gain2 if gain2 else 2 * i / (i + o) for i, o in fans]
    assert draw.sigma_w2 == pytest.approx(expected, rel=1e-12)


def test_other_variances_are_measured():
    models, links = drawn(lambda w: nn.init.normal_(w, std=0.3))
    draw = draw_of(models, links)
    assert draw.scheme == "" and not draw.orthogonal
    for found, fan, count in zip(draw.sigma_w2, (16, 32, 32), (512, 1024, 128), strict=True):
        assert found == pytest.approx(0.09 * fan, rel=4 * math.sqrt(2 / (4 * count)))


def test_orthogonal_weights_are_recognised():
    models, links = drawn(lambda w: nn.init.orthogonal_(w, math.sqrt(2)), width=16)
    draw = draw_of(models, links)
    assert draw.orthogonal and draw.sigma_w2[:2] == pytest.approx([2.0, 2.0], rel=1e-5)


def low_rank(w):
    with torch.no_grad():
        w.copy_(torch.outer(torch.randn(len(w)), torch.randn(w.shape[1])) / 4)


def shifted(w):
    nn.init.normal_(w, mean=0.5, std=0.1)


def sparse(w):
    nn.init.sparse_(w, 0.8)


@pytest.mark.parametrize("initialize", [low_rank, shifted, sparse, nn.init.eye_, nn.init.zeros_])
def test_theory_is_silent_on_other_weights(initialize):
    models, links = drawn(initialize)
    found = draw_of(models, links)
    assert isinstance(found, str) and "independent or orthogonal" in found
