"""The pass of an ensemble of plain ReLU nets in PyTorch, in all ways a skilled user might write it.

A form is called with :class:`Nets`, from which it draws what it passes, and gives the norms of h,
δ, dX, dW and db: for all nets at once or one after another, in lists over layers.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

HOOKS, BY_HAND = "torch hooks", "torch batched by hand"
GRAM, COMPILED, COMPILED_GRAM = "torch batched, Gram", "torch.compile", "torch.compile, Gram"


@dataclass(frozen=True)
class Nets:
    """Nets, their inputs and the cotangents of their outputs, drawn whenever asked for.

    Weights have the deviation ``gain`` over √width: He's by default.
    """

    width: int
    seeds: int
    depth: int
    batch: int
    gain: float = math.sqrt(2)

    def all(self):
        """(W, x, d): W a list of (S, w, w), x and d (S, B, w)."""
        return self._drawn(self.seeds)

    def each(self):
        """The same of one net after another, without the axis of seeds."""
        for _ in range(self.seeds):
            yield self._drawn()

    def _drawn(self, *ensemble):
        import torch

        deviation, square = self.gain / math.sqrt(self.width), (self.width, self.width)
        W = [torch.randn(*ensemble, *square).mul_(deviation) for _ in range(self.depth)]
        return W, *(torch.randn(*ensemble, self.batch, self.width) for _ in range(2))


def forms(gram: bool, compiled: bool) -> dict[str, Callable[[Nets], object]]:
    """Every form by its name, those first that are likely to be the fastest.

    ``gram`` adds those which take ‖dW‖ from Gram matrices, ``compiled`` those under torch.compile.
    """
    found = {
        "torch autograd.grad": autograd,
        BY_HAND: lambda nets: batched(nets, forward, backward),
    }
    if gram:
        found[GRAM] = lambda nets: batched(nets, forward, backward_gram)
    if compiled:
        found[COMPILED] = _compiled(backward)
        if gram:
            found[COMPILED_GRAM] = _compiled(backward_gram)
    found["torch batched autograd"] = batched_autograd
    found[HOOKS] = hooks
    return found


def norms(*tensors):
    """Frobenius norms over the last two axes."""
    return [t.flatten(-2).norm(dim=-1) for t in tensors]


def forward(h, W, b, last: bool):
    """(the layer's output, its norm)."""
    import torch

    z = torch.baddbmm(b, h, W)
    y = z if last else torch.relu(z)
    return y, norms(y)


def _cotangents(y, dy, W, last: bool):
    import torch

    delta = dy if last else torch.where(y > 0, dy, 0.0)
    return delta, torch.bmm(delta, W.transpose(1, 2)), delta.sum(1, keepdim=True)


def backward(h, y, dy, W, last: bool):
    """(dX, norms of δ, dX, dW, db) of the layer that maps h to y."""
    import torch

    delta, dx, db = _cotangents(y, dy, W, last)
    dW = torch.bmm(h.transpose(1, 2), delta)
    return dx, norms(delta, dx, dW, db)


def backward_gram(h, y, dy, W, last: bool):
    """The same, with ‖HᵀD‖² = Σ (HHᵀ)∘(DDᵀ): cheaper where the batch is below the width."""
    import torch

    delta, dx, db = _cotangents(y, dy, W, last)
    grams = (torch.bmm(a, a.transpose(1, 2)) for a in (h, delta))
    dW = torch.mul(*grams).sum((1, 2)).clamp_min(0).sqrt()
    of_delta, of_dx, of_db = norms(delta, dx, db)
    return dx, [of_delta, of_dx, dW, of_db]


def batched(nets: Nets, forward, backward):
    """All nets by batched products, a backward pass written by hand."""
    import torch

    with torch.no_grad():
        return _whole(forward, backward)(*nets.all())


def _whole(forward, backward):
    def run(W, x, dy):
        depth, b = len(W), x.new_zeros(len(x), 1, x.shape[2])
        hs, sizes, found = [x], [], []
        for index in range(depth):
            h, size = forward(hs[-1], W[index], b, index == depth - 1)
            hs.append(h)
            sizes.append(size)
        for index in reversed(range(depth)):
            dy, own = backward(hs[index], hs[index + 1], dy, W[index], index == depth - 1)
            found.append([*sizes[index], *own])
        return found[::-1]

    return run


def _compiled(backward):
    """One graph of the whole net. Its layers are regions that are compiled once for all."""
    import torch

    region = torch.compiler.nested_compile_region
    fast = torch.compile(_whole(region(forward), region(backward)), dynamic=False)

    def run(nets):
        with torch.no_grad():
            return fast(*nets.all())

    return run


def batched_autograd(nets: Nets):
    """All nets by batched products, gradients by autograd over kept preactivations."""
    import torch

    W, x, d = nets.all()
    W = [w.requires_grad_() for w in W]
    b = [x.new_zeros(len(x), 1, x.shape[2], requires_grad=True) for _ in W]
    h, zs, hs = x.requires_grad_(), [], []
    for index in range(len(W)):
        hs.append(h)
        zs.append(torch.baddbmm(b[index], h, W[index]))
        h = torch.relu(zs[-1]) if index < len(W) - 1 else zs[-1]
    grads = torch.autograd.grad(h, [*zs, *hs, *W, *b], d)
    sizes = [g.flatten(1).norm(dim=1) for g in (*[h.detach() for h in [*hs[1:], h]], *grads)]
    return _by_layer(sizes, len(W))


def hooks(nets: Nets):
    """Full backward hooks on nn.Linear, one net after another."""
    import torch

    out = []
    for W, x, d in nets.each():
        layers, rows = [], []
        for w in W:
            layer = torch.nn.utils.skip_init(torch.nn.Linear, *w.shape)
            layer.weight = torch.nn.Parameter(w.T)
            torch.nn.init.zeros_(layer.bias)
            layer.register_full_backward_hook(
                lambda _, dx, dy, rows=rows: rows.append(norms(dy[0], dx[0]))
            )
            layers.append(layer)
        h, sizes = x.requires_grad_(), []
        for index, layer in enumerate(layers):
            z = layer(h)
            h = torch.relu(z) if index < len(layers) - 1 else z
            sizes.append(h.detach().norm())
        h.backward(d)
        grads = [norms(layer.weight.grad, layer.bias.grad[None]) for layer in layers]
        parts = zip(sizes, rows[::-1], grads, strict=True)
        out.append([[size, *row, *grad] for size, row, grad in parts])
    return out


def autograd(nets: Nets):
    """torch.autograd.grad over kept preactivations and inputs, one net after another."""
    import torch

    out = []
    for W, x, d in nets.each():
        W = [w.requires_grad_() for w in W]
        b = [x.new_zeros(x.shape[1], requires_grad=True) for _ in W]
        h, zs, hs = x.requires_grad_(), [], []
        for index in range(len(W)):
            hs.append(h)
            zs.append(torch.addmm(b[index], h, W[index]))
            h = torch.relu(zs[-1]) if index < len(W) - 1 else zs[-1]
        grads = torch._foreach_norm(torch.autograd.grad(h, [*zs, *hs, *W, *b], d))
        sizes = [*torch._foreach_norm([h.detach() for h in [*hs[1:], h]]), *grads]
        out.append(_by_layer(sizes, len(W)))
    return out


def _by_layer(sizes, depth):
    parts = (sizes[k : k + depth] for k in range(0, len(sizes), depth))
    return list(zip(*parts, strict=True))
