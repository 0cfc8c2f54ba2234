"""Convolution: the flipped kernel S9, what padding loses, and its exact isometry A11."""

import numpy as np

from flowlab.claims import compare
from flowlab.claims.claim import FAILS, HOLDS, claim
from flowlab.claims.trial import square
from flowlab.layer import Workspace
from flowlab.layers import Conv2d

CHANNELS = 4
HEIGHT, WIDTH = 7, 6
# Kernel size, stride, padding, dilation, groups, padding mode.
VARIANTS = (
    *((1, 1, 0, 1, 1, "zeros"), (3, 1, 0, 1, 1, "zeros"), (3, 1, 1, 1, 1, "zeros")),
    *((2, 2, 1, 1, 1, "zeros"), (3, 2, 2, 2, 1, "zeros"), (3, 3, 1, 1, 2, "zeros")),
    *((3, 1, 1, 1, 1, "circular"), (3, 1, 2, 2, 2, "circular"), (5, 2, 2, 1, 1, "circular")),
)


def flipped(W: np.ndarray, groups: int) -> np.ndarray:
    """Kernels (seeds, o, c / groups, k, k) turned by 180°, in- and outputs exchanged."""
    seeds, o, c, *k = W.shape
    exchanged = W.reshape(seeds, groups, o // groups, c, *k).swapaxes(2, 3)
    return exchanged.reshape(seeds, groups * c, o // groups, *k)[..., ::-1, ::-1].copy()


def transposed(layer: Conv2d, kernels: np.ndarray, dy: np.ndarray, mode: str) -> np.ndarray:
    """The convolution that takes ``dy`` to (seeds, n, c, HEIGHT, WIDTH), through a layer's forward.

    ``dy`` is spread by the stride with zeros between, and padded by d(k - 1) - p.
    """
    reach = layer.dilation * (layer.kernel_size - 1)
    lengths = [length + 2 * layer.padding - reach for length in (HEIGHT, WIDTH)]
    spread = np.zeros((*dy.shape[:3], *lengths))
    spread[..., :: layer.stride, :: layer.stride] = dy
    back = Conv2d(
        kernels.shape[1],
        layer.kernel_size,
        padding=reach - layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
        padding_mode=mode,
    )
    parameters = {"W": kernels, "b": np.zeros(kernels.shape[:2])}
    return back.forward(spread, parameters, Workspace(np.nan))[0]


@claim(
    "S9",
    "Convolution's input gradient is a transposed convolution with flipped kernels (with care for "
    "padding).",
    "the text",
)
def flipped_kernels(trial):
    """Every variant against another layer's forward pass; then unflipped, and otherwise padded."""
    right, unflipped, repadded = [], [], []
    for size, stride, padding, dilation, groups, mode in VARIANTS:
        layer = Conv2d(2 * groups, size, stride, padding, dilation, groups, mode)
        shape = (2, CHANNELS, HEIGHT, WIDTH)
        W = trial.parameters(layer, shape)["W"]
        random = trial.random()
        x = random.standard_normal((len(W), *shape))
        dy = random.standard_normal((len(W), *layer.declare(shape).output))
        dx = trial.run(layer, x, {"W": W, "b": np.zeros(W.shape[:2])}, dy).dx

        def off(kernels, mode, dx=dx, layer=layer, dy=dy):
            return np.sqrt(square(dx - transposed(layer, kernels, dy, mode)) / square(dx))

        kernels = flipped(W, groups)
        right.append(off(kernels, mode))
        if size > 1:
            unflipped.append(off(kernels[..., ::-1, ::-1].copy(), mode))
        if mode == "circular":
            repadded.append(off(kernels, "zeros"))
    result = compare.identity("relative difference of dX", right)
    plain, wrong = np.median(unflipped), np.median(repadded)
    return result.finding(
        f"In {len(VARIANTS)} convolutions dX is dY, spread by the stride and padded by d(k − 1) − "
        f"p, convolved with the flipped kernels, to {result.measured:.0e}; with kernels left as "
        f"they are it would be off by {plain:.1f} of its norm. What is padded circularly must be "
        f"so on the way back: with zeros dX would be off by {wrong:.1f}.",
        result.verdict if min(plain, wrong) > 0.1 else FAILS,
    )


@claim(
    "S9-padding",
    "Zero padding loses gradient at the border, the energy map e becoming T e T in each layer with "
    "T_ij = 1[|i − j| ≤ p]/k; circular padding loses none.",
    "second moments of independent weights; Xiao et al. 2018 for circular padding",
)
def lost_at_the_border(trial):
    """E‖dX‖² over its law, for linear stacks with c k² Var(W) = 1 that keep height and width."""
    depth, size, side = 6, 3, 6
    band = np.abs(np.subtract.outer(np.arange(side), np.arange(side))) <= size // 2
    T = np.linalg.matrix_power(band / size, depth)
    parts, kept = {}, {}
    for mode in ("zeros", "circular"):
        layers = [Conv2d(8, size, padding=size // 2, padding_mode=mode) for _ in range(depth)]
        chain, x, parameters, dy = trial.draw(layers, (1, 8, side, side), "lecun", times=4)
        ratio = square(trial.run(chain, x, parameters, dy).dx) / square(dy)
        energy = np.sum(dy**2, axis=(1, 2))
        share = np.sum(T @ energy @ T, axis=(1, 2)) / np.sum(energy, axis=(1, 2))
        law = share if mode == "zeros" else 1.0
        rival = float(np.mean(1 / share if mode == "zeros" else share))
        parts[mode] = compare.mean(f"E‖dX‖² over its law, {mode}", ratio / law, 1.0, against=rival)
        kept[mode] = ratio.mean()
    return compare.worst(parts.values()).finding(
        f"Through {depth} layers of 3 × 3 kernels on {side} × {side} positions zero padding kept "
        f"{kept['zeros']:.2f} of ‖δ‖² (law: {share.mean():.2f}), circular padding "
        f"{kept['circular']:.2f}."
    )


@claim(
    "A11-convolution",
    "Delta-orthogonal convolution with circular padding and stride 1 preserves ‖δ‖ exactly.",
    "Xiao et al. 2018",
)
def delta_orthogonal(trial):
    """Twelve layers in float64, beside as many whose whole kernel is an orthogonal matrix."""
    depth = 12
    layers = [Conv2d(6, 3, padding=1, padding_mode="circular") for _ in range(depth)]
    logs = {}
    for init in ("delta_orthogonal", "orthogonal"):
        chain, x, parameters, dy = trial.draw(layers, (1, 6, 5, 4), init)
        logs[init] = np.log(square(trial.run(chain, x, parameters, dy).dx) / square(dy))
    result = compare.identity(
        "|ln ‖δ_0‖²/‖δ_L‖²|", logs["delta_orthogonal"], depth * compare.ROUNDING
    )
    spread = np.sqrt(np.mean(logs["orthogonal"] ** 2))
    return result.finding(
        f"Through {depth} convolutions ‖δ‖² changed by a factor within {result.measured:.0e} of 1; "
        f"kernels that are orthogonal as matrices do not do that: ln ‖δ_0‖²/‖δ_L‖² was "
        f"{spread:.2f} (rms over {len(dy)} nets).",
        result.verdict if result.verdict != HOLDS or spread > 0.1 else FAILS,
    )
