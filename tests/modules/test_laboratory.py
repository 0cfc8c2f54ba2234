"""The laboratory's networks in PyTorch: whole tables against norms taken there by autograd."""

import copy
import inspect
import math
import pickle

import numpy as np
import pandas as pd
import pytest

import flowlab
from flowlab import layers
from flowlab.initializers import Initializer
from flowlab.layer import Chain, Workspace
from flowlab.layers import (
    Activation,
    AvgPool2d,
    BatchNorm,
    Conv1d,
    Conv2d,
    Flatten,
    Fork,
    GroupNorm,
    Linear,
    MaxPool2d,
    MultiHeadAttention,
    PositionalEncoding,
    Residual,
    RMSNorm,
    ScaledDotProductAttention,
    TokenEmbedding,
    TokenMean,
)
from flowlab.layers.activation import ACTIVATIONS, REGISTERED_ACTIVATIONS
from flowlab.layers.loss import Loss
from flowlab.measurement import ensemble
from flowlab.measurement.passes import Drawn
from flowlab.measurement.setup import prepare
from flowlab.modules import torch_needed
from flowlab.modules.laboratory import batch_of, to_torch
from flowlab.networks import Network
from flowlab.settings import NORMALIZATIONS, SKIPS
from flowlab.theory import activations as theory
from tests.support.passes import close

torch = pytest.importorskip("torch")
in_torch = pytest.importorskip("tests.support.in_torch")
translation = pytest.importorskip("flowlab.modules.translation")
TOLERANCES = {"float64": 1e-12, "float32": 3e-5}
COLUMNS = ["activation", "delta", "dX", "dW", "db", "dgain", "dbias", "dh"]
SMALL = {"width": 6, "batch_size": 5, "seeds": 2, "seed": 4, "init": "torch_default"}


@pytest.fixture(autouse=True)
def one_thread():
    """Waking a second thread takes longer than these networks."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rows_of(table, seed):
    """A seed's rows by (layer, op, time or None): (status, {column: log10}), nulls left out."""
    names = {f"{column}_log10_norm": column for column in COLUMNS}
    table = table[["layer", "op", "time", "status", *names]][table["seed"] == seed]
    found = {}
    for layer, op, time, status, *values in table.itertuples(index=False):
        row = zip(names.values(), values, strict=True)
        key = layer, op, None if time is pd.NA else time
        found[key] = status, {column: v for column, v in row if not math.isnan(v)}
    return found


def compared(settings, net=None, **network):
    """(the largest relative difference of norms, how many there are) under the last seed.

    Norms that the table lacks as lost must be rounding errors in PyTorch.
    """
    seed = settings.seed + settings.seeds - 1
    net = net or to_torch(settings, seed, **network)
    theirs = in_torch.norms(net, batch_of(settings, seed, **network))
    ours = rows_of(flowlab.measure(settings, **network), seed)
    assert ours.keys() == theirs.keys()
    rounding = math.log10(100 * np.finfo(settings.dtype).eps * settings.batch_size)
    differences = []
    for key, (status, row) in ours.items():
        for column in theirs[key].keys() | row.keys():
            if column not in row:
                size = max(v for v in theirs[key].values())
                assert status == "lost" and theirs[key][column] < size + rounding, (key, column)
            elif row[column] != theirs[key][column]:  # two zeros are equal
                apart = row[column] - theirs[key][column]
                differences.append(abs(math.expm1(apart * math.log(10))))
            else:
                differences.append(0.0)
    return max(differences), len(differences)


# --- settings -------------------------------------------------------------------------------------

CNN, RESNET = {"network": "cnn", "depth": 4}, {"network": "resnet", "depth": 4}
TOKENS = {"network": "transformer", "depth": 4, "width": 8}
BUILT_IN = [name for name in ACTIVATIONS if name not in REGISTERED_ACTIVATIONS]


def network(name, **options):
    return {"network": {"name": name, **options}}


