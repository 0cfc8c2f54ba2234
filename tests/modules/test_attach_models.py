"""Whole tables of models as users write them against norms taken by hand."""

import copy
import math

import pandas as pd
import pytest

torch = pytest.importorskip("torch")

import flowlab  # noqa: E402
from tests.support import by_hand, models  # noqa: E402

F = torch.nn.functional
COLUMNS = ["activation", "delta", "dX", "dW", "db", "dgain", "dbias", "W"]
COLUMNS = [f"{name}_log10_norm" for name in COLUMNS]


def measured(table):
    """The table as the rows by hand: {(module, use, output, parameter): {column: value}}."""
    found = {}
    for row in table.to_dict("records"):
        key = tuple(
            None if pd.isna(row[name]) else row[name]
            for name in ("module", "use", "output", "parameter")
        )
        assert key not in found, key
        found[key] = {name: row[name] for name in COLUMNS if not math.isnan(row[name])}
    return found


def deviation(table, expected):
    """The largest relative difference of two norms; rows and columns must be the same."""
    found = measured(table)
    assert found.keys() == expected.keys()
    largest = 0.0
    for key, row in expected.items():
        assert found[key].keys() == row.keys(), key
        for column, value in row.items():
            if found[key][column] != value:
                largest = max(largest, abs(math.expm1(math.log(10) * (found[key][column] - value))))
    return largest


def agree(model, runs, *, twin=None, within=1e-6, **options):
    """The table of ``model`` agrees with what is found by hand of a twin; the table."""
    twin = copy.deepcopy(model) if twin is None else twin
    twin.load_state_dict(model.state_dict())
    expected, order = by_hand.rows(twin, runs)
    with flowlab.attach(model, **options) as flow:
        for run in runs:
            run(model).backward()
    table = flow.table
    assert deviation(table, expected) <= within
    calls = table[table["parameter"].isna() & table["output"].isna()]
    assert [(row.module, row.use) for row in calls.itertuples()] == order
    assert list(calls["layer"]) == list(range(1, len(order) + 1))
    assert table["layer"].is_monotonic_increasing
    for (_, one), (_, other) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        assert one.grad is None or torch.equal(one.grad, other.grad)
    return table


def image_loss(seed, size=16, count=4, channels=3):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, channels, size, size, generator=generator)
    labels = torch.randint(5, (count,), generator=generator)
    return lambda model: F.cross_entropy(model(x), labels)


def token_loss(seed, words=12, count=3, length=5):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(words, (count, length + 1), generator=generator)
    return lambda model: F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].ravel())


def square_loss(seed, *shape):
    x, y = torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed))

    def run(model):
        out = model(x)
        return (out * y.sum() - out.square()).mean()

    return run


def test_resnet_that_works_in_place():
    table = agree(models.ResNet18(), [image_loss(1)], twin=models.ResNet18(inplace=False))
    relus = table[table["module"] == "layer1.0.relu"]
    assert list(relus["use"]) == [1, 2] and len(table) == 58 + 62


def test_vit():
    table = agree(models.ViT(), [image_loss(1)])
    assert {"cls_token", "pos_embed"} <= set(table["parameter"].dropna())


@pytest.mark.parametrize("norm_first", [True, False])
def test_transformer(norm_first):
    table = agree(models.transformer(norm_first), [square_loss(1, 2, 5, 16)])
    assert (table["op"] == "MultiheadAttention").sum() == 12 * 3


def test_language_model_with_tied_embedding():
    table = agree(models.LanguageModel(), [token_loss(1)])
    tied = table[table["parameter"] == "weight"]
    assert list(tied["module"]) == ["embedding"] and list(tied["aliases"]) == ["out.weight"]
    lstm = table[(table["op"] == "LSTM") & table["parameter"].isna() & table["output"].isna()]
    assert list(lstm["note"]) == ["steps within the sequence are not seen"]


def test_unet_that_works_in_place():
    run = square_loss(1, 2, 2, 8, 8)
    agree(models.UNet(), [run], twin=models.UNet(inplace=False))


