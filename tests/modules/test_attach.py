"""Attaching to a model: what the table says, that no trace is left, and what is refused."""

import copy
import functools
import gc
import io
import math
import pickle
import subprocess
import sys
import warnings
import weakref

import numpy as np
import pandas as pd
import pytest

torch = pytest.importorskip("torch")

import flowlab  # noqa: E402
from flowlab.errors import InputError  # noqa: E402
from flowlab.modules import magnitudes, watch  # noqa: E402
from tests.support import models  # noqa: E402

nn = torch.nn
NORMS = ["activation", "delta", "dX", "dW", "db", "dgain", "dbias", "W"]
NORMS = [f"{name}_log10_norm" for name in NORMS]
KEY = ["module", "use", "output", "parameter"]
# Of each model: how it is made, and the shape of what it is given; None for tokens.
MADE = {
    "resnet": (models.ResNet18, (4, 3, 16, 16)),
    "vit": (models.ViT, (4, 3, 16, 16)),
    "pre-norm": (lambda: models.transformer(True, depth=3), (2, 5, 16)),
    "post-norm": (lambda: models.transformer(False, depth=3), (2, 5, 16)),
    "language": (models.LanguageModel, None),
    "unet": (models.UNet, (2, 2, 8, 8)),
    "shared": (models.SharedNet, None),
    "mixture": (models.Mixture, (7, 8)),
    "containers": (models.Containers, (3, 6)),
    "normalizations": (models.Normalizations, (3, 8, 6)),
}


def chain(depth=3, gain=1.0, width=6, act=nn.Tanh, dtype=torch.float32):
    """A chain of linear maps and activations, the same on every call."""
    generator = torch.Generator().manual_seed(3)
    blocks = [nn.Sequential(nn.Linear(width, width), act()) for _ in range(depth)]
    for block in blocks:
        for parameter in block.parameters():
            values = torch.randn(parameter.shape, generator=generator)
            parameter.data = values * gain / width**0.5
    return nn.Sequential(*blocks).to(dtype)


X = torch.randn(8, 6, generator=torch.Generator().manual_seed(4))


def made(name):
    """A model, and its loss: a random linear form of the output."""
    make, shape = MADE[name]
    torch.manual_seed(0)
    model = make()
    x = torch.randint(12, (3, 5)) if shape is None else torch.randn(shape)
    weights = torch.Generator().manual_seed(5)

    def loss(model, scale=1.0):
        out = model(x if shape is None else x.to(next(model.parameters()).dtype))
        form = torch.randn(out.shape, generator=weights.manual_seed(5))
        return (out * form.to(out.dtype)).sum() * scale

    return model, loss


def table_of(model, loss, **options):
    with flowlab.attach(model, **options) as flow:
        loss(model).backward()
    return flow.table


def gradients(model):
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def same_bits(some, others):
    pairs = zip(some, others, strict=True)
    return all(a is b if a is None or b is None else torch.equal(a, b) for a, b in pairs)


def of(table, module, use=None):
    """The rows of a module's calls, or of one."""
    rows = table[(table["module"] == module) & table["parameter"].isna()]
    return rows if use is None else rows[rows["use"] == use].iloc[0]


def one_line(call, *parts):
    """The call is refused in one line that has these parts."""
    with pytest.raises(InputError) as refused:
        call()
    line = str(refused.value)
    assert "\n" not in line and all(part in line for part in parts), line
    return line


# Norms


def test_the_output_may_be_a_view_that_is_changed_in_place():
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(6))

        def forward(self, x):
            return (x * self.weight).reshape(2, 4, 6).transpose(0, 1)

    class Net(nn.Module):
        def __init__(self, inplace):
            super().__init__()
            self.turned, self.inplace = Turned(), inplace

        def forward(self, x):
            h = self.turned(x)
            return h.mul_(2).tanh_() if self.inplace else (h * 2).tanh()

    tables = [table_of(Net(way), lambda net: net(X).square().sum()) for way in (True, False)]
    for name in NORMS:
        np.testing.assert_allclose(*(table[name].astype(float) for table in tables), atol=1e-7)
    assert of(tables[0], "turned", 1)["delta_log10_norm"] > -2