CASES = {
    **{f"mlp, {a}": {"depth": 5, "activation": a} for a in BUILT_IN},
    **{
        f"mlp, {skip}, {norm}": {"depth": 5, "skip": skip, "norm": norm, "activation": "tanh"}
        for skip in SKIPS
        for norm in NORMALIZATIONS
    },
    **{f"cnn, {s}": CNN | {"skip": s, "activation": "gelu"} for s in SKIPS},
    **{f"cnn, {n}": CNN | {"norm": n} for n in NORMALIZATIONS},
    **{f"resnet, {n}": RESNET | {"norm": n} for n in NORMALIZATIONS},
    **{f"transformer, {s}": TOKENS | {"skip": s} for s in SKIPS},
    **{
        f"transformer, {p}, {n}": TOKENS | {"norm": n} | network("transformer", placement=p)
        for p in ("pre", "post")
        for n in NORMALIZATIONS
    },
    **{
        f"{name}, {norm}": {"network": name, "depth": 3, "norm": norm}
        for name in ("rnn", "lstm", "gru")
        for norm in NORMALIZATIONS
    },
    **{
        f"{name}, truncated": network(name, truncation=3, steps=8) | {"depth": 3}
        for name in ("rnn", "lstm", "gru")
    },
    "rnn, relu": {"network": "rnn", "depth": 3, "activation": "relu"},
    "rnn, identity": network("rnn", truncation=5) | {"depth": 3, "activation": "identity"},
    "rnn, orthogonal": network("rnn", recurrent="orthogonal", radius=0.9),
    "rnn, diagonal": network("rnn", recurrent="identity", radius=0.9),
    "gru, orthogonal": network("gru", recurrent="orthogonal", radius=1.1),
    "lstm, forget bias": network("lstm", forget_bias=1.5, recurrent="lecun", steps=16),
    "two maps": {"depth": 4, "skip": "identity", "norm": "rms"} | network("mlp", branch_maps=2),
    "one map": RESNET | network("resnet", branch_maps=1),
    "inverse depth": {"depth": 5, "skip": "scaled"} | network("mlp", branch_scale="inverse_depth"),
    "circular": CNN | network("cnn", padding="circular", kernel_size=5),
    "circular resnet": RESNET | network("resnet", padding="circular"),
    "channels": CNN | network("cnn", channels=4),
    "gaussian images": CNN | {"data": "gaussian"} | network("cnn", image=5),
    "causal": TOKENS | network("transformer", causal=True, heads=2, steps=16),
    "inverse": TOKENS | network("transformer", logit_scale="inverse", heads=2, expansion=2),
    "tokens, relu": TOKENS | {"activation": "relu", "norm": "batch"},
    "ones": {"depth": 4, "upstream": "ones", "reduction": "sum"},
    "gaussian": {"depth": 4, "upstream": "gaussian", "data": "gaussian"},
    "gaussian, residual": {"depth": 4, "upstream": "gaussian", "skip": "identity"},
    "gaussian, cnn": CNN | {"upstream": "gaussian"},
    "gaussian, transformer": TOKENS | {"upstream": "gaussian"},
    "gaussian, gru": {"network": "gru", "upstream": "gaussian"},
    "squared error": {"depth": 4, "loss": "squared_error"},
    "squared error, sum": {"depth": 4, "loss": "squared_error", "reduction": "sum"},
    "cross-entropy, sum": {"depth": 4, "reduction": "sum"},
    "one layer": {"depth": 1},
    "deep": {"depth": 60, "init": "xavier"},
    "deep, residual": {"depth": 40, "skip": "scaled", "norm": "rms", "activation": "gelu"},
    **{
        f"cnn, {init}": CNN | {"init": init}
        for init in ("delta_orthogonal", "orthogonal", "identity", "xavier")
    },
    **{
        f"mlp, {init}": {"depth": 4, "init": init}
        for init in ("orthogonal", "identity", "he_uniform", "literal")
    },
    "biases": {"depth": 4, "init": {"name": "normal", "sigma_w": 1.5, "sigma_b": 0.3}},
}
# Float32 where something else is computed than in another case.
SINGLE = ["mlp, gelu", "mlp, fixup, batch", "cnn, mix", "cnn, rms", "resnet, batch", "circular"]
SINGLE += ["rnn, layer", "rnn, identity", "lstm, forget bias", "lstm, rms", "gru, truncated"]
SINGLE += ["transformer, rezero", "transformer, post, batch", "causal", "ones", "gaussian, cnn"]