def test_shared_modules():
    table = agree(models.SharedNet(), [token_loss(1)])
    block = table[(table["module"] == "block.0") & table["parameter"].isna()]
    assert list(block["use"]) == [1, 2, 3]
    assert set(block["aliases"]) == {"again.0"}
    weight = table[(table["module"] == "block.0") & (table["parameter"] == "weight")]
    assert list(weight["aliases"]) == ["again.0.weight"]


@pytest.mark.parametrize("empty", [False, True])
def test_mixture_of_experts(empty):
    model = models.Mixture(empty)
    run = square_loss(1, 7, 8)
    expected, _ = by_hand.rows(copy.deepcopy(model), [run])
    unused = ["experts.1", "experts.3"]
    expected = {key: row for key, row in expected.items() if not key[0].startswith(tuple(unused))}
    with flowlab.attach(model) as flow:
        run(model).backward()
    idle = flow.table["module"].str.startswith(tuple(unused))
    assert deviation(flow.table[~idle], expected) <= 1e-6
    rows = flow.table[idle]
    assert len(rows) == 2 * 7 and set(rows["status"]) == {"unused"}
    assert rows[[name for name in COLUMNS if name != "W_log10_norm"]].isna().all(axis=None)
    order = flow.table[flow.table["parameter"].isna()]["module"]
    assert list(order)[:8] == [
        "gate",
        *(f"experts.{n}.{part}" for n in (0, 1) for part in (0, 1, 2)),
        "experts.2.0",
    ]


def test_containers():
    table = agree(models.Containers(), [square_loss(1, 3, 6)])
    names = table[table["module"] == "splits"]["output"]
    assert list(names.dropna()) == ["hidden", "states.both.0", "states.both.1"]
    assert list(table[table["module"] == "pair"]["output"].dropna()) == ["0", "1.0", "2"]
    unread = table[(table["module"] == "pair.c") | (table["output"] == "2")]
    assert list(unread["status"]) == ["unused"] * 4


def test_normalizations_and_gru():
    agree(models.Normalizations(), [square_loss(1, 3, 8, 6)])


@pytest.mark.parametrize("name", ["vit", "language", "unet"])
def test_micro_batches_are_one_batch(name):
    made = {
        "vit": lambda: (models.ViT(), models.ViT(), [image_loss(n) for n in range(3)]),
        "language": lambda: (
            *(models.LanguageModel() for _ in range(2)),
            [token_loss(n) for n in range(3)],
        ),
        "unet": lambda: (
            *(models.UNet(inplace) for inplace in (True, False)),
            [square_loss(n, 2, 2, 8, 8) for n in range(3)],
        ),
    }
    model, twin, runs = made[name]()
    agree(model, runs, twin=twin)


def test_micro_batches_of_one_backward_pass():
    """Losses of several forward passes may be added up before they go back."""
    model, runs = models.ViT(), [image_loss(n) for n in range(2)]
    expected, _ = by_hand.rows(copy.deepcopy(model), runs)
    with flowlab.attach(model) as flow:
        sum(run(model) for run in runs).backward()
    assert deviation(flow.table, expected) <= 1e-6


class Checkpointed(torch.nn.Module):
    def __init__(self, vit, reentrant):
        super().__init__()
        self.vit, self.reentrant = vit, reentrant

    def forward(self, x):
        vit = self.vit
        x = vit.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([vit.cls_token.expand(len(x), -1, -1), x], 1) + vit.pos_embed
        for block in vit.blocks:
            x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=self.reentrant)
        return vit.head(vit.norm(x)[:, 0])


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("batches", [1, 2])
def test_checkpointing_counts_nothing_twice(reentrant, batches):
    vit, runs = models.ViT(), [image_loss(n) for n in range(batches)]
    plain = copy.deepcopy(vit)
    plain.forward = Checkpointed.forward.__get__(Namespace(plain))
    expected, order = by_hand.rows(plain, runs)
    model = Checkpointed(vit, reentrant)
    with flowlab.attach(model) as flow:
        for run in runs:
            run(model).backward()
    table = flow.table.assign(module=flow.table["module"].str.removeprefix("vit."))
    owned = table["module"] != "vit"
    expected = {key: row for key, row in expected.items() if key[0]}
    assert deviation(table[owned], expected) <= 1e-6
    calls = table[table["parameter"].isna() & owned]
    assert [path for path, _ in order if path] == list(calls["module"])


