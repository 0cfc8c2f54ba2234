"""A model's parameters once each: roles and fans as the field counts them."""

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from flowlab.modules.parameters import parameters  # noqa: E402


def units(module, x):
    """(inputs of one output, outputs of one input), counted in the Jacobian's nonzeros."""
    with torch.no_grad():
        for value in module.parameters():
            value.fill_(1.0)
    jacobian = torch.autograd.functional.jacobian(module, x)
    flat = jacobian.reshape(-1, x.numel()) != 0
    return int(flat.sum(1).max()), int(flat.sum(0).max())


MAPS = [
    (nn.Linear(3, 5), (1, 3)),
    (nn.Conv2d(4, 6, 3), (1, 4, 7, 7)),
    (nn.Conv2d(4, 6, 3, groups=2), (1, 4, 7, 7)),
    (nn.Conv1d(4, 4, 3, groups=4), (1, 4, 9)),
    (nn.ConvTranspose2d(4, 6, 3), (1, 4, 7, 7)),
    (nn.ConvTranspose2d(4, 6, 3, groups=2), (1, 4, 7, 7)),
]


@pytest.mark.parametrize("module, shape", MAPS, ids=lambda value: str(value))
def test_fans_are_those_of_the_map(module, shape):
    (one,) = [p for p in parameters(module) if p.name == "weight"]
    assert (one.fan_in, one.fan_out) == units(module, torch.ones(shape))


def test_an_embedding_reads_one_of_its_rows():
    (one,) = parameters(nn.Embedding(10, 3))
    assert (one.fan_in, one.fan_out) == (10, 3)


def test_roles_follow_from_names_and_shapes():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.LSTM(4, 2), nn.PReLU())
    model.register_parameter("scale", nn.Parameter(torch.ones(4)))
    columns = {f"{p.owner}.{p.name}".lstrip("."): p.column for p in parameters(model)}
    assert columns == {
        "scale": "dW_log10_norm",
        "0.weight": "dW_log10_norm",
        "0.bias": "db_log10_norm",
        "1.weight": "dgain_log10_norm",
        "1.bias": "dbias_log10_norm",
        **{f"2.weight_{kind}_l0": "dW_log10_norm" for kind in ("ih", "hh")},
        **{f"2.bias_{kind}_l0": "db_log10_norm" for kind in ("ih", "hh")},
        "3.weight": "dW_log10_norm",
    }


def test_a_shared_parameter_stands_once_with_its_aliases():
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
    model[1].weight = model[0].weight
    (one,) = parameters(model)
    assert (one.owner, one.name, one.aliases) == ("0", "weight", ("1.weight",))
