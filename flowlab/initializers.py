"""Initial parameters: distributions, gains, fan modes, and streams that depend on little.

The numbers of a parameter depend on (seed, layer, role) alone; see :mod:`flowlab.numerics.random`.
"""

import math
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from flowlab.errors import InputError, check_scale, unknown
from flowlab.kernel import kernel
from flowlab.layer import Parameter
from flowlab.numerics import random
from flowlab.schema import check_each, setting

MODES = ("fan_in", "fan_out", "fan_avg")


@dataclass(frozen=True)
class Scheme:
    """Var(W) = numerator / fan^power, drawn from a distribution, with a default fan mode."""

    numerator: float
    mode: str
    distribution: str = "normal"
    power: float = 1.0
    bias: bool = False  # are biases drawn like the weights?


SCHEMES = {
    # LeCun et al. 1998, section 4.6; Glorot and Bengio 2010, eq. 12 and 16; He et al. 2015, eq. 10.
    "lecun": Scheme(1.0, "fan_in"),
    "lecun_uniform": Scheme(1.0, "fan_in", "uniform"),
    "xavier": Scheme(1.0, "fan_avg"),
    "xavier_uniform": Scheme(1.0, "fan_avg", "uniform"),
    "he": Scheme(2.0, "fan_in"),
    "he_uniform": Scheme(2.0, "fan_in", "uniform"),
    # Saxe et al. 2013: a matrix with orthonormal rows or columns; of a convolution's kernel the
    # first axis is the rows, the others the columns.
    "orthogonal": Scheme(1.0, "fan_in", "orthogonal"),
    # Xiao et al. 2018, section 3.1: the kernel's centre is orthogonal, the rest of it is 0.
    "delta_orthogonal": Scheme(1.0, "fan_in", "delta_orthogonal"),
    # Le et al. 2015, of recurrent networks of ReLUs: ones on the diagonal; of a kernel, at its
    # centre.
    "identity": Scheme(1.0, "fan_in", "identity"),
    # torch.nn.Linear: weights and biases uniform on ±1/sqrt(fan_in).
    "torch_default": Scheme(1.0 / 3.0, "fan_in", "uniform", bias=True),
    # sigma_w^2 / fan_in, the parametrisation of mean-field theory.
    "normal": Scheme(1.0, "fan_in"),
    # "Variance proportional to 1/sqrt(d1)" taken at its word.
    "literal": Scheme(1.0, "fan_in", power=0.5),
}


# Schemes with a gain, by the names of their files in conf/init.
PRESETS = {
    "orthogonal_relu": {"name": "orthogonal", "gain": math.sqrt(2)},
    "delta_orthogonal_relu": {"name": "delta_orthogonal", "gain": math.sqrt(2)},
}


# Of schemes that a user has registered, digests of what they say.
REGISTERED_SCHEMES: dict[str, str] = {}


