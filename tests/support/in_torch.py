"""The rows of a table as PyTorch has them: norms of a laboratory's network, taken by autograd."""

import math
from functools import partial

import numpy as np
import torch

RENAMED = {"weight": "dW", "bias": "db"}
OF_NORMALIZATIONS = {"weight": "dgain", "bias": "dbias"}


def norms(net, batch):
    """{(layer, op, time or None): {column: log10}} of a network of ``to_torch``.

    Columns are those of the table without ``_log10_norm``; rows are what has a parameter, and
    attention.
    """
    recurrent = [module for module in net.modules() if hasattr(module, "rnn")]
    for module in recurrent:
        module.rnn = Stepped(module.rnn)
    modules = {path: m for path, m in net.named_modules() if path and ".rnn" not in path}
    taps, hooks = {}, []
    for path, module in modules.items():
        hooks += tap(taps, path, module)
    net.zero_grad()
    x, y, loss = batch
    loss(net(x), y).backward()
    rows = {}
    for path, module in modules.items():
        layer, *inner = path.removeprefix("layer_").split(".")
        if inner:
            rows |= {(int(layer), *key): row for key, row in _rows(inner[-1], module, taps[path])}
    for module in recurrent:
        module.rnn = module.rnn.rnn
    for hook in hooks:
        hook.remove()
    for number, block in enumerate(net, 1):
        last = [key for key in rows if key[0] == number and key[2] is None][-1]
        output = taps[f"layer_{number}"][1]
        rows[last]["activation"] = log10_norm(output)
        if any(name.startswith("residual") for name, _ in block.named_children()):
            rows[last]["delta"] = log10_norm(output.grad)
    return rows


def _rows(op, module, tapped):
    """((op, time), row) of an operation, whose input and output are ``tapped``."""
    x, y = tapped
    dX = {"dX": log10_norm(x.grad)}
    if isinstance(getattr(module, "rnn", None), Stepped):
        yield from module.rnn.rows(op, dX)
        return
    own = dict(module.named_parameters(recurse=False))
    if not (own or op == "attention"):
        return
    names = OF_NORMALIZATIONS if "norm" in op else RENAMED
    row = dX | {names[name]: log10_norm(p.grad) for name, p in own.items()}
    yield (op, None), row | ({"delta": log10_norm(y.grad)} if "dW" in row else {})


def log10_norm(tensor):
    """log10 of the Frobenius norm; nothing is zero."""
    if tensor is None:
        return -math.inf
    with np.errstate(divide="ignore"):
        return float(np.log10(np.linalg.norm(tensor.detach().double().numpy())))


def tap(taps, path, module):
    """Hooks that leave what a module receives and returns under its path, with gradients.

    It receives a copy, whose gradient is what comes back through this module alone.
    """

    def before(module, given):
        (x,) = given
        x = x.clone() if x.requires_grad else x.detach().clone().requires_grad_()
        x.retain_grad()
        taps[path] = [x]
        return (x,)

    def after(module, given, y):
        y.retain_grad()
        taps[path].append(y)

    return module.register_forward_pre_hook(before), module.register_forward_hook(after)


class Stepped(torch.nn.Module):
    """A recurrence of PyTorch's, step by step, in place of the whole.

    A step has zeros as further inputs, each of which enters one preactivation by itself, so that
    they receive its cotangent.
    """

    def __init__(self, rnn):
        super().__init__()
        self.rnn, self.steps = rnn, []
        mode = getattr(rnn, "mode", "").lower()
        self.step = partial(_step, getattr(torch, mode)) if mode else _linear_step
        self.states = 2 if mode == "lstm" else 1

    def forward(self, x, state=None):
        rnn, n = self.rnn, len(x)
        gates, h = rnn.weight_hh_l0.shape
        W_ih = torch.cat([rnn.weight_ih_l0, torch.eye(gates, dtype=x.dtype)], 1)
        weights = [W_ih, rnn.weight_hh_l0, rnn.bias_ih_l0, rnn.bias_hh_l0]
        if state is None:
            state = (torch.zeros(1, n, h, dtype=x.dtype),) * self.states
            state = state if self.states > 1 else state[0]
        found = []
        for now in x.unbind(1):
            further = torch.zeros(n, gates, dtype=x.dtype, requires_grad=True)
            y, state = self.step(torch.cat([now, further], 1)[:, None], state, weights)
            y.retain_grad()
            on = state[0] if self.states > 1 else state  # to the next step
            on.retain_grad()
            self.steps.append((further, y, on))
            found.append(y)
        return torch.cat(found, 1), state

    def rows(self, op, dX):
        """Of both maps, then of the state at each step."""
        whole = {"delta": log10_norm(torch.stack([further.grad for further, _, _ in self.steps]))}
        for suffix, more in (("ih", dX), ("hh", {})):
            own = {
                column: log10_norm(getattr(self.rnn, f"{name}_{suffix}_l0").grad)
                for name, column in RENAMED.items()
            }
            yield (f"{op}_{suffix}", None), whole | own | more
        for time, (further, y, on) in enumerate(self.steps, 1):
            both = y.grad if on.grad is None else y.grad + on.grad.reshape(y.shape)
            row = {"activation": y, "delta": further.grad, "dh": both}
            yield ("state", time), {column: log10_norm(t) for column, t in row.items()}


def _step(function, x, state, weights):
    # Biases, one layer, no dropout, training, one direction, the batch first.
    y, *state = function(x, state, weights, True, 1, 0.0, True, False, True)
    return y, tuple(state) if len(state) > 1 else state[0]


def _linear_step(x, state, weights):
    W_ih, W_hh, b_ih, b_hh = weights
    h = x[:, 0] @ W_ih.T + b_ih + state.reshape(len(x), -1) @ W_hh.T + b_hh
    return h[:, None].clone(), h.clone()