@pytest.mark.parametrize(
    "case, dtype", [(c, "float64") for c in CASES] + [(c, "float32") for c in SINGLE]
)
def test_a_table_is_that_of_torch(case, dtype):
    settings = flowlab.make(**SMALL | CASES[case], dtype=dtype)
    worst, count = compared(settings)
    assert worst < TOLERANCES[dtype] and count >= 5 * settings.depth - 1


def output_of(settings, seed):
    """What flowlab's own network gives for a seed's batch."""
    setup = prepare(settings)
    source = Drawn(Initializer(settings.init), np.array([seed]), np.dtype(settings.dtype))
    x, _ = setup.batches([seed])
    for place in setup.network.walk(setup.shape):
        declared = place.block.declare(place.shape).parameters
        here, zero = (np.array([seed]), np.array([place.layer])), np.zeros(1, np.int64)
        parameters = source.parameters(declared, here, zero, Workspace())
        x, _ = place.block.forward(x, parameters, Workspace())
    return x[0]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("case", ["mlp, mix, rms", "resnet, layer", "causal", "lstm, forget bias"])
def test_outputs_are_those_of_torch(case, dtype):
    settings = flowlab.make(**SMALL | CASES[case], dtype=dtype)
    net, (x, _, _) = to_torch(settings), batch_of(settings)
    ours, theirs = output_of(settings, settings.seed), net(x).detach()
    assert theirs.dtype == getattr(torch, dtype)
    close(ours, theirs, TOLERANCES[dtype])


def place(path):
    """(layer, op, column) of a parameter of PyTorch, from its path alone."""
    layer, *_, op, name = path.replace(".rnn.", ".").split(".")
    kind, _, suffix = name.removesuffix("_l0").partition("_")
    columns = (
        {"weight": "dgain", "bias": "dbias"} if "norm" in op else {"weight": "dW", "bias": "db"}
    )
    op = f"{op}_{suffix}" if suffix else op
    return int(layer.removeprefix("layer_")), op, f"{columns[kind]}_log10_norm"


BY_PATH = ["resnet, layer", "transformer, post, rms", "transformer, pre, batch", "circular"]
BY_PATH += [f"{name}, truncated" for name in ("rnn", "lstm", "gru")]


@pytest.mark.parametrize("case", [*BY_PATH, "rnn, identity", "lstm, forget bias"])
def test_a_reader_finds_the_numbers_by_their_paths(case):
    settings = flowlab.make(**SMALL | CASES[case], dtype="float64")
    net, (x, y, loss) = to_torch(settings), batch_of(settings)
    loss(net(x), y).backward()
    table = flowlab.measure(settings)
    table = table[(table["seed"] == settings.seed) & table["time"].isna()].set_index(
        ["layer", "op"]
    )
    checked = 0
    for path, parameter in net.named_parameters():
        layer, op, column = place(path)
        row = table.loc[(layer, op)]
        if row["status"] == "ok":
            assert row[column] == pytest.approx(in_torch.log10_norm(parameter.grad), abs=1e-12)
            checked += 1
    assert checked >= 2 * settings.depth