def test_a_cotangent_that_cannot_be_seen_is_lost_and_not_zero():
    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(6))

        def forward(self, x):
            return (x * self.weight)[:, :3]

    net = Part()
    with flowlab.attach(net) as flow:
        net(X).tanh_().sum().backward()
    row = of(flow.table, "", 1)
    assert row["status"] == "lost" and math.isnan(row["delta_log10_norm"])
    assert row["note"] == "the output is part of a tensor that was changed in place"


def test_a_module_that_passes_its_input_on():
    net = nn.Sequential(nn.Linear(6, 6), nn.Identity(), nn.Linear(6, 6))
    table = table_of(net, lambda net: net(X).sum(), modules="*")
    row = of(table, "1", 1)
    assert row["dX_log10_norm"] == row["delta_log10_norm"] == of(table, "2", 1)["dX_log10_norm"]


def test_one_output_of_several_that_goes_back():
    """The gradient of an input that two outputs share, where one of these is not read."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
            self.gain = nn.Parameter(torch.ones(6))

        def forward(self, x):
            return self.a(x) * self.gain, self.b(x)

    first, two = nn.Linear(6, 6), Two()
    net = nn.Sequential(first, two)
    h = first(X)
    table = table_of(net, lambda net: net(X)[0].square().sum())
    (g,) = torch.autograd.grad(two(h)[0].square().sum(), h)
    found = of(table, "1")
    assert list(found["output"].fillna("all")) == ["0", "1", "all"]
    assert list(found["status"]) == ["ok", "unused", "ok"]
    assert found["dX_log10_norm"].iloc[2] == pytest.approx(math.log10(g.norm()), abs=1e-6)


def test_a_failed_forward_pass_and_one_without_backward_count_for_nothing():
    net = chain()
    tables = []
    for disturbed in (False, True):
        flow = flowlab.attach(net)
        if disturbed:
            net(X)  # nothing comes back
            with pytest.raises(RuntimeError):
                net(X[:, :5])
            with pytest.raises(RuntimeError):
                net[1](X[:, :5])
        net.zero_grad()
        net(X).sum().backward()
        if disturbed:
            with torch.no_grad():
                net.eval()(X)
        flow.step()
        flow.detach()
        tables.append(flow.table.drop(columns="run"))
    pd.testing.assert_frame_equal(*tables)


# Statuses


def test_dead_units_are_zero():
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    net[0].bias.data.fill_(-100)
    table = table_of(net, lambda net: net(X).sum())
    names = table["module"] + "." + table["parameter"].fillna("")
    assert dict(zip(names, table["status"], strict=True)) == {
        "0.": "zero",
        "0.weight": "zero",
        "0.bias": "zero",
        "1.": "zero",  # its dX
        "2.": "ok",
        "2.weight": "zero",  # its input is zero
        "2.bias": "ok",
    }
    relu = of(table, "1", 1)
    assert relu["activation_zeros"] == 1 and relu["delta_zeros"] == 0
    assert relu["activation_log10_norm"] == relu["dX_log10_norm"] == -math.inf


@pytest.mark.parametrize("dtype, loss_scale", [("float16", 1.0), ("float32", 1e-3)])
def test_what_is_flushed_is_underflow_and_not_zero(dtype, loss_scale):
    net = chain(40, 0.05, dtype=getattr(torch, dtype))
    x = X.to(getattr(torch, dtype))
    table = table_of(net, lambda net: net(x).float().sum() * loss_scale)
    net = chain(40, 0.05, dtype=torch.float64)
    twin = table_of(net, lambda net: net(x.double()).sum() * loss_scale)
    lost = table["status"] == "underflow"
    assert set(table["status"]) == {"ok", "underflow"} and lost.sum() > 40
    assert set(twin["status"]) == {"ok"}
    assert lost[table["module"] == "0.0"].all() and not lost[table["module"] == "39.0"].any()
    for name in ("delta", "dX", "dW", "db"):
        name = f"{name}_log10_norm"
        assert not np.isneginf(table[name]).any()
        known = ~lost & twin[name].notna()
        np.testing.assert_allclose(table[name][known], twin[name][known], atol=5e-3)


def test_dead_units_of_a_short_type_are_zero():
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)).half()
    net[0].bias.data.fill_(-100)
    table = table_of(net, lambda net: net(X.half()).float().sum() * 0.01)
    assert list(of(table, "0")["status"]) == list(of(table, "1")["status"]) == ["zero"]


def test_values_out_of_range_are_nonfinite():
    net = chain(3, 1e30, act=nn.Identity)
    table = table_of(net, lambda net: net(X).sum())
    assert set(of(table, "2.0")["status"]) == {"nonfinite"}
    with torch.no_grad():
        net[0][0].weight[0, 0] = math.nan
    table = table_of(net, lambda net: net(X).sum())
    assert set(of(table, "0.0")["status"]) == {"nonfinite"}
    row = table[(table["module"] == "0.0") & (table["parameter"] == "weight")].iloc[0]
    assert row["status"] == "nonfinite"


def test_modules_that_did_not_run_are_unused():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(6, 6) for _ in range(3))

        def forward(self, x):
            with torch.no_grad():
                x = self.a(x)
            return self.c(x)

    table = table_of(Branch(), lambda net: net(X).sum()).set_index("module")
    assert list(table["layer"].loc[["a", "b", "c"]].unique()) == [1, 2, 3]
    assert set(table["status"].loc[["a", "b"]]) == {"unused"}
    assert set(table["status"].loc[["c"]]) == {"ok"}
    assert table.loc["a"]["activation_log10_norm"].notna().any()
    others = table.loc[["a", "b"]][["delta_log10_norm", "dW_log10_norm", "db_log10_norm"]]
    assert others.isna().all(axis=None)
    assert table.loc["b"]["use"].isna().all()


# Exponents


def against_double(make, x, loss, **options):
    """Largest relative difference, lowest norm and statuses of ``exponents`` and of double."""
    table = table_of(make(), lambda net: loss(net(x)), exponents=True, **options)
    twin = table_of(make().double(), lambda net: loss(net(x.double())), **options)
    pd.testing.assert_frame_equal(table[KEY], twin[KEY])
    worst, lowest = 0.0, 0.0
    for name in NORMS:
        known = twin[name].notna()
        assert (table[name].notna() == known).all(), name
        difference = np.abs(np.expm1(math.log(10) * (table[name] - twin[name])[known]))
        worst = max([worst, *difference])
        lowest = min([lowest, *twin[name][known]])
    return worst, lowest, set(table["status"])


class Residual(nn.Module):
    """A residual stream that shrinks from block to block."""

    def __init__(self, depth=40):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(depth))

    def forward(self, x):
        for layer in self.layers:
            x = (x + torch.tanh(layer(x))) * 0.03
        return x


@pytest.mark.parametrize(
    "make, modules, below",
    [
        (lambda: chain(60, 0.1), None, -55),
        (lambda: chain(50, 0.05, act=lambda: nn.LeakyReLU(0.1, inplace=True)), nn.Linear, -55),
        (lambda: chain(40, 0.3, dtype=torch.float16), None, -15),
        (Residual, None, -50),
    ],
)
def test_norms_below_the_range_are_true_with_exponents(make, modules, below):
    x = X.to(next(make().parameters()).dtype)
    half = x.dtype == torch.float16
    worst, lowest, statuses = against_double(
        make, x, lambda out: out.sum() if half else out.square().mean(), modules=modules
    )
    assert statuses == {"ok"} and lowest < below
    assert worst < (1e-2 if half else 1e-3)  # the net itself rounds


@pytest.mark.parametrize("name", MADE)
def test_exponents_change_no_bit_of_the_gradients(name):
    model, loss = made(name)
    loss(model).backward()
    expected = gradients(model)
    for scale in (1.0, 2.0**40):  # far from the middle of the range
        model, loss = made(name)
        scaled = functools.partial(loss, scale=scale)
        plain = table_of(copy.deepcopy(model), scaled)
        carried = table_of(model, scaled, exponents=True)
        assert same_bits([g if g is None else g / scale for g in gradients(model)], expected)
        pd.testing.assert_frame_equal(carried[[*KEY, "status"]], plain[[*KEY, "status"]])
        for column in NORMS:
            np.testing.assert_allclose(carried[column], plain[column], rtol=0, atol=2e-7)


def test_exponents_where_the_loss_reads_every_parameter():
    """Nothing hangs on one gradient alone, so none may be multiplied; what is lost is said."""
    net, twin = chain(60, 0.1), chain(60, 0.1)

    def loss(net):
        return net(X).square().mean() + 1e-3 * sum(p.square().sum() for p in net.parameters())

    loss(twin).backward()
    table = table_of(net, loss, exponents=True)
    assert same_bits(gradients(net), gradients(twin))
    assert set(of(table, "0.0")["status"]) == {"underflow"}
    weights = table[table["parameter"] == "weight"]
    assert set(weights["status"]) == {"ok"}
    norms = [math.log10(block[0].weight.grad.norm()) for block in net]
    np.testing.assert_allclose(weights["dW_log10_norm"], norms, atol=1e-6)


def test_exponents_under_a_shared_weight():
    """Its gradients meet: between its readers the exponent must stay, behind them it may move."""

    def make():
        net = chain(30, 0.05)
        net[2][0].weight = net[5][0].weight
        return net

    worst, lowest, statuses = against_double(make, X, lambda out: out.square().mean())
    net, twin = make(), make()
    table_of(net, lambda net: net(X).square().mean(), exponents=True)
    twin(X).square().mean().backward()
    assert worst < 1e-3 and lowest < -38 and statuses == {"ok"}
    assert torch.equal(net[29][0].weight.grad, twin[29][0].weight.grad)


def test_exponents_with_a_scaled_loss():
    """What was measured on the way is rid of the scale, also where ``.grad`` is already."""
    plain = table_of(chain(60, 0.1), lambda net: net(X).square().mean(), exponents=True)
    for unscaled in (False, True):
        net = chain(60, 0.1)
        flow = flowlab.attach(net, exponents=True, scale=1024)
        (net(X).square().mean() * 1024).backward()
        for parameter in net.parameters():
            parameter.grad /= 1024 if unscaled else 1
        flow.step(unscaled=unscaled)
        flow.detach()
        for name in NORMS:
            np.testing.assert_allclose(flow.table[name], plain[name], rtol=0, atol=1e-4)


def test_an_exception_in_backward_does_not_end_exponents():
    net = chain(30, 0.1)
    plain = table_of(chain(30, 0.1), lambda net: net(X).sum(), exponents=True)

    def fail(gradient):
        raise RuntimeError("mine")

    with flowlab.attach(net, exponents=True) as flow:
        h = net[0](X)
        handle = h.register_hook(fail)
        with pytest.raises(RuntimeError, match="mine"):
            net[1:](h).sum().backward()
        handle.remove()
        net.zero_grad()
        flow._watch.clear()
        net(X).sum().backward()
    pd.testing.assert_frame_equal(flow.table[NORMS], plain[NORMS])
    assert torch._C._is_multithreading_enabled()


# No trace


@pytest.mark.parametrize("exponents", [False, True])
@pytest.mark.parametrize("name", MADE)
def test_gradients_hooks_and_state_are_as_without(name, exponents):
    model, loss = made(name)
    twin = copy.deepcopy(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    loss(twin).backward()
    with flowlab.attach(model, exponents=exponents):
        assert model.state_dict().keys() == before.keys()
        loss(model).backward()
    assert same_bits(gradients(model), gradients(twin))
    after, expected = model.state_dict(), twin.state_dict()
    assert all(torch.equal(after[key], expected[key]) for key in expected)
    assert [module.training for module in model.modules()] == modes
    assert hooks_of(model) == 0


def hooks_of(model):
    """How many hooks modules and parameters have."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    names += ("_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
    names += ("_forward_hooks_always_called",)
    of_modules = sum(len(getattr(m, name)) for m in model.modules() for name in names)
    return of_modules + sum(len(p._backward_hooks or ()) for p in model.parameters())


