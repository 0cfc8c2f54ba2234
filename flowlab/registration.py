"""Activations and initializers of a user's own, known by name like the library's.

What is registered lives in the process that registers it: a script registers at its top, before it
makes settings. The settings of a run hold a digest of what the name stood for (``registered``), so
that another function of that name is another run.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from numbers import Real

import numpy as np

from flowlab import initializers
from flowlab.errors import InputError, check_scale, unknown
from flowlab.initializers import MODES, PRESETS, REGISTERED_SCHEMES, SCHEMES, Scheme
from flowlab.kernel import Kernel
from flowlab.layers import activation as layers
from flowlab.layers.activation import REGISTERED_ACTIVATIONS
from flowlab.theory import activations as theory

# Both signs, away from the places where functions have kinks.
_SIZES = np.concatenate([np.geomspace(1.1e-3, 0.987, 60), np.linspace(1.013, 29.71, 500)])
_POINTS = np.concatenate([-_SIZES[::-1], _SIZES])
_FAR = np.geomspace(1.1e-3, 1.03e8, 300)
_DIGITS = 9  # in which two functions must agree to be one; machines differ in the last of 16
TOLERANCE = 1e-6  # of a derivative, relative to it or to the function where these are above 1
# Central differences of eighth order: Fornberg 1988, "Generation of finite difference formulas on
# arbitrarily spaced grids", table 1.
_STENCIL = {1: 4 / 5, 2: -1 / 5, 3: 4 / 105, 4: -1 / 280}


def register_activation(name: str, f: Callable, df: Callable) -> None:
    """Make an activation known as ``activation=name`` to settings, measurement and theory.

    ``f(z)`` and its derivative ``df(z)`` take one number and return one. Numba compiles them, so
    they consist of arithmetic, comparisons and functions of ``math``, NumPy or one's own; a lambda,
    a function inside another and a NumPy function will do. They are compiled anew in each process
    (seconds), and what they read from outside is taken as it is at that time. ``df`` must be the
    derivative of ``f``: it is compared with central differences at points from -30 to 30.

    Theory integrates both over Gaussians: exactly if f is smooth or has its kink at 0, to about
    three digits with kinks elsewhere. Numbers beyond float's range become rows with
    ``status="nonfinite"``: a naive ``np.exp(z)`` leaves float32 at z = 88.

    A name means one function in a process; to register it again is fine where values agree to nine
    digits. Raises InputError for a name that is taken or no word, for functions that do not
    compile, are not finite from -30 to 30 or do not belong together.
    """
    _check_name("activation", name)
    for what, function in (("f", f), ("df", df)):
        if not callable(function):
            raise InputError(f"{what} of activation {name} must be a function; got {function!r}")
    kernels = layers.kernels(f, df)
    phi, derivative = (_over_arrays(kernel) for kernel in kernels)
    for what, function in (("f", phi), ("df", derivative)):
        _check_finite(f"{what} of activation {name}", function)
    _check_derivative(name, phi, derivative)
    digest = _fingerprint(phi, derivative)
    if _is_new("activation", name, digest, layers.ACTIVATIONS, REGISTERED_ACTIVATIONS):
        theory.ACTIVATIONS[name] = theory.ActivationFunction(
            name, phi, derivative, bounded=_bounded(phi)
        )
        layers.ACTIVATIONS[name] = kernels


def register_initializer(
    name: str,
    numerator: float = 1.0,
    mode: str = "fan_in",
    distribution: str = "normal",
    power: float = 1.0,
) -> None:
    """Make an initializer known as ``init=name``: Var(W) = numerator / fan^power.

    ``mode`` is the fan (``fan_in``, ``fan_out``, ``fan_avg``), ``distribution`` normal or uniform,
    ``power`` from 0 to 2. Like the library's it takes ``init.gain``, ``init.mode`` and
    ``init.sigma_b``, and theory reads its variance. A name means one initializer in a process.
    Raises InputError for a name that is taken or no word, and for values out of range.
    """
    _check_name("initializer", name)
    for what, value in (("numerator", numerator), ("power", power)):
        if not isinstance(value, Real) or isinstance(value, bool):
            raise InputError(f"{what} of initializer {name} must be a number; got {value!r}")
    check_scale(f"numerator of initializer {name}", numerator)
    if not 0 <= power <= 2:
        raise InputError(f"power of initializer {name} must be from 0 to 2; got {power}")
    if mode not in MODES:
        raise unknown(f"mode of initializer {name}", mode, MODES)
    if distribution not in ("normal", "uniform"):
        raise unknown(f"distribution of initializer {name}", distribution, ("normal", "uniform"))
    scheme = Scheme(float(numerator), mode, distribution, float(power))
    digest = hashlib.sha256(repr(scheme).encode()).hexdigest()[:16]
    if _is_new("initializer", name, digest, SCHEMES | PRESETS, REGISTERED_SCHEMES):
        initializers.SCHEMES[name] = scheme


def _check_name(kind: str, name: str) -> None:
    if not (isinstance(name, str) and name.isidentifier()):
        raise InputError(f"name of an {kind} must be a word of letters, digits and _; got {name!r}")


def _is_new(kind: str, name: str, digest: str, known: Mapping, registered: dict[str, str]) -> bool:
    """Enter a name; False where it means the same already, InputError where it means another."""
    if name in registered:
        if registered[name] != digest:
            raise InputError(
                f"name of an {kind} must keep its meaning in a process; got another {name}"
            )
        return False
    if name in known:
        raise InputError(f"name of an {kind} must be new; got {name}, which flowlab has")
    registered[name] = digest
    return True


def _over_arrays(kernel: Kernel) -> Callable[[np.ndarray], np.ndarray]:
    """A scalar function as the theory takes it: arrays of any shape, in their float type."""

    def values(u):
        u = np.asarray(u)
        u = u if u.dtype == np.float32 else u.astype(np.float64)
        flat = np.ascontiguousarray(u).reshape(-1)
        out = np.empty_like(flat)
        ones = [np.ones_like(flat)] * (kernel.n_reads - 1)  # a derivative's cotangent
        kernel.single(flat, *ones, out)
        return out.reshape(u.shape)

    return values


def _check_finite(what: str, function: Callable) -> None:
    for dtype in (np.float64, np.float32):
        points = _POINTS.astype(dtype)
        try:
            values = function(points)
        except Exception as error:  # whatever Numba raises
            raise InputError(f"{what} must compile under Numba; got: {_reason(error)}") from error
        finite = np.isfinite(values)
        if not finite.all():
            at = int(finite.argmin())
            raise InputError(
                f"{what} must be finite from -30 to 30 in {points.dtype}; "
                f"got {values[at]} at {points[at]:.6g}"
            )


def _reason(error: Exception) -> str:
    """Numba's message without the lines that name its own steps."""
    lines = [" ".join(line.split()) for line in str(error).splitlines()]
    return next(line for line in lines if line and not line.startswith("Failed in"))[:160]


