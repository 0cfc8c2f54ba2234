"""The block that a family of models repeats is found, whatever its modules are called."""

import pytest

from flowlab.errors import InputError

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from flowlab.modules.blocks import repeated  # noqa: E402


def flat(depth):
    inner = [layer for _ in range(depth) for layer in (nn.Linear(4, 4), nn.ReLU())]
    return nn.Sequential(*inner, nn.Linear(4, 3))


class Attributes(nn.Module):
    def __init__(self, depth):
        super().__init__()
        for k in range(1, depth + 1):
            setattr(self, f"fc{k}", nn.Linear(4, 4))
        self.head1 = nn.Linear(4, 2)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))


class Stages(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.stem = nn.Linear(4, 4)
        for k in range(2):
            setattr(self, f"stage{k}", nn.Sequential(*(Residual() for _ in range(depth))))


def encoder(depth):
    layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
    return nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)


FAMILIES = {
    "flat": (flat, lambda d: [f"{2 * k}" for k in range(d)]),
    "attributes": (Attributes, lambda d: [f"fc{k + 1}" for k in range(d)]),
    "list": (
        lambda d: nn.ModuleDict({"blocks": nn.ModuleList(Residual() for _ in range(d))}),
        lambda d: [f"blocks.{k}" for k in range(d)],
    ),
    "stages": (Stages, lambda d: [f"stage{s}.{k}" for s in range(2) for k in range(d)]),
    "encoder": (encoder, lambda d: [f"layers.{k}" for k in range(d)]),
}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("depths", [(2, 3, 5), (4,)])
def test_blocks_are_those_that_grow_in_number_with_depth(name, depths):
    make, expected = FAMILIES[name]
    found = repeated({depth: make(depth) for depth in depths})
    assert found == {depth: expected(depth) for depth in depths}


def test_more_than_ten_blocks_stand_in_the_order_of_their_numbers():
    assert repeated({2: Attributes(2), 12: Attributes(12)})[12][-3:] == ["fc10", "fc11", "fc12"]


def test_a_pattern_names_the_blocks():
    models = {depth: flat(depth) for depth in (2, 3)}
    assert repeated(models, "[024]")[3] == ["0", "2", "4"]
    with pytest.raises(InputError, match=r"^blocks must match a module at every depth; got x\.\*$"):
        repeated(models, "x.*")


def test_a_model_without_a_repeated_block_is_refused():
    models = {depth: nn.LSTM(4, 4, num_layers=depth) for depth in (2, 4)}
    with pytest.raises(InputError, match=r"must repeat a block .* got 0 at depth 2, 0"):
        repeated(models)
    with pytest.raises(InputError, match="got 1 at depth 1, 2 at depth 2"):
        repeated({depth: Attributes(depth) for depth in (1, 2)})
