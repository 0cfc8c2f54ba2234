"""What steps do: the invariants A4 and O10, and the laws O1 to O5 of learning rates and batches."""

from itertools import pairwise
from math import log2, sqrt

import numpy as np

from flowlab.claims import compare
from flowlab.claims.claim import claim
from flowlab.claims.trial import inner, square
from flowlab.layer import Nest, Parameter, leaves, map_leaves
from flowlab.layers import Activation, Linear
from flowlab.optimizers import TrainingSettings
from flowlab.training.curvature import from_rows, in_rows
from flowlab.training.sharpness import hessian_product
from flowlab.training.updates import Updater

EXAMPLES, FEATURES, WIDTHS = 8, 5, (7, 6, 4)
SGD = TrainingSettings("sgd")


class Descent:
    """Parameters, arrays (S, ...) in a nest, that take the steps of the laboratory's optimizers."""

    def __init__(self, parameters: Nest, declared: Nest, training=SGD, batch_size: int = 1):
        self.held = {0: map_leaves(lambda a: a[:, None].copy(), parameters)}
        self.updater = Updater(training, self.held, {0: declared}, batch_size)
        self.exponents = {0: (np.zeros((len(in_rows(self.held)), 1), np.int64),) * 2}

    def step(self, gradients: dict[str, np.ndarray], rate: float) -> None:
        """Down these ``gradients``, arrays (S, ...) by path."""
        gradients = {path: g[:, None].copy() for path, g in gradients.items()}
        self.updater({0: gradients}, self.exponents, rate)

    @property
    def parameters(self) -> Nest:
        """As they are now."""
        return map_leaves(lambda a: a[:, 0].copy(), self.held[0])


class _Regression:
    """Nets under the loss ‖f(x) - t‖²/2n over n examples, inputs and targets standard normal."""

    def __init__(self, trial, phi: str):
        layers = [Linear(WIDTHS[0])]
        for width in WIDTHS[1:]:
            layers += [Activation(phi), Linear(width)]
        self.trial = trial
        self.chain, self.x, self.start, self.target = trial.draw(layers, (EXAMPLES, FEATURES))
        self.declared = self.chain.declare(self.x.shape[1:]).parameters

    def gradients(self, parameters: Nest) -> dict[str, np.ndarray]:
        y = self.trial.run(self.chain, self.x, parameters, np.zeros_like(self.target)).y
        dy = (y - self.target) / EXAMPLES
        return self.trial.run(self.chain, self.x, parameters, dy).gradients

    def rows(self, point: np.ndarray) -> np.ndarray:
        """The gradient (S, P) at a point (S, P)."""
        like = {0: map_leaves(lambda a: a[:, None], self.start)}
        nest = map_leaves(lambda a: a[:, 0].copy(), from_rows(point, like)[0])
        return in_rows({0: {path: g[:, None] for path, g in self.gradients(nest).items()}})

    def descent(self) -> Descent:
        return Descent(self.start, self.declared)


@claim(
    "A4",
    "Continuous-time descent of a ReLU net conserves ‖W_l‖² + ‖b_l‖² − ‖W_{l+1}‖²; gradient "
    "descent drifts as O(η) at fixed ηT.",
    "Du et al. 2018, without biases; with them, derived here",
)
def conserved(trial):
    """⟨W_l, dW_l⟩ + ⟨b_l, db_l⟩ = ⟨δ_l, z_l⟩ since z_l = h_{l−1} W_l + b_l. Where φ(z) = φ'(z) z
    this is ⟨∂L/∂h_l, h_l⟩ = ⟨W_{l+1}, dW_{l+1}⟩, whatever b_{l+1}. So a step of gradient descent
    changes the difference by η²(‖dW_l‖² + ‖db_l‖² − ‖dW_{l+1}‖²) exactly, and T/η steps by O(η).
    """
    problem, drifts, errors = _Regression(trial, "relu"), [], []
    for rate, steps in ((0.004, 50), (0.002, 100)):
        descent = problem.descent()
        first = before = _differences(dict(leaves(problem.start)))
        for _ in range(steps):
            gradients = problem.gradients(descent.parameters)
            descent.step(gradients, rate)
            after = _differences(dict(leaves(descent.parameters)))
            law = rate**2 * _differences(gradients)
            errors.append(compare.relative(after - before, law, _sizes(descent.parameters)))
            before = after
        drifts.append(np.sqrt(square(after - first)))
    exact = compare.identity("change of the difference in a step, less η² of the gradients", errors)
    order = compare.mean(
        "order of the drift in η", np.log2(drifts[0] / drifts[1]), 1.0, allowance=0.05, against=0.0
    )
    return order.finding(
        f"Over a fixed time ηT the drift of ‖W_l‖² + ‖b_l‖² − ‖W_{{l+1}}‖² goes as η to the power "
        f"{order.measured:.3f}; each step changes it by η² times the same difference of gradients, "
        f"to {exact.measured:.0e} of the weights' squares.",
        compare.worst((order, exact)).verdict,
    )


