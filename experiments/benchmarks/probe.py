"""The whole probe against PyTorch and JAX: weights drawn, forward, backward, every layer's norms.

Each form does the same work for an ensemble of plain ReLU nets under He with Gaussian inputs and a
Gaussian cotangent: per layer and net the norms of h, δ, dX, dW and db, float32, on the same number
of threads. Peers are written in every way a skilled user might; the fastest of each counts.
"""

import importlib.util
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

import flowlab
from experiments.benchmarks.timing import race
from flowlab.kernel import kernel

OURS, FLOOR = "flowlab", "matrix products alone"


def probe(
    widths=(64, 128, 256, 512, 1024), seeds=16, depth=50, batch=128, rounds=7, threads=2, compiled=1
) -> pd.DataFrame:
    """Time ratios (peer time / flowlab time) for each width and form; see :func:`race`."""
    tables = []
    for width in widths:
        forms = {OURS: _flowlab(width, seeds, depth, batch, threads)}
        forms[FLOOR] = _floor(width, seeds, depth, batch, threads)
        if importlib.util.find_spec("torch"):
            forms |= _torch(width, seeds, depth, batch, threads, compiled)
        if importlib.util.find_spec("jax"):
            forms |= _jax(width, seeds, depth, batch)
        tables.append(race(forms, rounds, OURS).assign(width=width, seeds=seeds, depth=depth))
    return pd.concat(tables, ignore_index=True)


def _flowlab(width, seeds, depth, batch, threads):
    settings = flowlab.make(
        init="he",
        data="gaussian",
        upstream="gaussian",
        **{"width": width, "seeds": seeds, "depth": depth, "batch_size": batch},
        threads=threads,
    )
    return lambda: flowlab.measure(settings)


@kernel("(n,i),(i,o),(n,o)->(n,o),(n,i),(i,o)")
def three_products(x, W, dy, y, dx, dW):
    np.dot(x, W, y)
    np.dot(dy, W.T, dx)
    np.dot(x.T, dy, dW)


def _floor(width, seeds, depth, batch, threads):
    """Forward, dX and dW products on warm operands and nothing else."""
    rng = np.random.default_rng(0)
    parts = [len(part) for part in np.array_split(np.arange(seeds), min(seeds, 2 * threads))]

    def arrays(n):
        shapes = [(n, batch, width), (n, width, width), (n, batch, width)]
        reads = [rng.standard_normal(shape, np.float32) for shape in shapes]
        return reads + [np.empty_like(reads[k]) for k in (0, 2, 1)]

    operands = [arrays(n) for n in parts]

    def part(own):
        for _ in range(depth):
            three_products.run(*own)

    def run():
        with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
            list(pool.map(part, operands))

    return run


def _torch(width, seeds, depth, batch, threads, compiled) -> dict:
    import torch

    torch.set_num_threads(threads)
    deviation = math.sqrt(2 / width)

    def norms(*tensors):
        return [t.flatten(-2).norm(dim=-1) if t.dim() > 1 else t.norm() for t in tensors]

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList(
                torch.nn.utils.skip_init(torch.nn.Linear, width, width) for _ in range(depth)
            )
            for layer in self.layers:
                torch.nn.init.normal_(layer.weight, std=deviation)
                torch.nn.init.zeros_(layer.bias)

    def hooks():
        """Full backward hooks on nn.Linear, one net after another."""
        out = []
        for _ in range(seeds):
            net, rows = Net(), []
            for layer in net.layers:
                layer.register_full_backward_hook(
                    lambda _, dx, dy, rows=rows: rows.append(norms(dy[0], dx[0]))
                )
            h, sizes = torch.randn(batch, width, requires_grad=True), []
            for index, layer in enumerate(net.layers):
                z = layer(h)
                h = torch.relu(z) if index < depth - 1 else z
                sizes.append(h.detach().norm())
            h.backward(torch.randn(batch, width))
            grads = [norms(layer.weight.grad, layer.bias.grad[None]) for layer in net.layers]
            out.append((rows, sizes, grads))
        return out

    def autograd():
        """torch.autograd.grad over kept preactivations and inputs, one net after another."""
        out = []
        for _ in range(seeds):
            W = [(torch.randn(width, width) * deviation).requires_grad_() for _ in range(depth)]
            b = [torch.zeros(width, requires_grad=True) for _ in range(depth)]
            h, zs, hs = torch.randn(batch, width, requires_grad=True), [], []
            for index in range(depth):
                hs.append(h)
                z = torch.addmm(b[index], h, W[index])
                zs.append(z)
                h = torch.relu(z) if index < depth - 1 else z
            grads = torch.autograd.grad(z, [*zs, *hs, *W, *b], torch.randn(batch, width))
            sizes = torch._foreach_norm([x.detach() for x in [*hs[1:], h]])
            out.append((torch._foreach_norm(grads), sizes))
        return out

    def backward_by_hand(W, x, d):
        b, zs, hs, out = x.new_zeros(len(x), 1, width), [], [x], []
        for index in range(depth):
            zs.append(torch.baddbmm(b, hs[-1], W[index]))
            hs.append(torch.relu(zs[-1]) if index < depth - 1 else zs[-1])
        for index in reversed(range(depth)):
            dx = torch.bmm(d, W[index].transpose(1, 2))
            dW = torch.bmm(hs[index].transpose(1, 2), d)
            out.append(norms(hs[index + 1], d, dx, dW, d.sum(1, keepdim=True)))
            d = torch.where(zs[index - 1] > 0, dx, 0.0) if index else dx
        return out

    def draw():
        W = [torch.randn(seeds, width, width).mul_(deviation) for _ in range(depth)]
        return W, torch.randn(seeds, batch, width), torch.randn(seeds, batch, width)

    @torch.no_grad()
    def batched():
        """The ensemble batched with baddbmm and a backward pass written by hand."""
        return backward_by_hand(*draw())

    def batched_autograd():
        """The ensemble batched, gradients by autograd over kept preactivations."""
        W, x, d = draw()
        W = [w.requires_grad_() for w in W]
        b = [torch.zeros(seeds, 1, width, requires_grad=True) for _ in range(depth)]
        h, zs, hs = x.requires_grad_(), [], []
        for index in range(depth):
            hs.append(h)
            zs.append(torch.baddbmm(b[index], h, W[index]))
            h = torch.relu(zs[-1]) if index < depth - 1 else zs[-1]
        grads = torch.autograd.grad(h, [*zs, *hs, *W, *b], d)
        return [g.flatten(1).norm(dim=1) for g in [*grads, *hs[1:], h.detach()]]

    forms = {
        "torch hooks": hooks,
        "torch autograd.grad": autograd,
        "torch batched autograd": batched_autograd,
        "torch batched by hand": batched,
    }
    if compiled:
        fast = torch.compile(backward_by_hand, dynamic=False)

        @torch.no_grad()
        def with_compile():
            return fast(*draw())

        try:
            with_compile()
            forms["torch.compile"] = with_compile
        except Exception as error:  # any failure of the compiler's own tool chain
            print(f"torch.compile left out: {str(error).splitlines()[0][:100]}")
    return forms