@pytest.mark.parametrize("exponents", [False, True])
@pytest.mark.parametrize("where", ["forward", "backward", "between"])
def test_hooks_are_gone_after_an_exception(where, exponents):
    net = chain()

    def fail(*_):
        raise RuntimeError("mine")

    with (
        pytest.raises(RuntimeError, match="mine"),
        flowlab.attach(net, exponents=exponents) as flow,
    ):
        if where == "forward":
            net[1].register_forward_hook(fail)
        out = net(X)
        if where == "between":
            fail()
        out.register_hook(fail)
        out.sum().backward()
    net[1]._forward_hooks.clear()
    assert hooks_of(net) == 0
    one_line(lambda: flow.table, "a step must be measured before there is a table")
    flow.detach()
    with flowlab.attach(net):  # is attached no longer
        net(X).sum().backward()


class Token:
    """Lives as long as the node of the graph that holds it."""


@pytest.mark.parametrize("exponents", [False, True])
@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("end", ["step", "unread", "exception"])
def test_no_tensor_is_kept(name, exponents, end):
    model, loss = made(name)
    alive = []

    def remember(module, args, output):
        if isinstance(output, torch.Tensor):
            alive.append(weakref.ref(output))
            if output.grad_fn is not None:
                output.grad_fn.metadata["token"] = Token()
                alive.append(weakref.ref(output.grad_fn.metadata["token"]))

    for module in model.modules():
        module.register_forward_hook(remember)
    model.zero_grad()
    gc.collect()
    gc.disable()  # what only the collector frees is kept, too
    try:
        flow = flowlab.attach(model, exponents=exponents)
        try:
            value = loss(model)
            if end == "exception":
                value.register_hook(lambda gradient: 1 / 0)
            if end != "unread":
                value.backward()
        except ZeroDivisionError:
            pass
        if end == "step":
            flow.step()
        del value
        assert alive and not [one for one in alive if one() is not None]
    finally:
        gc.enable()
    flow.detach()