@pytest.mark.parametrize("init", ["he", "xavier_uniform", "orthogonal"])
def test_weights_are_the_same_numbers(init):
    settings = flowlab.make(**SMALL | {"init": init, "seeds": 1, "depth": 3})
    net, met = to_torch(settings), []

    def watch(seeds, number):
        def see(layer, tape, dy, dx, gradients):
            if isinstance(layer, Linear):
                ours, theirs = tape["W"][0].T, net[number - 1].linear.weight.detach().numpy()
                met.append(ours.tobytes() == theirs.tobytes() and ours.any())

        return see

    ensemble.measure(settings, watch=watch)
    assert len(met) == 3 and all(met)


# --- wrong networks -------------------------------------------------------------------------------


def transposed(net):
    net.layer_2.linear.weight.data = net.layer_2.linear.weight.data.T.contiguous()


def other_eps(net):
    net.layer_2.layer_norm.eps = 2e-5


def other_order_of_gates(net):
    rnn = net.layer_1.lstm.rnn
    for name in ("weight_ih_l0", "weight_hh_l0"):
        i, f, g, o = getattr(rnn, name).data.chunk(4)
        getattr(rnn, name).data.copy_(torch.cat([i, g, f, o]))


def never_cut(net):
    net.layer_1.gru.truncation = None


def seen_ahead(net):
    net.layer_2.residual_1.branch.attention.causal = False


def other_scale(net):
    net.layer_2.residual_1.branch.attention.scale *= 1 + 1e-6


def padded_with_zeros(net):
    net.layer_2.conv2d.padding_mode = "zeros"


def other_factor(net):
    net.layer_2.residual.a *= 1 + 1e-6


def unbiased_variance(net):
    norm = net.layer_1.batch_norm
    n = SMALL["batch_size"]
    net.layer_1.batch_norm.forward = lambda x: (
        norm.weight * (x - x.mean(0)) / (x.var(0, correction=0) * n / (n - 1) + norm.eps).sqrt()
        + norm.bias
    )


def approximate_gelu(net):
    net.layer_1.gelu.approximate = "tanh"


