"""What predictions read: a run's weights, its inputs' moments and its upstream cotangent."""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from flowlab.initializers import Initializer
from flowlab.layer import Parameter
from flowlab.measurement.setup import Setup
from flowlab.theory.upstream import cotangent

MOST_BATCHES = 16
MOST_VALUES = 2**21
_MOST_PRODUCTS = 2**27
TO_LOG10 = 0.5 / math.log(10)  # log of a squared norm to log10 of the norm


@dataclass(frozen=True)
class Inputs(Setup):
    """A run's setup with what predictions read of it."""

    @cached_property
    def initializer(self) -> Initializer:
        return Initializer(self.settings.init)

    @cached_property
    def unbiased(self) -> bool:
        """Are all biases zero?"""
        return self.initializer.bias_variance(1) == 0.0

    @cached_property
    def parameters(self) -> list[list[dict[str, Parameter]]]:
        """Of every block, its primitives' parameters by name, in forward order."""
        walk = self.network.walk(self.shape)
        return [[own for _, own in place.operations if own] for place in walk]

    def sigma2(self, parameter: Parameter) -> float:
        """fan_in Var(W) of a weight, the variance of a bias."""
        fan = parameter.fan_in if parameter.role == "weight" else 1
        return fan * self.initializer.deviation(parameter) ** 2

    def maps(self, block: int) -> list[tuple[float, float]]:
        """(sigma_w2, sigma_b2) of a block's linear maps, in forward order."""
        found = []
        for own in self.parameters[block]:
            of = {p.role: self.sigma2(p) for p in own.values()}
            if "weight" in of:
                found.append((of["weight"], of.get("bias", 0.0)))
        return found

    def weights(self, block: int) -> list[Parameter]:
        """A block's weights, in forward order."""
        every = (p for own in self.parameters[block] for p in own.values())
        return [p for p in every if p.role == "weight"]

    def undivided(self, block: int) -> tuple[float, float]:
        """(sigma_w2, sigma_b2) of a block's first linear map, without a factor of its own."""
        own = next(o for o in self.parameters[block] if any(p.role == "weight" for p in o.values()))
        of = {p.role: self.sigma2(replace(p, factor=1.0)) for p in own.values()}
        return of["weight"], of.get("bias", 0.0)

    def out_of_range(self) -> str | None:
        """A sentence where squares of the parameters or all inputs leave theory's range."""
        blocks = (p for block in self.parameters for own in block for p in own.values())
        try:
            for p in blocks:
                deviation = self.initializer.deviation(p)
                low = 1e-60 if p.role == "weight" and p.factor > 0 else 0.0
                if not low <= deviation <= 1e60:
                    raise OverflowError
        except OverflowError:
            return (
                "theory squares standard deviations of parameters, which must lie between 1e-60 "
                "and 1e60; init.gain=1 has a prediction"
            )
        if not self.examples().any():
            return "all inputs are zero and fix no scale; data=gaussian has a prediction"
        return None

    def examples(self, values: int = 0) -> np.ndarray:
        """Inputs of the first seeds, (seeds, *batch shape), in float64.

        Of ``MOST_BATCHES`` seeds, or of as many more as together have that many values.
        """
        if values not in self._examples:
            self._examples[values] = self._read(values)
        return self._examples[values]

    @cached_property
    def _examples(self) -> dict[int, np.ndarray]:
        return {}

    def _read(self, values: int) -> np.ndarray:
        first = self.settings.seed
        most = max(MOST_BATCHES, values // math.prod(self.batches.shape))
        x, _ = self.batches(range(first, first + min(self.settings.seeds, most)))
        return x.astype(np.float64)

    def top(self, positions: int, log_q: float = 0.0, c: float = 0.0):
        """At an output of ``positions`` places: log E||delta||^2, mean, variance, alpha, r.

        As `flowlab.theory.upstream.cotangent` gives them, places counting as examples; ``log_q``
        and ``c`` are those of the logits. The squared error's cotangent is 2 (z - target).
        """
        settings, batch = self.settings, self.settings.batch_size
        units = self.outputs or settings.width
        level, *rest = cotangent(
            *(settings.upstream, batch * positions, units),
            *(max(units, 2), log_q, c, settings.reduction),
        )
        if settings.reduction == "mean":
            level += 2 * math.log(positions)
        if settings.upstream == "loss" and settings.loss == "squared_error":
            square = units * math.exp(min(log_q, 600.0)) + self.batches.target_square
            level = math.log(4.0 * batch * square)
            if settings.reduction == "mean":
                level -= 2 * math.log(batch * units)
        return (level, *rest)


def log_squares(x: np.ndarray) -> np.ndarray:
    """log(||x_b||^2/features) of x (batches, examples, features), -inf for zeros: any float."""
    largest = np.abs(x).max(axis=2, keepdims=True)
    _, exponent = np.frexp(largest)
    mean = np.square(np.ldexp(x, -exponent)).mean(axis=2)
    with np.errstate(divide="ignore"):
        return np.log(mean) + 2 * math.log(2) * exponent[:, :, 0]


def cosines(x: np.ndarray) -> tuple[float, float]:
    """Mean and mean square of the cosine of two examples of one batch, (batches, examples, n).

    Zeros are orthogonal to all. Of large batches the first few are read.
    """
    _, examples, features = x.shape
    if examples == 1:
        return 0.0, 0.0
    work = examples * features * min(examples, features)
    x = x[: max(1, _MOST_PRODUCTS // work)]
    _, exponent = np.frexp(np.abs(x).max(axis=2, keepdims=True))
    unit = np.ldexp(x, -exponent)
    length = np.sqrt(np.square(unit).sum(axis=2, keepdims=True))
    unit /= np.where(length > 0, length, 1.0)
    alone = (length > 0).sum()
    total = np.square(unit.sum(axis=1)).sum()
    turned = unit.transpose(0, 2, 1)
    gram = unit @ turned if examples < features else turned @ unit
    pairs = len(x) * examples * (examples - 1)
    return float((total - alone) / pairs), float(max(np.square(gram).sum() - alone, 0.0) / pairs)
