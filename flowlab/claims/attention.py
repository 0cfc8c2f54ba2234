"""Attention: its exact pullback S10, how the gradient divides, and rank collapse."""

import numpy as np

from flowlab.claims import compare
from flowlab.claims.claim import claim
from flowlab.claims.trial import square
from flowlab.layers import MultiHeadAttention
from flowlab.theory import attention as theory

PATHS = {"Q": "0.0.W", "K": "0.1.W", "V": "0.2.W", "O": "2.W"}
TOKENS, WIDTH = 16, 128


def tokens(random, count: int, cosine: float, shape=(TOKENS, WIDTH)) -> np.ndarray:
    """(count, 1, tokens, width) of r.m.s. 1, with this mean cosine between two tokens."""
    common = random.standard_normal((count, 1, 1, shape[1]))
    x = np.sqrt(cosine) * common + np.sqrt(1 - cosine) * random.standard_normal((count, 1, *shape))
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True))


def attend(trial, layer, x, dy) -> dict[str, np.ndarray]:
    """‖dW‖² of each matrix over d‖dY‖², (seeds,), with weights of variance 1/d."""
    p = trial.parameters(layer, x.shape[1:], "lecun")
    gradients = trial.run(layer, x, p, dy).gradients
    return {name: square(gradients[path]) / (WIDTH * square(dy)) for name, path in PATHS.items()}


def by_transposes(x, W, dy, heads: int):
    """dX and the gradients of Q, K, V, O, each as the product with a transpose, in NumPy.

    x, dy (seeds, tokens, d); W by name, (seeds, d, d). Without biases.
    """

    def split(a):
        return a.reshape(*a.shape[:2], heads, -1).swapaxes(1, 2)

    def merge(a):
        return a.swapaxes(1, 2).reshape(x.shape)

    scale = (x.shape[-1] // heads) ** -0.5
    q, k, v = (split(x @ W[name]) for name in "QKV")
    A = np.exp(scale * q @ k.mT)
    A /= A.sum(axis=-1, keepdims=True)
    dout = split(dy @ W["O"].mT)
    dA = dout @ v.mT
    dS = scale * A * (dA - (dA * A).sum(axis=-1, keepdims=True))
    back = {"Q": merge(dS @ k), "K": merge(dS.mT @ q), "V": merge(A.mT @ dout)}
    gradients = {name: x.mT @ d for name, d in back.items()} | {"O": merge(A @ v).mT @ dy}
    return {name: d @ W[name].mT for name, d in back.items()}, gradients


@claim(
    "S10",
    "Attention uses transposes for query, key, value and output, and redistributes gradients "
    "across them.",
    "the text; Vaswani et al. 2017, eq. 1",
)
def transposes_of_attention(trial):
    """Against every product by hand; dX is the sum of what Q, K and V send back."""
    width, heads = 12, 3
    layer, random = MultiHeadAttention(width, heads), trial.random()
    x, dy = random.standard_normal((2, trial.seeds, 1, 6, width))
    p = trial.parameters(layer, x.shape[1:], "lecun")
    got = trial.run(layer, x, p, dy)
    W = {name: own["W"] for name, own in zip("QKVO", (*p[0], p[2]), strict=True)}
    back, gradients = by_transposes(x[:, 0], W, dy[:, 0], heads)
    pairs = [(got.gradients[PATHS[name]], gradients[name]) for name in PATHS]
    pairs.append((got.dx[:, 0], sum(back.values())))
    errors = [np.sqrt(square(ours - theirs) / square(theirs)) for ours, theirs in pairs]
    result = compare.identity("relative difference of dX and dW", errors)
    sizes = {name: square(d).mean() for name, d in back.items()}
    shown = ", ".join(f"{size / sum(sizes.values()):.0%} {name}" for name, size in sizes.items())
    return result.finding(
        f"dX and the four dW of {heads} heads are products with Aᵀ, Kᵀ, Qᵀ, Vᵀ, Wᵀ and Xᵀ, to "
        f"{result.measured:.0e}. Of what the three paths send back to X ({shown} of the sum of "
        "squares) dX is the sum."
    )


@claim(
    "S10-division",
    "Attention at initialization divides ‖dW‖² among Q, K, V and O as second moments say: equally "
    "between Q and K and between V and O, less to Q and K the more alike tokens are.",
    "second moments of one head; see flowlab.theory.attention",
)
def division(trial):
    """E‖dW‖² over its law for two cosines of tokens; theory leaves out up to a tenth."""
    parts, shares = [], {}
    for cosine in (0.0, 0.5):
        random = trial.random()
        x = tokens(random, trial.seeds, cosine)
        dy = tokens(random, trial.seeds, 0.5)
        got = attend(trial, MultiHeadAttention(WIDTH, 1), x, dy)
        predicted = theory.weight_gradients(cosine, 0.5, TOKENS, WIDTH)
        law = dict(zip(PATHS, vars(predicted).values(), strict=True))
        equal = sum(law.values()) / 4
        for name, values in got.items():
            part = f"‖dW_{name}‖² over its law, cosine {cosine:g}"
            against = equal / law[name]
            parts.append(compare.mean(part, values / law[name], 1.0, 0.0, 0.1, against))
        total = sum(values.mean() for values in got.values())
        shares[cosine] = " : ".join(f"{got[name].mean() / total:.1%}" for name in PATHS)
    return compare.worst(parts).finding(
        f"{TOKENS} tokens of {WIDTH} features divide ‖dW‖² among Q : K : V : O as {shares[0.0]} "
        f"where tokens are orthogonal and as {shares[0.5]} where their cosine is 0.5."
    )


@claim(
    "S10-collapse",
    "As tokens collapse to cosine ρ → 1, ‖dW_Q‖² and ‖dW_K‖² vanish as (1 − ρ)²; those of V and O "
    "stay.",
    "Dong et al. 2021; Noci et al. 2022; the powers from second moments",
)
def collapse(trial):
    """The slope of ln‖dW‖² against ln(1 − ρ), from 1 − ρ = 1e-2 to 1e-4 along one path.

    Beyond the leading power the logits' variance 1 − ρ enters, of which the slope sees
    1e-2/ln 100 times a coefficient of about 3.
    """
    distances, powers = (1e-2, 1e-4), {"Q": 2, "K": 2, "V": 0, "O": 0}
    logs = []
    for distance in distances:
        random = trial.random()
        x = tokens(random, trial.seeds, 1 - distance)
        dy = tokens(random, trial.seeds, 0.5)
        got = attend(trial, MultiHeadAttention(WIDTH, 1), x, dy)
        logs.append({name: np.log(values) for name, values in got.items()})
    span, parts = np.log(distances[0] / distances[1]), {}
    for name, power in powers.items():
        slopes = (logs[0][name] - logs[1][name]) / span
        quantity = f"power of 1 − ρ in ‖dW_{name}‖²"
        parts[name] = compare.mean(quantity, slopes, power, 0.0, 0.01, 2 - power)
    shown = ", ".join(f"{part.measured:.3f} for {name}" for name, part in parts.items())
    return compare.worst(parts.values()).finding(
        f"Between 1 − ρ = {distances[0]:g} and {distances[1]:g} the squared gradient goes as "
        f"1 − ρ to the power {shown}: each tenfold step to rank one costs Q and K two decades of "
        "‖dW‖², V and O none."
    )