def test_memory_is_back_at_its_level():
    net = chain(20, width=6)
    flow = flowlab.attach(net)

    def tensors():
        gc.collect()
        return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())

    counts = []
    for _ in range(4):
        net.zero_grad()
        net(X).sum().backward()
        flow.step()
        counts.append(tensors())
    assert len(set(counts)) == 1
    flow.detach()


def test_a_copy_and_a_file_are_without_hooks_that_measure():
    net = chain()
    with flowlab.attach(net) as flow:
        twin = copy.deepcopy(net)
        again = pickle.loads(pickle.dumps(net))
        file = io.BytesIO()
        torch.save(net, file)
        for other in (twin, again):
            other(10 * X).sum().backward()
        net(X).sum().backward()
    plain = table_of(chain(), lambda net: net(X).sum())
    pd.testing.assert_frame_equal(flow.table, plain)
    with flowlab.attach(twin):  # is another model
        twin(X).sum().backward()


# Loops


def test_every_tenth_step_is_measured_from_the_first_on():
    net, seen = chain(), []
    flow = flowlab.attach(net, every=10)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for step in range(1, 24):
        optimizer.zero_grad()
        loss = net(X).square().mean()
        loss.backward()
        flow.step(loss=loss if step % 2 else loss.item())
        seen.append((step, loss.item(), math.log10(net[0][0].weight.grad.norm())))
        optimizer.step()
    flow.detach()
    assert list(flow.table["step"].unique()) == [1, 11, 21]
    losses = pd.DataFrame([one[:2] for one in seen], columns=["step", "loss"])
    pd.testing.assert_frame_equal(flow.losses, losses)
    weights = flow.table[(flow.table["module"] == "0.0") & (flow.table["parameter"] == "weight")]
    expected = [one[2] for one in seen if one[0] in (1, 11, 21)]
    np.testing.assert_allclose(weights["dW_log10_norm"], expected, atol=1e-6)