def _check_deviation(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise InputError(f"{name} must be a finite number, at least 0; got {value}")
    if value:
        check_scale(name, value)


@dataclass
class InitSettings:
    """How parameters are drawn."""

    name: str = setting("he", "the scheme that draws the weights", choices=SCHEMES)
    gain: float = setting(1.0, "factor of the weights' standard deviation", check=check_scale)
    mode: str | None = setting(
        None,
        "the fan in the weights' variance; by default the scheme's",
        choices=MODES,
        column="init_mode",
    )
    sigma_w: float = setting(
        1.0, "the weights' standard deviation times √fan_in, for init=normal", check=check_scale
    )
    sigma_b: float = setting(
        0.0,
        "the biases' standard deviation; torch_default draws its own",
        check=_check_deviation,
        allowed="numbers from 0",
    )

    def validate(self) -> None:
        """Raise InputError for an unknown scheme or mode and for numbers out of range."""
        if self.name not in SCHEMES:
            raise unknown("init", self.name, SCHEMES)
        check_each(self, "init.")
        without_mode = ("orthogonal", "delta_orthogonal", "identity", "torch_default")
        if self.mode is not None and self.name in without_mode:
            raise InputError(f"init.mode does not apply to {self.name}; got {self.mode}")
        check_scale("init.gain times init.sigma_w", self.gain * self.sigma_w)
        if self.sigma_w != 1.0 and self.name != "normal":
            raise InputError(f"init.sigma_w belongs to init=normal; got init={self.name}")
        if self.sigma_b != 0.0 and self.name == "torch_default":
            raise InputError("init.sigma_b does not apply to torch_default, which draws its own")


class Initializer:
    """Draws parameters for an ensemble under one scheme."""

    def __init__(self, settings: InitSettings):
        settings.validate()
        self.settings = settings
        self.scheme = SCHEMES[settings.name]
        self.identity = self.scheme.distribution == "identity"
        self.delta = self.identity or self.scheme.distribution == "delta_orthogonal"
        self.orthogonal = self.delta or self.scheme.distribution == "orthogonal"
        self._deviations: dict[Parameter, float] = {}

    def weight_variance(self, fan_in: int, fan_out: int) -> float:
        """Var of one weight, gain included."""
        if self.orthogonal:
            return self.settings.gain**2 / max(fan_in, fan_out)
        mode = self.settings.mode or self.scheme.mode
        fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[mode]
        if self.settings.name == "literal" and mode == "fan_avg":
            fan = fan_in + fan_out
        deviation = self.settings.gain * self.settings.sigma_w
        return deviation**2 * self.scheme.numerator / fan**self.scheme.power

    def bias_variance(self, fan_in: int) -> float:
        """Var of one bias."""
        return 1.0 / (3.0 * fan_in) if self.scheme.bias else self.settings.sigma_b**2

    def deviation(self, parameter: Parameter) -> float:
        """The standard deviation of a parameter's elements."""
        if parameter.scheme is not None:
            return _by_scheme(parameter.scheme).deviation(replace(parameter, scheme=None))
        if parameter not in self._deviations:
            variance = 0.0
            if parameter.role == "bias":
                variance = self.bias_variance(parameter.fan_in)
            elif parameter.role == "weight":
                fans = parameter.fan_in, parameter.fan_out
                if self.orthogonal and not self.delta:
                    columns = math.prod(parameter.shape[1:]) // _beside(parameter)
                    fans = parameter.shape[0], columns
                variance = self.weight_variance(*fans)
            self._deviations[parameter] = parameter.factor * math.sqrt(variance)
        return self._deviations[parameter]

    def draw(self, parameter: Parameter, seeds, layer, role: int, out: np.ndarray) -> None:
        """Fill ``out`` (seeds, *parameter.shape) with the numbers of (seed, layer, role).

        ``seeds`` is an int64 array (seeds,) of integers at least 0; ``layer`` is an integer, or
        such an array of them. Weights with a scheme of their own are drawn by it without the
        settings' gain, mode and sigma_w.
        """
        if parameter.scheme is not None:
            other = _by_scheme(parameter.scheme)
            return other.draw(replace(parameter, scheme=None), seeds, layer, role, out)
        if isinstance(layer, int):
            layer = np.full(len(seeds), layer)
        deviation, flat = self.deviation(parameter), out.reshape(len(out), -1)
        weight = parameter.role == "weight"
        if deviation == 0.0 or parameter.role == "gain":
            random.fill_constant.run(flat, parameter.factor if parameter.role == "gain" else 0.0)
        elif self.scheme.distribution == "uniform" and (weight or self.scheme.bias):
            random.fill_uniform.run(seeds, layer, flat, math.sqrt(3.0) * deviation, role)
        elif self.orthogonal and weight:
            matrices, tap = self._matrices(parameter)
            out, beside = out.reshape(-1, *matrices), _beside(parameter)
            gain = parameter.factor * self.settings.gain
            if self.identity:
                fill_identity.run(out, gain, tap, beside)
            else:
                fill_orthogonal.run(seeds, layer, out, gain, role, tap, beside)
        else:
            random.fill_normal.run(seeds, layer, flat, deviation, role)

    def _matrices(self, parameter: Parameter) -> tuple[tuple[int, ...], int]:
        """A weight's shape as (groups, rows, columns, taps), and the tap that is orthogonal."""
        rows, columns, *taps = parameter.shape
        if not (self.delta and taps):
            return (1, rows, columns * math.prod(taps), 1), 0
        of_group = parameter.fan_out // math.prod(taps)
        centre = np.ravel_multi_index([k // 2 for k in taps], taps)
        return (rows // of_group, of_group, columns, math.prod(taps)), int(centre)


@cache
def _by_scheme(name: str) -> Initializer:
    return Initializer(InitSettings(name))


def _beside(parameter: Parameter) -> int:
    """How many matrices stand side by side in a weight's columns: of a gated layer, its gates."""
    return parameter.shape[1] // parameter.fan_out if len(parameter.shape) == 2 else 1


@kernel("->(groups,rows,columns,taps)")
def fill_identity(out, gain, tap, beside):
    """Matrices with ``gain`` on the diagonal, at one tap of a kernel or side by side; else 0."""
    width = out.shape[2] // beside
    out[:] = 0
    for g in range(out.shape[0]):
        for b in range(beside):
            for i in range(min(out.shape[1], width)):
                out[g, i, b * width + i, tap] = gain


_fill_normal = random.fill_normal.single


@kernel("(),()->(groups,rows,columns,taps)")
def fill_orthogonal(seed, layer, out, gain, role, tap, beside):
    """Haar-distributed matrices: QR of Gaussian ones with R's diagonal positive (Mezzadri 2007).

    Each stands at one tap of a kernel, the others are 0; or they stand ``beside`` one another.
    """
    groups, rows, columns = out.shape[0], out.shape[1], out.shape[2] // beside
    gaussian = np.empty((groups * beside, max(rows, columns), min(rows, columns)))
    _fill_normal(seed, layer, gaussian.reshape(gaussian.size), 1.0, role)
    out[:] = 0
    for m in range(groups * beside):
        g, first = m // beside, m % beside * columns
        q, r = np.linalg.qr(gaussian[m])
        for i in range(q.shape[0]):
            for j in range(q.shape[1]):
                value = gain * q[i, j] * np.sign(r[j, j])
                if rows >= columns:
                    out[g, i, first + j, tap] = value
                else:
                    out[g, j, first + i, tap] = value
