"""Whole networks trained beside PyTorch: the same parameters, batches and steps, in float64."""

import math
from dataclasses import replace

import numpy as np
import pytest

import flowlab
from flowlab.layer import leaves
from flowlab.measurement.setup import prepare
from flowlab.optimizers import PRESETS, TrainingSettings
from flowlab.training.loop import Part

torch = pytest.importorskip("torch")
STEPS = 20
SIZES = {"width": 6, "batch_size": 5, "seeds": 2, "dtype": "float64", "init": "torch_default"}
NETWORKS = {
    "mlp": {"depth": 4},
    "deep": {"depth": 30, "activation": "tanh", "skip": "none"},
    "cnn": {"network": "cnn", "depth": 3},
    "lstm": {"network": "lstm", "depth": 3},
    "batch": {"depth": 4, "norm": "batch", "activation": "tanh"},
    "batch, cnn": {"network": "cnn", "depth": 3, "norm": "batch", "activation": "tanh"},
}
SGD = {"name": "sgd", "lr": 0.05, "momentum": 0.9}
OPTIMIZERS = {
    "sgd": {"name": "sgd", "lr": 0.1},
    "momentum": SGD | {"weight_decay": 0.01, "schedule": "cosine", "warmup": 5},
    "nesterov": SGD | {"nesterov": True, "weight_decay": 0.01, "clip": "norm", "clip_at": 0.3},
    "adam": {"name": "adam", "weight_decay": 0.1, "clip": "value", "clip_at": 0.01},
    "adamw": {
        "name": "adamw",
        "weight_decay": 0.1,
        "schedule": "cosine",
        "warmup": 5,
        "clip": "norm",
        "clip_at": 0.3,
    },
    "layers": SGD | {"clip": "layer", "clip_at": 0.1},
}