MUTANTS = {
    transposed: {"depth": 4},
    other_eps: {"depth": 4, "norm": "layer"},
    other_order_of_gates: {"network": "lstm"},
    never_cut: CASES["gru, truncated"],
    seen_ahead: CASES["causal"],
    other_scale: TOKENS,
    padded_with_zeros: CASES["circular"],
    other_factor: {"depth": 4, "skip": "scaled"},
    unbiased_variance: {"depth": 4, "norm": "batch", "activation": "tanh"},
    approximate_gelu: {"depth": 4, "activation": "gelu"},
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_wrong_network_is_found(mutant):
    settings = flowlab.make(**SMALL | MUTANTS[mutant], dtype="float64")
    net = to_torch(settings, settings.seed + 1)
    assert compared(settings, net)[0] < TOLERANCES["float64"]
    mutant(net)
    assert compared(settings, net)[0] > 1e-7


# --- networks of one's own ------------------------------------------------------------------------


def ending(blocks, readout):
    blocks = [*blocks, Chain([readout, Linear(10)])]
    return Network(blocks, [isinstance(block, Residual) for block in blocks])


def images(*blocks):
    return ending(blocks, Flatten()), CNN


def tokens(*blocks):
    return ending(blocks, TokenMean()), TOKENS


OWN = {
    "strides": images(
        Chain([Conv2d(4, 3, stride=2, dilation=2, padding=2), MaxPool2d(2)]),
        Chain([Conv2d(4, 1, groups=2), AvgPool2d(2, stride=1)]),
    ),
    "groups": images(Conv2d(4, 3), Chain([GroupNorm(2), Activation("tanh"), Conv2d(2, 3)])),
    "groups, not centred": images(
        Conv2d(4, 3), Chain([GroupNorm(2, eps=0.1, centred=False), Conv2d(2, 3)])
    ),
    "lengths": tokens(Conv1d(6, 3, padding=1), Chain([BatchNorm(eps=0.1), Conv1d(4, 2)])),
    "sinusoids": tokens(
        Chain([Linear(6), PositionalEncoding(9, "sinusoidal")]),
        Residual(Chain([RMSNorm(0.5), MultiHeadAttention(6, 2, factors=(2.0, 0.5))]), 0.5, 0.9),
    ),
    "a fork of chains": tokens(
        Linear(4),
        Chain(
            [
                Fork([Chain([Linear(4), Activation("relu")]), Linear(4), Residual(Linear(4))]),
                ScaledDotProductAttention(1, scale=0.3),
            ]
        ),
    ),
}


@pytest.mark.parametrize("name", OWN)
def test_a_network_of_ones_own_is_that_of_torch(name):
    network, settings = OWN[name]
    settings = flowlab.make(**SMALL | settings, dtype="float64")
    worst, count = compared(settings, network=network)
    assert worst < TOLERANCES["float64"] and count > 10


def test_tokens_are_embedded_as_in_torch():
    random = np.random.default_rng(0)
    data = flowlab.data.arrays(
        random.integers(7, size=(20, 3)).astype(float),
        random.integers(2, size=20),
        standardise=False,
    )
    settings = flowlab.make(**SMALL, data=data, dtype="float64")
    network = Network([TokenEmbedding(7, 4), Chain([TokenMean(), Linear(2)])])
    net, batch = to_torch(settings, network=network), batch_of(settings, network=network)
    batch.loss(net(batch.x), batch.y).backward()
    table = flowlab.measure(settings, network=network)
    ours = table.loc[(table["seed"] == settings.seed) & (table["layer"] == 1), "dW_log10_norm"]
    theirs = in_torch.log10_norm(net.layer_1.token_embedding.weight.grad)
    assert ours.item() == pytest.approx(theirs, abs=1e-12)


def test_every_layer_has_a_form_in_torch():
    kinds = {kind for _, kind in inspect.getmembers(layers, inspect.isclass)}
    composites = {Chain, Fork, MultiHeadAttention, Residual}
    assert {k for k in kinds if not issubclass(k, Loss)} - composites == set(
        translation.TRANSLATIONS
    )


@pytest.fixture
def forgotten():
    """Whatever a test registers is forgotten."""
    names = (ACTIVATIONS, REGISTERED_ACTIVATIONS, theory.ACTIVATIONS)
    before = [dict(known) for known in names]
    yield
    for known, kept in zip(names, before, strict=True):
        known.clear()
        known.update(kept)


def test_a_registered_activation_is_passed_by_its_kernels(forgotten):
    flowlab.register_activation("mine", lambda z: z + z * z, lambda z: 1 + 2 * z)
    settings = flowlab.make(**SMALL, depth=4, activation="mine", dtype="float64")
    assert compared(settings)[0] < TOLERANCES["float64"]
    z = torch.linspace(-2, 2, 12, dtype=torch.float64).reshape(3, 4).T.requires_grad_()
    mine, twin = to_torch(settings).layer_1.mine(z), z + z * z
    weights = torch.arange(12.0, dtype=torch.float64).reshape(4, 3)
    ours, theirs = (torch.autograd.grad((weights * y).sum(), z)[0] for y in (mine, twin))
    close(mine.detach(), twin.detach())
    close(ours, theirs)


# --- what a module is -----------------------------------------------------------------------------


def test_the_seed_is_by_default_that_of_the_settings():
    axes = SMALL | {"depth": 3}
    first, second = to_torch(**axes), to_torch(flowlab.make(**axes), 4)
    other = to_torch(flowlab.make(**axes), np.int64(5))
    for a, b, c in zip(*(net.parameters() for net in (first, second, other)), strict=True):
        assert torch.equal(a, b) and a.requires_grad and a.dtype == torch.float32
        assert not torch.equal(a, c)
    batches = batch_of(flowlab.make(**axes)), batch_of(**axes), batch_of(flowlab.make(**axes), 5)
    assert torch.equal(batches[0].x, batches[1].x) and not torch.equal(batches[0].x, batches[2].x)


@pytest.mark.parametrize("case", ["cnn, batch", "lstm, truncated", "transformer, rezero"])
def test_a_module_is_a_plain_one(case):
    """It can be copied and stored, and its mode makes no difference; no random number is drawn."""
    settings = flowlab.make(**SMALL | CASES[case])
    state = torch.random.get_rng_state()
    net, (x, _, _) = to_torch(settings), batch_of(settings)
    assert torch.equal(state, torch.random.get_rng_state())
    copied, stored = copy.deepcopy(net), to_torch(settings, settings.seed + 1)
    pickled = pickle.loads(pickle.dumps(net))
    assert not torch.equal(stored(x), net(x))
    stored.load_state_dict(net.state_dict())
    for other in (copied, pickled, stored, copy.deepcopy(net).eval()):
        assert torch.equal(other(x), net(x))
    wide = net.double()
    assert wide(x.double()).dtype == torch.float64


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
def test_the_batch_of_a_training_is_its_first(loss):
    training = {"name": "sgd", "steps": 2}
    settings = flowlab.make(**SMALL, depth=3, loss=loss, training=training, dtype="float64")
    curve = flowlab.train(settings).curve
    x, y, value = batch_of(settings)
    ours = curve.loc[(curve["seed"] == settings.seed) & (curve["step"] == 1), "training_loss"]
    theirs = value(to_torch(settings)(x), y).item()
    assert ours.item() == pytest.approx(theirs, rel=1e-12)


# --- what is refused ------------------------------------------------------------------------------


class Mine(Linear):
    """A layer of a user's own."""


MASKED = Chain([Linear(6), MultiHeadAttention(6, 2, masked=True)])
REFUSED = [
    ({}, {"seed": -1}, "seed must be at least 0 and below 2^63; got -1"),
    ({}, {"seed": "a"}, "seed must be an integer; got 'a'"),
    ({}, {"seed": True}, "seed must be an integer; got True"),
    (
        {},
        {"network": Network([Mine(6), Linear(10)])},
        "a layer must be one that has a form in PyTorch; got Mine",
    ),
    (
        {},
        {"network": Network([Chain([Linear(6), BatchNorm(training=False)]), Linear(10)])},
        "batch_norm must be without data of its own; got mean, variance",
    ),
    (
        TOKENS,
        {"network": tokens(MASKED)[0]},
        "attention must be without data of its own; got hidden",
    ),
    (
        CNN | network("cnn", kernel_size=19, padding="circular"),
        {},
        "conv2d: circular padding must be at most the input's length for PyTorch, 8; got 9",
    ),
    (
        {},
        {"network": Network([Linear(6, name="train"), Linear(10)])},
        "name of an operation must be free in a PyTorch module; got 'train'",
    ),
    (
        {"depth": 2000, "width": 1000, "batch_size": 8},
        {},
        "memory_gib must be at least 7.51 for this network in PyTorch; got 2",
    ),
]


@pytest.mark.parametrize("axes, options, message", REFUSED)
def test_what_has_no_form_in_torch_is_refused(axes, options, message):
    with pytest.raises(flowlab.InputError) as caught:
        to_torch(flowlab.make(**SMALL | axes), **options)
    assert str(caught.value) == message


def test_inputs_beyond_the_type_are_refused():
    data = flowlab.data.arrays(np.full((6, 3), 1e36), np.arange(6) % 2, standardise=False)
    with pytest.raises(
        flowlab.InputError, match=r"in the range of float32 for PyTorch; got 1e\+36"
    ):
        batch_of(**SMALL, data=data)


@pytest.mark.parametrize("function", [to_torch, batch_of])
def test_without_torch_one_line_says_so(function, monkeypatch):
    monkeypatch.setattr(torch_needed, "find_spec", lambda name: None)
    with pytest.raises(flowlab.InputError, match=r"^PyTorch must be installed.*flowlab\[torch\]'$"):
        function(depth=3)
