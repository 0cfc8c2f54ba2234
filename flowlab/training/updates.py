"""Updates: what a gradient becomes before it is subtracted from its parameter.

A *transformation* takes an element u of the gradient, its parameter w and its own state to the next
u, and a chain of them makes an optimizer, as in optax:

- sgd: decayed, then momentum or nesterov;
- adam: decayed, then adam;
- adamw: adam, then decayed, which is what decouples the decay from the moments.

Clipping comes first and w ← w - η u last. The chain is compiled into one loop over an array, so
that a step reads and writes every array once; results are PyTorch's up to rounding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np

from flowlab.kernel import borrowed, generate, jit
from flowlab.layer import Nest, leaves
from flowlab.optimizers import TrainingSettings
from flowlab.training.clipping import Gradient, clip, units

element = partial(jit, inline=True)


@dataclass(frozen=True)
class Transformation:
    """``formula(u, w, *state, *numbers)`` returns u, or (u, *state) where it has state.

    ``state`` names what is held for every element, at first 0; ``numbers(step)`` gives the numbers
    of a step, from 1.
    """

    formula: Callable
    state: tuple[str, ...] = ()
    numbers: Callable[[int], tuple[float, ...]] = lambda step: ()


@element
def clamped(u, w, most):
    """u ← min(max(u, -c), c), and NaN stays NaN."""
    return most if u > most else (-most if u < -most else u)


@element
def decayed(u, w, decay):
    """u ← u + λ w."""
    return u + decay * w


@element
def momentum(u, w, trace, mu):
    """m ← μ m + u; u ← m (Polyak 1964)."""
    trace = mu * trace + u
    return trace, trace


@element
def nesterov(u, w, trace, mu):
    """m ← μ m + u; u ← u + μ m (Sutskever et al. 2013, in PyTorch's form)."""
    trace = mu * trace + u
    return u + mu * trace, trace


@element
def adam(u, w, mean, square, rest1, beta2, rest2, unbias1, unbias2, eps):
    """m ← β₁ m + (1 - β₁) u; v ← β₂ v + (1 - β₂) u²; u ← m̂/(√v̂ + ε) (Kingma and Ba 2015).

    m̂ = m/(1 - β₁ᵗ) and v̂ = v/(1 - β₂ᵗ); rest = 1 - β, unbias = 1/(1 - β₁ᵗ) and 1/√(1 - β₂ᵗ).
    """
    mean = mean + rest1 * (u - mean)
    square = beta2 * square + rest2 * u * u
    return unbias1 * mean / (unbias2 * np.sqrt(square) + eps), mean, square


@element
def _descended(u, w, rate):
    return w - rate * u


def adam_numbers(beta1: float, beta2: float, eps: float, step: int) -> tuple[float, ...]:
    """What :func:`adam` receives at a step."""
    unbias = 1 / (1 - beta1**step), (1 - beta2**step) ** -0.5
    return (1 - beta1, beta2, 1 - beta2, *unbias, eps)


def chain(training: TrainingSettings, batch_size: int) -> tuple[Transformation, ...]:
    """The transformations of an optimizer, in order.

    Raises InputError where the rule leaves Adam no β.
    """

    def of(formula: Callable, *numbers: float, state: tuple[str, ...] = ()) -> Transformation:
        return Transformation(formula, state, lambda step: numbers)

    first = (of(clamped, training.clip_at),) if training.clip == "value" else ()
    decay = (of(decayed, training.weight_decay),) if training.weight_decay else ()
    if training.name == "sgd":
        formula = nesterov if training.nesterov else momentum
        trace = (of(formula, training.momentum, state=("trace",)),) if training.momentum else ()
        return (*first, *decay, *trace)
    numbers = partial(adam_numbers, *training.adam_numbers(batch_size))
    moments = (Transformation(adam, ("mean", "square"), numbers),)
    return (*first, *moments, *decay) if training.name == "adamw" else (*first, *decay, *moments)


@dataclass(frozen=True)
class Step:
    """What an update shows of itself, each (S,).

    ``norm`` is log2 of the whole true gradient's norm before clipping, None where neither clipping
    nor the caller needed it; ``clipped`` says whether anything was, ``cosine`` is that of the angle
    between the gradient before and after; ``nonfinite`` is the first layer (from 1) with a
    parameter that is not finite after the step, 0 where there is none.
    """

    norm: np.ndarray | None
    clipped: np.ndarray
    cosine: np.ndarray
    nonfinite: np.ndarray


@dataclass(frozen=True)
class _Held:
    """A parameter of a stretch as matrices (S, count, rows, columns), and its state likewise."""

    W: np.ndarray
    by_column: bool
    with_input: bool  # is its gradient multiplied by the input's power of two, too?
    state: dict[str, np.ndarray]


class Updater:
    """The updates of S networks at once; what becomes of one depends on it alone, bit for bit.

    ``parameters`` are as in :class:`flowlab.measurement.passes.Held`: of each stretch a nest of
    C-contiguous arrays (S, count, ...), which are changed in place. ``declared`` has the nest of
    one layer's :class:`Parameter` for each stretch; targets are data and stay.

    ``state`` holds of each stretch, parameter's path and name of a state the array, shaped like the
    parameter.
    """

    def __init__(
        self,
        training: TrainingSettings,
        parameters: dict[int, Nest],
        declared: dict[int, Nest],
        batch_size: int,
    ):
        self.training, self.taken = training, 0
        self.chain = chain(training, batch_size)
        self.state: dict[int, dict[str, dict[str, np.ndarray]]] = {}
        self._held: dict[int, dict[str, _Held]] = {}
        names = [name for transformation in self.chain for name in transformation.state]
        for start in sorted(parameters):
            roles = {path: parameter.role for path, parameter in leaves(declared[start])}
            arrays = {p: a for p, a in leaves(parameters[start]) if roles[p] != "target"}
            self.state[start] = {p: {n: np.zeros_like(a) for n in names} for p, a in arrays.items()}
            self._held[start] = {
                path: self._matrices(array, roles[path], self.state[start][path])
                for path, array in arrays.items()
            }

    def _matrices(self, array: np.ndarray, role: str, state: dict[str, np.ndarray]) -> _Held:
        rows, columns, by_column = units(array.shape[2:])
        if self.training.clip != "adaptive":  # which alone needs units
            rows, columns, by_column = 1, rows * columns, False
        shape = (*array.shape[:2], rows, columns)
        seen = {name: of.reshape(shape) for name, of in state.items()}
        return _Held(array.reshape(shape), by_column, role in ("weight", "scale"), seen)

    def __call__(
        self,
        gradients: dict[int, Nest],
        exponents: dict[int, tuple[np.ndarray, np.ndarray]],
        rate: float,
        norm: bool = False,
    ) -> Step:
        """Take a step at this learning rate, down :class:`Gradients`' ``held`` and ``exponents``.

        With ``norm`` the whole gradient's norm is measured even where no clipping needs it.
        """
        self.taken += 1
        held, found = self._pairs(gradients, exponents)
        clipped = clip(self.training.clip, self.training.clip_at, found, norm)
        real = found[0].W.dtype.type
        numbers = [real(x) for of in self.chain for x in of.numbers(self.taken)]
        nonfinite = np.zeros(len(found[0].W), np.int64)
        formulas = tuple((of.formula, len(of.state), len(of.numbers(1))) for of in self.chain)
        for parameter, gradient, factor in zip(held, found, clipped.factors, strict=True):
            loop = _loop(formulas, gradient.by_column)
            arrays = gradient.held, factor, gradient.W, *parameter.state.values()
            loop(*arrays, nonfinite, gradient.backward, gradient.start, *numbers, real(rate))
        return Step(clipped.norm, clipped.clipped, clipped.cosine, nonfinite)

    def norm(
        self, gradients: dict[int, Nest], exponents: dict[int, tuple[np.ndarray, np.ndarray]]
    ) -> np.ndarray:
        """log2 of the whole true gradient's norm, (S,), without a step."""
        _, found = self._pairs(gradients, exponents)
        return clip("none", 0.0, found, norm=True).norm

    def _pairs(self, gradients, exponents) -> tuple[list[_Held], list[Gradient]]:
        """Every parameter and its gradient."""
        held, found = [], []
        for start, own in self._held.items():
            arrays = dict(leaves(gradients[start])) if own else {}
            for path, parameter in own.items():
                held.append(parameter)
                found.append(_gradient(start, parameter, arrays[path], *exponents[start]))
        return held, found


def _gradient(
    start: int, parameter: _Held, array: np.ndarray, of_dy: np.ndarray, of_x: np.ndarray
) -> Gradient:
    backward = not array.flags.c_contiguous
    matrices = np.ascontiguousarray(array[:, ::-1] if backward else array)
    matrices = matrices.reshape(parameter.W.shape)
    exponent = np.ascontiguousarray(of_dy + of_x if parameter.with_input else of_dy)
    return Gradient(start, parameter.W, parameter.by_column, matrices, backward, exponent)


@cache
def _loop(formulas: tuple[tuple[Callable, int, int], ...], by_column: bool) -> Callable:
    """The compiled loop of (formula, number of states, number of numbers) over an array."""
    rows, reads, body, writes, states, numbers = [], [], [], [], [], []
    namespace = {"borrowed": borrowed, "descended": _descended, "isfinite": np.isfinite}
    for k, (formula, of_state, of_numbers) in enumerate(formulas):
        own = [f"x{len(states) + i}" for i in range(of_state)]
        given = [f"n{len(numbers) + i}" for i in range(of_numbers)]
        rows += [f"{x}_row = borrowed({x}s)[s, l, r]" for x in own]
        reads += [f"{x} = {x}_row[j]" for x in own]
        body.append(f"{', '.join(['u', *own])} = f{k}({', '.join(['u', 'w', *own, *given])})")
        writes += [f"{x}_row[j] = {x}" for x in own]
        states, numbers = states + own, numbers + given
        namespace[f"f{k}"] = formula
    inner = [f"w, u = W_row[j], real(g_row[j] * {'by[j]' if by_column else 'by'})"]
    inner += [*reads, *body, "w = descended(u, w, rate)", "W_row[j] = w", *writes]
    inner += ["lost |= not isfinite(w)"]
    outer = ["g_row, W_row = borrowed(g)[s, k, r], borrowed(W)[s, l, r]", *rows]
    outer += [f"by = borrowed(factor)[s, l]{'' if by_column else '[r]'}"]
    outer += ["for j in range(W.shape[3]):", *(f"    {line}" for line in inner)]
    lines = ["real = W.dtype.type", "for s in range(W.shape[0]):"]
    lines += ["    for l in range(W.shape[1]):"]
    lines += ["        k, lost = W.shape[1] - 1 - l if backward else l, False"]
    lines += ["        for r in range(W.shape[2]):", *(f"            {line}" for line in outer)]
    lines += ["        if lost and (nonfinite[s] == 0 or start + l + 1 < nonfinite[s]):"]
    lines += ["            nonfinite[s] = start + l + 1"]
    names = [formula.py_func.__name__ for formula, _, _ in formulas]
    arguments = ["g", "factor", "W", *(f"{x}s" for x in states), "nonfinite", "backward", "start"]
    own = all(formula.py_func.__module__ == __name__ for formula, _, _ in formulas)
    return generate(
        "_".join(["update", *names, *(["by_column"] if by_column else [])]),
        *([*arguments, *numbers, "rate"], lines, namespace, __name__),
        __file__ if own else "",  # code of other files has no name of its own here
    )