def test_the_table_grows_and_has_one_name():
    net = chain()
    flow = flowlab.attach(net, name="mine", settings={"init": "he", "depth": 3}, seed=5)
    lengths = []
    for _ in range(3):
        net.zero_grad()
        net(X).sum().backward()
        flow.step()
        table = flow.table
        assert flow.table is table
        lengths.append(len(table))
    flow.detach()
    assert lengths == [12, 24, 36]
    assert table["run"].nunique() == 1 and set(table["network"]) == {"mine"}
    assert set(table["init"]) == {"he"} and set(table["depth"]) == {3} and set(table["seed"]) == {5}
    assert list(table.groupby("step").size()) == [12, 12, 12]


def test_a_single_measurement_has_no_step():
    table = table_of(chain(), lambda net: net(X).sum())
    assert table["step"].isna().all() and set(table["network"]) == {"Sequential"}


def test_a_step_within_the_block_is_the_only_one():
    net = chain()
    with flowlab.attach(net) as flow:
        net(X).sum().backward()
        flow.step()
        net(X)
    assert list(flow.table["step"].unique()) == [1]


def test_gradients_are_those_at_the_step():
    """Behind clipping these are the clipped ones, and those of other models are not asked for."""
    net = chain()
    flow = flowlab.attach(net)
    net(X).sum().backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1e-3)
    flow.step()
    flow.detach()
    names = ["dW_log10_norm", "db_log10_norm"]
    squares = np.nansum(10 ** (2 * flow.table[names].to_numpy(float)))
    assert math.sqrt(squares) == pytest.approx(1e-3, rel=1e-4)