def _jax(width, seeds, depth, batch) -> dict:
    import jax
    import jax.numpy as jnp

    deviation = math.sqrt(2 / width)

    def norm(x):
        return jnp.sqrt(jnp.sum(x * x))

    def unrolled(key):
        kw, kx, kd = jax.random.split(key, 3)
        W = jax.random.normal(kw, (depth, width, width)) * deviation
        h, d = (jax.random.normal(k, (batch, width)) for k in (kx, kd))
        hs, masks = [h], []
        for index in range(depth):
            z = hs[-1] @ W[index]
            masks.append(z > 0)
            hs.append(jnp.where(masks[-1], z, 0) if index < depth - 1 else z)
        out = []
        for index in reversed(range(depth)):
            dx, dW = d @ W[index].T, hs[index].T @ d
            out.append([norm(a) for a in (hs[index + 1], d, dx, dW, d.sum(0))])
            d = jnp.where(masks[index - 1], dx, 0) if index else dx
        return jnp.array(out)

    def scanned(key):
        kw, kx, kd = jax.random.split(key, 3)
        W = jax.random.normal(kw, (depth, width, width)) * deviation
        x, d = (jax.random.normal(k, (batch, width)) for k in (kx, kd))

        def forward(h, w):
            y = jnp.maximum(h @ w, 0)
            return y, (h, y)

        _, (hs, ys) = jax.lax.scan(forward, x, W)

        def backward(dy, layer):
            w, h, y = layer
            delta = jnp.where(y > 0, dy, 0)
            dx, dW = delta @ w.T, h.T @ delta
            return dx, jnp.stack([norm(a) for a in (y, delta, dx, dW, delta.sum(0))])

        return jax.lax.scan(backward, d, (W, hs, ys), reverse=True)[1]

    def ensemble(function):
        compiled = jax.jit(jax.vmap(function))
        keys = jax.random.split(jax.random.key(0), seeds)
        return lambda: compiled(keys).block_until_ready()

    def one_by_one(function):
        compiled = jax.jit(function)
        keys = list(jax.random.split(jax.random.key(0), seeds))
        return lambda: [compiled(key).block_until_ready() for key in keys]

    return {
        "jax jit, net by net": one_by_one(unrolled),
        "jax vmap": ensemble(unrolled),
        "jax vmap of scan": ensemble(scanned),
        "jax scan, net by net": one_by_one(scanned),
    }


def report(table: pd.DataFrame) -> str:
    """The ratios in words: the fastest form of each peer, and the share of the floor."""
    lines = []
    for width, rows in table.groupby("width"):
        rows = rows.set_index("form")
        share = rows.loc[FLOOR, "ratio"]
        text = f"width {width}: {share:.0%} of the time is matrix products"
        for peer in ("torch", "jax"):
            own = rows[rows.index.str.startswith(peer)]
            if len(own):
                best = own.loc[own["ratio"].idxmin()]
                text += (
                    f"; {best['ratio']:.2f}x [{best['ratio_low']:.2f}, {best['ratio_high']:.2f}]"
                    f" faster than {best.name}"
                )
        lines.append(text)
    return "\n".join(lines)