def _check_derivative(name: str, phi: Callable, derivative: Callable) -> None:
    given, expected = derivative(_POINTS), _differences(phi)
    size = np.maximum(1.0, np.maximum(np.abs(phi(_POINTS)), np.abs(expected)))
    wrong = np.abs(given - expected) > TOLERANCE * size
    if wrong.any():
        at = int(np.where(wrong, np.abs(given - expected) / size, 0).argmax())
        raise InputError(
            f"df of activation {name} must be the derivative of f, {expected[at]:.6g} at "
            f"z={_POINTS[at]:.6g}; got {given[at]:.6g}"
        )


def _differences(phi: Callable) -> np.ndarray:
    """The derivative at the points, of each by the step at which two steps agree best."""
    steps = 2.0 ** -np.arange(5, 21, 2)[:, None]
    found = np.zeros((len(steps), len(_POINTS)))
    for k, weight in _STENCIL.items():
        found += weight * (phi(_POINTS + k * steps) - phi(_POINTS - k * steps)) / steps
    best = np.abs(np.diff(found, axis=0)).argmin(axis=0)
    return found[best + 1, np.arange(len(_POINTS))]


def _fingerprint(phi: Callable, derivative: Callable) -> str:
    """A digest of the values: the same in any process, however the function is written."""
    digest = hashlib.sha256()
    points = np.concatenate([-_FAR, [0.0], _FAR, _POINTS])
    for function in (phi, derivative):
        values = function(points)
        _, exponent = np.frexp(np.where(np.isfinite(values), values, 1.0))
        size = np.ldexp(1.0, np.maximum(exponent, 0))
        rounded = np.round(values / size, _DIGITS) + 0.0  # no negative zeros
        digest.update(np.where(np.isnan(rounded), math.nan, rounded).astype("<f8").tobytes())
        digest.update(size.astype("<f8").tobytes())
    return digest.hexdigest()[:16]


def _bounded(phi: Callable) -> bool:
    """Does it saturate on both sides?"""
    near, far = np.abs(phi(np.array([[-1e8, 1e8], [-2e8, 2e8]])))
    return bool((far <= 1.1 * near).all())