def test_modules_are_chosen_by_pattern_type_and_function():
    net = chain()

    def chosen(modules):
        table = table_of(net, lambda net: net(X).sum(), modules=modules)
        return list(table["module"][table["parameter"].isna()])

    assert chosen(None) == ["0.0", "0.1", "1.0", "1.1", "2.0", "2.1"]
    assert chosen("1.*") == ["1.0", "1.1"]
    assert chosen(nn.Tanh) == ["0.1", "1.1", "2.1"]
    assert chosen(["0.0", nn.Tanh]) == ["0.0", "0.1", "1.1", "2.1"]
    assert chosen("") == [""]
    assert chosen(lambda path, module: path == "2") == ["2"]


def test_parameters_are_those_of_the_chosen_modules():
    table = table_of(chain(), lambda net: net(X).sum(), modules="1")
    assert set(table["module"][table["parameter"].notna()]) == {"1.0"}


# Elsewhere than on a CPU


def test_numbers_that_wait_on_a_device_are_the_same_and_moved_at_once(monkeypatch):
    moved, tolist = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda t: moved.append(1) or tolist(t))
    for name in MADE:
        model, loss = made(name)
        there = table_of(copy.deepcopy(model), loss)
        assert not moved
        monkeypatch.setattr(magnitudes, "_at_hand", lambda tensor: False)
        elsewhere = table_of(model, loss)
        monkeypatch.undo()
        monkeypatch.setattr(torch.Tensor, "tolist", lambda t: moved.append(1) or tolist(t))
        assert len(moved) == 1
        moved.clear()
        for column in NORMS:
            np.testing.assert_allclose(elsewhere[column], there[column], rtol=0, atol=1e-12)
        others = [column for column in there if column not in (*NORMS, "run")]
        pd.testing.assert_frame_equal(elsewhere[others], there[others])


def test_exponents_on_a_device(monkeypatch):
    monkeypatch.setattr(magnitudes, "_at_hand", lambda tensor: False)
    worst, lowest, statuses = against_double(
        lambda: chain(60, 0.1), X, lambda out: out.square().mean()
    )
    assert worst < 1e-3 and lowest < -55 and statuses == {"ok"}


def test_double_precision_on_a_device(monkeypatch):
    tensor = 1e-200 * torch.randn(50, dtype=torch.float64)
    here = magnitudes.measure(tensor, 3)
    monkeypatch.setattr(magnitudes, "_at_hand", lambda tensor: False)
    (there,) = magnitudes.settle([magnitudes.measure(tensor, 3)])
    assert there.log2 == pytest.approx(here.log2, abs=1e-12) and here.log2 < -600
    for special, expected in ((0.0, -math.inf), (math.inf, math.inf)):
        tensor[7] = special
        (there,) = magnitudes.settle([magnitudes.measure(tensor.clamp(min=special), 0)])
        assert there.log2 == expected or special == 0.0
    (nothing,) = magnitudes.settle([magnitudes.measure(torch.zeros(4, dtype=torch.float64))])
    assert nothing.log2 == -math.inf and nothing.zeros == 4


# Refusals