@pytest.fixture(autouse=True)
def one_thread():
    """Waking a second thread takes longer than these networks."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made(network, training, **more):
    given = PRESETS.get(training["name"], {}) | training | {"steps": STEPS}
    return prepare(flowlab.make(**SIZES, **network, training=TrainingSettings(**given), **more))


class Sequence(torch.nn.Module):
    """LSTMs in a row, read at the last step."""

    def __init__(self, blocks):
        super().__init__()
        self.blocks = torch.nn.ModuleList(blocks)

    def forward(self, x):
        for block in self.blocks[:-1]:
            x, _ = block(x)
        return self.blocks[-1](x[:, -1])


def module(settings, shape):
    """PyTorch's network, its blocks those of flowlab's."""
    nn, width, depth = torch.nn, settings.width, settings.depth
    act = {"relu": nn.ReLU, "tanh": nn.Tanh}[settings.activation]
    name = settings.network.name
    if name == "lstm":
        blocks = [nn.LSTM(shape[-1], width, batch_first=True)]
        blocks += [nn.LSTM(width, width, batch_first=True) for _ in range(depth - 2)]
        return Sequence([*blocks, nn.Linear(width, 10)]).double()
    blocks = []
    for k in range(depth - 1):
        fan_in = width if k else shape[1]
        if name == "cnn":
            size, mode = settings.network.kernel_size, settings.network.padding
            parts = [nn.Conv2d(fan_in, width, size, padding=size // 2, padding_mode=mode)]
            norm = nn.BatchNorm2d
        else:
            parts, norm = [nn.Linear(fan_in, width)], nn.BatchNorm1d
        parts += [norm(width)] if settings.norm == "batch" else []
        blocks.append(nn.Sequential(*parts, act()))
    last = [nn.AdaptiveAvgPool2d(1), nn.Flatten()] if name == "cnn" else []
    return nn.Sequential(*blocks, nn.Sequential(*last, nn.Linear(width, 10))).double()


def blocks_of(net):
    return net.blocks if isinstance(net, Sequence) else net


def turned(array):
    """A matrix (i, o) as PyTorch has it, (o, i)."""
    return torch.tensor(array.T if array.ndim == 2 else array)


def of_blocks(held, seed, depth):
    """A seed's parameters block by block, in order and in PyTorch's layout."""
    found = [[] for _ in range(depth)]
    for start, nest in held.items():
        for _, array in leaves(nest):
            for k in range(array.shape[1]):
                found[start + k].append(turned(array[seed, k]))
    return found


def clipped(net, training):
    clip, at = training.clip, training.clip_at
    if clip == "norm":
        return torch.nn.utils.clip_grad_norm_(net.parameters(), at) > at
    if clip == "value":
        largest = max(p.grad.abs().max() for p in net.parameters())
        torch.nn.utils.clip_grad_value_(net.parameters(), at)
        return largest > at
    norms = [torch.nn.utils.clip_grad_norm_(b.parameters(), at) for b in blocks_of(net)]
    return max(norms) > at


def optimizer_of(net, training):
    decay = {"lr": training.lr, "weight_decay": training.weight_decay}
    if training.name == "sgd":
        given = {"momentum": training.momentum, "nesterov": training.nesterov}
        return torch.optim.SGD(net.parameters(), **decay, **given)
    form = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[training.name]
    given = {"betas": (training.beta1, training.beta2), "eps": training.eps}
    return form(net.parameters(), **decay, **given)


def rate_of(training, step):
    """The learning rate, written once more: warm-up, then constant or half a cosine."""
    first = max(training.warmup, 1)
    if step < first:
        return training.lr * step / first
    if training.schedule == "constant":
        return training.lr
    return training.lr * (1 + math.cos(math.pi * (step - first) / (STEPS - first + 1))) / 2


def loss_of(settings, y, labels):
    return torch.nn.functional.cross_entropy(y, torch.tensor(labels), reduction=settings.reduction)


def by_torch(setup, seed, start):
    """(the trained network, its losses before every step, how many were clipped)."""
    settings, training = setup.settings, setup.settings.training
    net, losses, many = module(settings, setup.shape), [], 0
    with torch.no_grad():
        for block, own in zip(blocks_of(net), start, strict=True):
            for parameter, value in zip(block.parameters(), own, strict=True):
                parameter.copy_(value)
    optimizer = optimizer_of(net, training)
    for step in range(1, STEPS + 1):
        x, labels = setup.batches([seed], step)
        optimizer.param_groups[0]["lr"] = rate_of(training, step)
        optimizer.zero_grad()
        loss = loss_of(settings, net(torch.tensor(x[0])), labels[0])
        loss.backward()
        many += training.clip != "none" and bool(clipped(net, training))
        optimizer.step()
        losses.append(loss.item())
    return net, losses, many


def trained(setup):
    """(parameters at first and at last, block by block for each seed; what was logged)."""
    part = Part(setup, setup.seeds, STEPS)
    depth, seeds = setup.settings.depth, range(len(setup.seeds))
    first = [of_blocks(part.held.held, s, depth) for s in seeds]
    logs = part.train(STEPS, lambda steps: None)
    return first, [of_blocks(part.held.held, s, depth) for s in seeds], logs


CASES = [
    (network, optimizer) for network in ("mlp", "cnn", "lstm", "batch") for optimizer in OPTIMIZERS
] + [("deep", "momentum"), ("deep", "adam"), ("batch, cnn", "momentum")]


@pytest.mark.parametrize("network, optimizer", CASES)
def test_a_trained_network_is_that_of_torch(network, optimizer):
    setup = made(NETWORKS[network], OPTIMIZERS[optimizer] | {"log": 1})
    first, last, logs = trained(setup)
    for s, seed in enumerate(setup.seeds):
        net, losses, many = by_torch(setup, seed, first[s])
        for theirs, own, before in zip(blocks_of(net), last[s], first[s], strict=True):
            for p, ours in zip(theirs.parameters(), own, strict=True):
                assert (p.detach() - ours).norm() < 1e-10 * p.detach().norm()
            assert (own[0] - before[0]).norm() > 1e-3 * before[0].norm()  # was trained at all
        found = [log.curve["training_loss"][s] for log in logs]
        np.testing.assert_allclose(found, losses, rtol=1e-10)
        assert sum(log.curve["clipped"][s] for log in logs) == many
        assert many > 0 or setup.settings.training.clip == "none"


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("network", ["mlp", "cnn", "lstm", "batch", "batch, cnn"])
def test_the_held_out_loss_is_that_of_torch(network, reduction):
    """A mean over the examples under either reduction; batch norm's statistics are running ones."""
    training = OPTIMIZERS["momentum"] | {"lr": 0.01, "log": 5}
    setup = made(NETWORKS[network], training, reduction=reduction)
    first, _, logs = trained(setup)
    rows, mean = np.arange(setup.batches.held_out), replace(setup.settings, reduction="mean")
    for s, seed in enumerate(setup.seeds):
        net, _, _ = by_torch(setup, seed, first[s])
        x, labels = setup.batches.evaluated([seed], rows)
        with torch.no_grad():
            y = net.eval()(torch.tensor(x[0]))
            loss = loss_of(mean, y, labels[0]).item()
            in_training = loss_of(mean, net.train()(torch.tensor(x[0])), labels[0])
        accuracy = (y.argmax(1).numpy() == labels[0]).mean()
        np.testing.assert_allclose(logs[-1].curve["held_out_loss"][s], loss, rtol=1e-10)
        assert logs[-1].curve["held_out_accuracy"][s] == accuracy
        normalized = setup.settings.norm == "batch"
        assert (abs(in_training.item() / loss - 1) > 1e-6) == normalized
