"""Activations and their derivatives, as the theory needs them: NumPy in, NumPy out.

Formulas follow PyTorch's defaults: leaky slope 0.01, exact GELU, ELU with alpha = 1, and the SELU
constants of Klambauer et al. (2017).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import erf, expit, ndtr

from flowlab.errors import unknown

SELU_SCALE = 1.0507009873554805
SELU_ALPHA = 1.6732632423543772


@dataclass(frozen=True)
class ActivationFunction:
    """An activation ``phi`` with its derivative, both elementwise on arrays of any shape.

    ``negative_slope`` is set for the positively homogeneous ones, whose positive slope is 1;
    ``bounded`` says that ``phi`` saturates on both sides.
    """

    name: str
    phi: Callable[[np.ndarray], np.ndarray]
    derivative: Callable[[np.ndarray], np.ndarray]
    bounded: bool = False
    negative_slope: float | None = None

    @property
    def homogeneous(self) -> bool:
        """Whether phi(k u) = k phi(u) for every k > 0."""
        return self.negative_slope is not None

    @property
    def vanishes_at_zero(self) -> bool:
        """Whether phi(0) = 0."""
        return float(self.phi(np.float64(0))) == 0.0


def _leaky(name: str, slope: float) -> ActivationFunction:
    return ActivationFunction(
        name,
        lambda u: np.where(u > 0, u, slope * u),
        lambda u: np.where(u > 0, 1.0, slope),
        negative_slope=slope,
    )


def _exponential(name: str, scale: float, alpha: float) -> ActivationFunction:
    return ActivationFunction(
        name,
        lambda u: scale * np.where(u > 0, u, alpha * np.expm1(np.minimum(u, 0))),
        lambda u: scale * np.where(u > 0, 1.0, alpha * np.exp(np.minimum(u, 0))),
    )


def _sech2(u):
    e = np.exp(-2 * np.abs(u))
    return 4 * e / (1 + e) ** 2


def _density(u):
    return np.exp(-0.5 * np.minimum(np.abs(u), 50.0) ** 2) / np.sqrt(2 * np.pi)


ACTIVATIONS = {
    act.name: act
    for act in (
        _leaky("identity", 1.0),
        _leaky("relu", 0.0),
        _leaky("leaky_relu", 0.01),
        ActivationFunction("tanh", np.tanh, _sech2, bounded=True),
        ActivationFunction("sigmoid", expit, lambda u: expit(u) * expit(-u), bounded=True),
        ActivationFunction(
            "erf",
            erf,
            lambda u: np.exp(-(np.minimum(np.abs(u), 26.0) ** 2)) * (2 / np.sqrt(np.pi)),
            bounded=True,
        ),
        ActivationFunction("gelu", lambda u: u * ndtr(u), lambda u: ndtr(u) + u * _density(u)),
        ActivationFunction(
            "silu", lambda u: u * expit(u), lambda u: expit(u) * (1 + u * expit(-u))
        ),
        _exponential("selu", SELU_SCALE, SELU_ALPHA),
        _exponential("elu", 1.0, 1.0),
        ActivationFunction("softplus", lambda u: np.logaddexp(0, u), expit),
    )
}


def get_activation(activation: "str | ActivationFunction") -> ActivationFunction:
    """The activation of that name; an `ActivationFunction` is returned as it is.

    Raises `InputError` for an unknown name.
    """
    if isinstance(activation, ActivationFunction):
        return activation
    if activation not in ACTIVATIONS:
        raise unknown("activation", activation, ACTIVATIONS)
    return ACTIVATIONS[activation]


def leaky_relu(slope: float) -> ActivationFunction:
    """Leaky ReLU of another negative slope than PyTorch's 0.01."""
    return _leaky(f"leaky_relu({slope:g})", float(slope))