def step_of(use):
    """A call that attaches to a chain and leaves the block behind ``use``."""

    def call():
        net = chain()
        with flowlab.attach(net) as flow:
            use(net, flow)

    return call


def under_no_grad(net, flow):
    with torch.no_grad():
        net(X)


def under_inference_mode(net, flow):
    with torch.inference_mode():
        net(X)


def twice(net, flow):
    loss = net(X).sum()
    loss.backward(retain_graph=True)
    loss.backward()


def too_late(net, flow):
    net(X).sum().backward()
    net.zero_grad()


def by_function(net, flow):
    parameters = dict(net.named_parameters())
    torch.func.grad(lambda p: torch.func.functional_call(net, p, (X,)).sum())(parameters)


@pytest.mark.parametrize(
    "use, line",
    [
        (lambda net, flow: None, "the model must be called before a step is measured; got no call"),
        (
            under_no_grad,
            "the forward pass must run with gradients; got one under torch.no_grad or "
            "inference_mode",
        ),
        (
            under_inference_mode,
            "the forward pass must run with gradients; got one under torch.no_grad or "
            "inference_mode",
        ),
        (
            lambda net, flow: net(X),
            "backward() must run between the forward pass and the step; "
            "got no gradient at any module",
        ),
        (
            twice,
            "backward must run once through a forward pass; got 2 times through 0.0: "
            "add the losses, or call the model anew",
        ),
        (
            too_late,
            "parameters must have gradients when a step is measured; got None in every .grad: "
            "call flow.step() before zero_grad(), and backward() rather than autograd.grad",
        ),
        (
            by_function,
            "model must not be called under torch.func while it is attached: its transforms have "
            "no graph of the backward pass; call backward()",
        ),
        (
            lambda net, flow: flow.step(),
            "the model must be called before a step is measured; got no call",
        ),
        (
            lambda net, flow: flow.table,
            "a step must be measured before there is a table; got none: call flow.step() behind "
            "backward, or leave the block",
        ),
        (
            lambda net, flow: flowlab.attach(net),
            "model must be attached once at a time; got one that is attached already: "
            "call detach() on the first",
        ),
        (lambda net, flow: flow.step(scale=0), "scale must be a finite number above 0; got 0"),
        (lambda net, flow: flow.step(loss="x"), "loss must be a number; got str"),
    ],
)
def test_steps_that_are_refused(use, line):
    assert one_line(step_of(use)) == line


def test_a_part_of_an_attached_model_is_attached_already():
    net = chain()
    for first, second in ((net, net[1]), (net[1], net)):
        with pytest.raises(RuntimeError, match="mine"), flowlab.attach(first):
            one_line(lambda model=second: flowlab.attach(model), "attached once at a time")
            raise RuntimeError("mine")


def test_reentrant_checkpointing_of_a_module_used_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.inner = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x):
            again = torch.utils.checkpoint.checkpoint
            x = self.first(x)
            return again(self.inner, again(self.inner, x, use_reentrant=True), use_reentrant=True)

    line = one_line(lambda: table_of(Twice(), lambda net: net(X).sum()))
    assert line == (
        "module inner must be called once under checkpoint(use_reentrant=True); got 2 calls: "
        "use_reentrant=False works"
    )


def test_exponents_meet_a_backward_pass_within_another():
    class Again(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.inner = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x):
            h = torch.utils.checkpoint.checkpoint(self.inner, self.first(x), use_reentrant=True)
            return h.tanh()

    one_line(
        lambda: table_of(Again(), lambda net: net(X).sum(), exponents=True, modules=nn.Linear),
        "exponents=True must not meet a backward pass within another",
    )


class FullyShardedDataParallel(nn.Sequential):
    """Has the name of PyTorch's."""


class FSDPModule:
    """Has the name of PyTorch's."""


class Sharded(FSDPModule, nn.Sequential):
    pass


class FlatParameter(nn.Parameter):
    """Has the name of PyTorch's."""


def flattened():
    net = chain()
    net[0][0].weight = FlatParameter(torch.ones(6, 6))
    return net


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(chain())


def compiled_in_place():
    net = chain()
    net.compile(backend="eager")
    return net