class Namespace:
    """Stands for the module that checkpoints, with no checkpoint in it."""

    def __init__(self, vit):
        self.vit, self.reentrant = vit, False


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_with_a_scaled_loss(dtype):
    model, run, scale = models.ViT(), image_loss(1), 2.0**12
    twin = copy.deepcopy(model)

    def scaled(model):
        with torch.autocast("cpu", dtype):
            return run(model)

    expected, _ = by_hand.rows(twin, [lambda model: scaled(model) * scale])
    off = math.log10(scale)
    for row in expected.values():
        for column in row.keys() - {"activation_log10_norm", "W_log10_norm"}:
            row[column] -= off
    flow = flowlab.attach(model, scale=scale)
    (scaled(model) * scale).backward()
    flow.step()
    for parameter in model.parameters():
        parameter.grad = None
    (scaled(model) * scale).backward()
    for parameter in model.parameters():
        parameter.grad /= scale
    flow.step(unscaled=True)
    flow.detach()
    for step in (1, 2):
        assert deviation(flow.table[flow.table["step"] == step], expected) <= 1e-6


def test_double_precision_far_below_float32():
    model = models.ViT().double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 3, 16, 16, generator=generator, dtype=torch.float64)
    expected, _ = by_hand.rows(copy.deepcopy(model), [lambda model: model(x).square().mean()])
    with flowlab.attach(model) as flow:
        (model(x).square().mean() * 2.0**-700).backward()
    for row in expected.values():
        for column in row.keys() - {"activation_log10_norm", "W_log10_norm"}:
            row[column] -= 700 * math.log10(2)
    assert flow.table["delta_log10_norm"].max() < -200
    assert deviation(flow.table, expected) <= 1e-9


class Complex(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(6, 6)
        self.weight = torch.nn.Parameter(torch.randn(4, 4, dtype=torch.complex64))

    def forward(self, x):
        return (torch.fft.rfft(self.inner(x)) @ self.weight).abs()


def test_complex_parameters():
    agree(Complex(), [square_loss(1, 3, 6)])


def test_sparse_gradients():
    model = models.LanguageModel()
    model.out.weight = torch.nn.Parameter(torch.randn(20, 8))
    model.embedding.sparse = True
    expected, _ = by_hand.rows(copy.deepcopy(model), [token_loss(1)])
    with flowlab.attach(model) as flow:
        token_loss(1)(model).backward()
    assert model.embedding.weight.grad.is_sparse
    assert deviation(flow.table, expected) <= 1e-6


def test_frozen_parameters():
    model = models.ViT()
    for parameter in [*model.patches.parameters(), *model.blocks[0].parameters()]:
        parameter.requires_grad_(False)
    table = agree(model, [image_loss(1)])
    frozen = table[table["note"] == "frozen: requires_grad is False"]
    assert len(frozen) == 2 + 12 and set(frozen["status"]) == {"unused"}
    rows = table[(table["module"] == "patches") & table["parameter"].isna()]
    assert list(rows["status"]) == ["unused"]


def test_an_input_that_needs_gradients():
    model = models.ResNet18()
    x = torch.randn(4, 3, 16, 16, requires_grad=True)
    run = lambda model: model(x).square().sum()  # noqa: E731
    table = agree(model, [run], twin=models.ResNet18(inplace=False))
    first = table[table["module"] == "conv1"].iloc[0]
    twice = by_hand.log10_norm([x.grad / 2])  # both models went back to it
    assert first["dX_log10_norm"] == pytest.approx(twice, abs=1e-6)