def _differences(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """‖W_l‖² + ‖b_l‖² − ‖W_{l+1}‖² of every pair of layers, (S, pairs)."""
    squares = {path: square(array) for path, array in arrays.items()}
    layers = range(0, 2 * len(WIDTHS), 2)
    pairs = [squares[f"{a}.W"] + squares[f"{a}.b"] - squares[f"{b}.W"] for a, b in pairwise(layers)]
    return np.stack(pairs, axis=1)


def _sizes(parameters: Nest) -> np.ndarray:
    return sum(square(array) for _, array in leaves(parameters))[:, None]


@claim(
    "O1",
    "One step of kη and k steps of η differ by η²k(k − 1)/2·Hg: the linear rule is first order.",
    "Goyal et al. 2017, section 2.1, for the rule; the second order from g_j ≈ g − jηHg",
)
def linear_rule(trial):
    """Tanh nets, the same batch in every step; the third order is below 1 % of the second."""
    problem, k, rate = _Regression(trial, "tanh"), 4, 2e-4
    one, several = problem.descent(), problem.descent()
    one.step(problem.gradients(problem.start), k * rate)
    for _ in range(k):
        several.step(problem.gradients(several.parameters), rate)
    start = problem.descent().held
    g = problem.rows(in_rows(start))
    law = -(rate**2) * k * (k - 1) / 2 * hessian_product(problem.rows, in_rows(start), g)
    apart = in_rows(one.held) - in_rows(several.held)
    # Along the law, so that direction counts too.
    found = inner(apart, law) / square(law)
    beside = np.sqrt(square(apart - law) / square(law))
    result = compare.mean(
        *("difference over η²k(k − 1)/2·Hg", found, 1.0),
        **{"allowance": 0.01, "against": k / (k - 1)},
    )
    direction = compare.identity("what is left of the difference, in its size", beside, 0.02)
    return result.finding(
        f"One step of {k}η and {k} steps of η differ by {result.measured:.4f} times "
        f"η²k(k − 1)/2·Hg at η = {rate}; at most {direction.measured:.1%} of the difference is "
        "anything else.",
        compare.worst((result, direction)).verdict,
    )


@claim(
    "O2",
    "On a quadratic of curvature h SGD has the stationary variance ησ²/(Bh(2 − ηh)).",
    "w ← (1 − ηh)w − ηξ with var ξ = σ²/B",
)
def stationary(trial):
    """At ηh = 1/2, where the continuous limit ησ²/2Bh is 3/4 of it."""
    rate, curvature, coordinates = 0.5, 1.0, 1024
    random, parts = trial.random(), []
    for size in (1, 4):
        descent = _quadratic(trial.seeds, coordinates)
        for _ in range(40):  # (1 - ηh)^80 is nothing
            w = descent.parameters["W"]
            noise = random.standard_normal((size, *w.shape)).mean(axis=0)
            descent.step({"W": curvature * w + noise}, rate)
        law = rate / (size * curvature * (2 - rate * curvature))
        measured = square(descent.parameters["W"]) / coordinates / law
        parts.append(
            compare.mean(
                f"variance over ησ²/(Bh(2 − ηh)), B = {size}",
                *(measured, 1.0, sqrt(2 / coordinates)),
                against=(2 - rate * curvature) / 2,
            )
        )
    return compare.worst(parts).finding(
        f"At ηh = {rate * curvature:g} the variance of SGD on a quadratic is "
        f"{parts[0].measured:.3f} times ησ²/(Bh(2 − ηh)) for B = 1 and {parts[1].measured:.3f} "
        "times for B = 4."
    )


def _quadratic(seeds: int, coordinates: int, training=SGD, batch_size: int = 1) -> Descent:
    """Weights at the minimum of a quadratic."""
    declared = {"W": Parameter((coordinates,))}
    return Descent({"W": np.zeros((seeds, coordinates))}, declared, training, batch_size)


@claim(
    "O3",
    "Scaling the learning rate by √B keeps the covariance η²Σ/B of one step.",
    "Krizhevsky 2014; Hoffer et al. 2017",
)
def square_root_rule(trial):
    """Linear regression on normal inputs, residuals Aᵀx + ξ: trΣ = (d + 1)‖A‖² + d·o, by Isserlis.

    Without the rule the trace would be divided by k, under the linear rule multiplied.
    """
    layer, out, times, base = Linear(3), 3, 8, 4
    parts, random = {}, trial.random()
    for size in (base, 4 * base, 16 * base):
        training = TrainingSettings("sgd", rule="sqrt", rule_batch=base)
        rate = training.rate(1, 1, size)
        p = trial.parameters(layer, (size, FEATURES), "xavier", times)
        x = random.standard_normal((len(p["W"]), size, FEATURES))
        noise = random.standard_normal((len(x), size, out))
        got = trial.run(layer, x, p, (x @ p["W"] + noise) / size)
        descent = Descent(p, layer.declare((size, FEATURES)).parameters, training, size)
        descent.step(got.gradients, rate)
        step = descent.parameters["W"] - p["W"]
        trace = (FEATURES + 1) * square(p["W"]) + FEATURES * out
        law = training.lr**2 * trace / base
        parts[size] = compare.mean(
            f"trace of a step's covariance over that at B = {base}, B = {size}",
            square(step + rate * p["W"]) / law,
            *(1.0,),
            against=base / size if size > base else np.nan,
        )
    found = ", ".join(f"{part.measured:.3f} at B = {size}" for size, part in parts.items())
    return compare.worst(parts.values()).finding(
        f"Under η ∝ √B the covariance of a step, over its law at B = {base}, has the trace {found}."
    )


@claim(
    "O4",
    "Adam under η√κ, 1 − β → κ(1 − β), ε/√κ moves alike over the same examples at κ times the "
    "batch.",
    "Malladi et al. 2022",
)
def adam_rule(trial):
    """Weights on a quadratic of curvature 1 under noise of sd s = σ/√B in the gradient.

    With √v̂ = s Adam is momentum descent of rate a = η/(s + ε), whose stationary variance is, of an
    autoregression of order 2, as²/(2 - a(1 - β1)/(1 + β1)): so far η and ε are tried. How far
    weights get in a time that is short for them but long for the momentum tries β1; β2 would need
    noise that changes. v̂ also fluctuates and takes in the signal, and the rule is a limit of small
    1 - β1: up to 2 % here.
    """
    coordinates, base, kappa, steps, window = 64, 16, 4, 2400, 200
    training = TrainingSettings(
        "adam", lr=0.002, beta1=0.99, eps=1 / sqrt(base), rule="sde", rule_batch=base
    )
    random, variances, ways = trial.random(), [], []
    for k in (1, kappa):
        size, count = k * base, steps // k
        s, (beta1, _, eps) = 1 / sqrt(size), training.adam_numbers(size)
        rate = training.rate(1, count, size)
        descent, path = _quadratic(trial.seeds, coordinates, training, size), []
        for _ in range(count):
            w = descent.parameters["W"]
            path.append(w)
            descent.step({"W": w + s * random.standard_normal(w.shape)}, rate)
        settled = np.stack(path[count // 2 :: window // k // 2])
        a = rate / (s + eps)
        law = a * s**2 / (2 - a * (1 - beta1) / (1 + beta1))
        variances.append(
            compare.mean(
                f"stationary variance over its law, B = {size}",
                *((settled**2).mean(axis=(0, 2)) / law, 1.0),
                allowance=0.02,
            )
        )
        ways.append(((settled[2:] - settled[:-2]) ** 2).mean(axis=(0, 2)))
    way = compare.mean(
        "log2 of the squared way over the same examples, over that at B = 16",
        *(np.log2(ways[1] / ways[0]), 0.0),
        **{"allowance": 0.03, "against": -1.0},
    )
    return compare.worst((*variances, way)).finding(
        f"On a quadratic with noisy gradients Adam's weights have {variances[0].measured:.3f} "
        f"times the variance of their law at B = {base} and {variances[1].measured:.3f} times at "
        f"B = {kappa * base}, where over the same {window * base} examples they move "
        f"{2 ** (way.measured / 2):.3f} times as far."
    )


@claim(
    "O5",
    "The learning rate that lowers the loss most in a step is ε_max/(1 + B_noise/B).",
    "McCandlish et al. 2018, with B_noise = tr(HΣ)/GᵀHG",
)
def noise_rule(trial):
    """Quadratics with curvatures from 1/4 to 4 and noise of its own in each coordinate.

    E L(w − εg) = L − ε E⟨G, g⟩ + ε² E gᵀHg/2 is least at E⟨G, g⟩/E gᵀHg; batches of 1 to 256.
    """
    coordinates, base, draws = 24, 16, 128
    random = trial.random()
    h = 2.0 ** random.uniform(-2, 2, (trial.seeds, coordinates))
    sd = 3 * 2.0 ** random.uniform(-2, 2, h.shape)
    G = random.standard_normal(h.shape)
    noise_scale = inner(h, sd**2) / inner(h, G**2)
    best, parts = {}, {}
    for size in (base, 1, 256):
        along, curved = np.zeros(trial.seeds), np.zeros(trial.seeds)
        for _ in range(draws):
            g = G + sd * random.standard_normal(h.shape) / sqrt(size)
            along += inner(G, g)
            curved += inner(g, hessian_product(lambda w: h * w, np.zeros_like(h), g))
        best[size] = along / curved
        rules = [
            TrainingSettings("sgd", rule="noise", rule_batch=base, noise_scale=scale)
            for scale in noise_scale
        ]
        law = [rule.batch_factor(size) for rule in rules]
        parts[size] = compare.mean(
            f"log2 of the best rate over that at B = {base}, less the rule's, B = {size}",
            *(np.log2(best[size] / best[base] / law), 0.0),
            **{"allowance": 0.02, "against": log2(size / base) if size != base else np.nan},
        )
    shown = " and ".join(
        f"{2 ** parts[size].measured:.3f} times the rule's at B = {size}" for size in (1, 256)
    )
    return compare.worst(parts.values()).finding(
        f"From the best learning rate at B = {base}, with noise scales of {noise_scale.min():.0f} "
        f"to {noise_scale.max():.0f} examples, the best one is {shown}."
    )


@claim(
    "O10",
    "A step of SGD with decay λ on weights before batch norm has ‖W'‖ cos Θ = (1 − ηλ)‖W‖.",
    "the gradient of what does not depend on the size of W is orthogonal to W",
)
def orthogonal_gradient(trial):
    """Θ is the angle between W and W'. Batch norm's ε, beside variances of order 1, breaks the
    invariance by about 1e-5."""
    rate, decay, steps = 0.5, 0.02, 60
    training = {"name": "sgd", "lr": rate, "weight_decay": decay, "steps": steps, "log": 1}
    net = {"depth": 3, "width": 24, "norm": "batch", "batch_size": 32}
    rows = trial.train(1 / 8, **net, training=training).table
    rows = rows[(rows["op"] == "linear") & (rows["layer"] < 3)]
    norm, turn = (
        rows.pivot(index=["seed", "layer"], columns="step", values=name).to_numpy(float)
        for name in ("W_log10_norm", "W_turn")
    )
    along = 10 ** (norm[:, 1:] - norm[:, :-1]) * np.cos(turn[:, :-1])
    result = compare.identity(
        "‖W'‖ cos Θ over (1 − ηλ)‖W‖, less 1", along / (1 - rate * decay) - 1, 1e-4
    )
    return result.finding(
        f"In {along.size} steps ‖W'‖ cos Θ was (1 − ηλ)‖W‖ to {result.measured:.0e}, with "
        f"ηλ = {rate * decay:g}, while Θ went up to {np.degrees(turn.max()):.0f}°."
    )