COMPILED = (
    " must not be compiled: hooks do not fire inside torch.compile; attach the original module, "
    "which has the same parameters, and compile after detach"
)
SHARDED = " replaces parameters by flat shards; attach the module before it is wrapped"


@pytest.mark.parametrize(
    "make, line",
    [
        (lambda: torch.compile(chain(), backend="eager"), f"model{COMPILED}"),
        (
            lambda: nn.Sequential(nn.Linear(6, 6), torch.compile(chain(), backend="eager")),
            f"model.1{COMPILED}",
        ),
        (compiled_in_place, f"model{COMPILED}"),
        (
            lambda: nn.DataParallel(chain()),
            "model must not be DataParallel: its replicas are made anew in every pass; "
            "attach model.module, on one device",
        ),
        (
            scripted,
            "model must not be TorchScript, which runs without hooks; attach the original module",
        ),
        (
            lambda: FullyShardedDataParallel(nn.Linear(6, 6)),
            f"model must not be sharded: FullyShardedDataParallel{SHARDED}",
        ),
        (
            lambda: nn.Sequential(Sharded(nn.Linear(6, 6))),
            f"model.0 must not be sharded: FSDPModule{SHARDED}",
        ),
        (
            flattened,
            "parameter 0.0.weight must be whole; got a FlatParameter: attach before sharding",
        ),
        (
            lambda: nn.Sequential(nn.LazyLinear(3)),
            "parameter 0.weight must have a shape; got a lazy one: run one forward pass first",
        ),
        (
            lambda: chain().requires_grad_(False),
            "model must have a parameter that requires a gradient; got none",
        ),
        (lambda: "net", "model must be a torch.nn.Module; got str"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_models_that_are_refused(make, line):
    model = make()
    assert one_line(lambda: flowlab.attach(model)) == line
    assert not watch._ATTACHED


def test_a_sharded_tensor_is_refused(tmp_path):
    tensor = pytest.importorskip("torch.distributed.tensor")
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        net = tensor.distribute_module(nn.Sequential(nn.Linear(6, 6)), mesh)
        line = "parameter 0.weight must be whole; got a DTensor: attach before sharding"
        assert one_line(lambda: flowlab.attach(net)) == line
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiling_what_is_attached(backend):
    net = chain()
    with pytest.raises(InputError) as refused, flowlab.attach(net):
        torch.compile(net, backend=backend)(X).sum().backward()
    assert str(refused.value) == (
        "model must not be called from compiled code while it is attached: hooks do not fire "
        "inside torch.compile; call the original module, and compile after detach"
    )
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "options, line",
    [
        ({"every": 0}, "every must be at least 1; got 0"),
        ({"every": "2"}, "every must be a whole number; got '2'"),
        ({"seed": 1.5}, "seed must be a whole number; got 1.5"),
        ({"scale": 0}, "scale must be a finite number above 0; got 0"),
        ({"scale": math.nan}, "scale must be a finite number above 0; got nan"),
        ({"scale": "2"}, "scale must be a number; got str"),
        ({"settings": {"dept": 3}}, "setting must be a known name; got dept; did you mean depth?"),
        ({"settings": {"depth": "x"}}, "depth must be of type Int64; got 'x'"),
        ({"settings": ["depth"]}, "settings must be a dictionary; got list"),
        ({"modules": "0.2"}, "; did you mean 0.1?"),
        ({"modules": nn.Conv2d}, "modules must be in the model; got Conv2d, which is not"),
        ({"modules": 3}, "modules must be patterns or classes; got 3"),
        ({"modules": []}, "modules must name at least one pattern or class; got none"),
        (
            {"modules": lambda path, module: False},
            "modules must choose at least one module; got a function that chose none",
        ),
    ],
)
def test_bad_arguments(options, line):
    net = chain()
    assert line in one_line(lambda: flowlab.attach(net, **options))
    assert hooks_of(net) == 0 and not watch._ATTACHED.intersection(net.modules())


def test_without_pytorch():
    code = (
        "import importlib.util as u, sys; find = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'torch' else find(name, *more)\n"
        "import flowlab\n"
        "try: flowlab.attach(None)\n"
        "except flowlab.InputError as error: print(error)\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ("PyTorch must be installed for this: pip install 'flowlab[torch]'\n")
