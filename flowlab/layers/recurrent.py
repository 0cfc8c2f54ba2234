"""Recurrence over time, and backpropagation through it with an exponent for every step.

h_t = φ(x_t W_ih + b_ih + h_{t−1} W_hh + b_hh) from h_0 = 0 (Elman 1990), with the equations and the
order of gates of PyTorch's ``nn.RNN``, ``nn.LSTM`` and ``nn.GRU``, whose matrices are transposed.
Backward, with z the preactivations (Werbos 1990, "Backpropagation through time"),

    ∂L/∂h_t = dy_t + ∂L/∂z_{t+1} W_hhᵀ,   ∂L/∂z_t = φ'(z_t) ∂L/∂h_t,   dW_hh = Σ_t h_{t−1}ᵀ ∂L/∂z_t.

The product of Jacobians in ∂L/∂h_t vanishes or explodes (Bengio et al. 1994), soon beyond floats.
So each step keeps a power of two beside its cotangent, and beside its state where the recurrence is
positively homogeneous: true values are array[t] 2^exponents[t]. Multiplying by a power of two
changes no bit of a mantissa, so that results are those of the plain recursion wherever that stays
within the float range.

Inside, arrays are time-major: what all steps share is one matrix product over them.
"""

import math
from collections.abc import Callable
from types import FunctionType
from typing import NamedTuple

import numpy as np

from flowlab.errors import InputError, unknown
from flowlab.initializers import SCHEMES
from flowlab.kernel import Kernel, ShapeError, borrowed, jit, kernel
from flowlab.layer import (
    Declaration,
    Layer,
    Measured,
    Parameter,
    Primitive,
    Scaled,
    expect_elements,
    expect_shape,
)
from flowlab.numerics import scale
from flowlab.numerics.elementary import exp, like, tanh_and_slope

ACTIVATIONS = ("identity", "relu", "tanh")
_IDENTITY, _RELU, _TANH = range(3)
_NOWHERE = -(2**62)  # the exponent of a sum without terms

log2_norm = scale._log2_norm.single


# --- gates ----------------------------------------------------------------------------------------


@jit
def gate(x):
    """σ(x) kept as the smaller of σ and 1 - σ, negative for 1 - σ: no tail is rounded away."""
    e = exp(-abs(x))
    return math.copysign(e / (like(x, 1) + e), -x)


@jit
def opened(q):
    """σ of what ``gate`` gave; 1 - σ is ``opened(-q)``."""
    return like(q, 1) + q if math.copysign(like(q, 1), q) < 0 else q


@jit
def gate_slope(q):
    """σ(1 - σ) of what ``gate`` gave."""
    return abs(q) * (like(q, 1) - abs(q))


# --- powers of two along time ---------------------------------------------------------------------


@jit
def power(k):
    """2^k; 0 below the float range, and no more than 2^1000."""
    return math.ldexp(1.0, min(max(k, -1100), 1000))


@jit
def shift(a, k):
    """a 2^k in place, for any k."""
    if k != 0:
        k = min(max(k, -2200), 2000)
        half, rest = power(k // 2), power(k - k // 2)
        a = a.reshape(a.size)
        for i in range(a.size):
            a[i] = a[i] * half * rest


@jit
def nonzero(a):
    """Is any element other than 0?"""
    for v in a.reshape(a.size):  # noqa: SIM110
        if v != 0:
            return True
    return False


@jit
def copy(a, b):
    """b = a."""
    a, b = a.reshape(a.size), b.reshape(b.size)
    for i in range(a.size):
        b[i] = a[i]


@jit
def largest(a):
    """The largest |element|."""
    top = 0.0
    for v in a.reshape(a.size):
        top = max(top, abs(np.float64(v)))
    return top


@jit
def excess(norm, size, comfort):
    """The power of two to take out of an array of this log2 norm; 0 within comfort."""
    rms = norm - 0.5 * np.log2(size)
    if np.isfinite(rms) and abs(rms) > comfort:
        return np.int64(math.floor(rms))
    return np.int64(0)


@jit
def hand_on(steps, exponents, out, scaled):
    """Time-major steps as out (n, t, ...), without their exponents unless ``scaled``."""
    for t in range(out.shape[1]):
        k = np.int64(0) if scaled else min(max(exponents[t], -2200), 2000)
        half, rest = power(k // 2), power(k - k // 2)
        for n in range(out.shape[0]):
            for j in range(out.shape[2]):
                out[n, t, j] = steps[t, n, j] * half * rest


@jit
def common(z, z_exponent, state, state_exponent, biased):
    """The largest exponent among those of the terms of a step's preactivations that are not 0."""
    top = _NOWHERE
    if nonzero(z):
        top = z_exponent
    if nonzero(state):
        top = max(top, state_exponent)
    if biased:
        top = max(top, 0)
    return state_exponent if top == _NOWHERE else top


@jit
def gather(dy, t, own, carry, at, dh):
    """dh = dy_t 2^own + carry 2^at beside a common exponent, which is returned."""
    top = _NOWHERE
    for n in range(dh.shape[0]):
        if nonzero(dy[n, t]):
            top = own
            break
    if nonzero(carry):
        top = max(top, at)
    if top == _NOWHERE:
        top = at
    from_dy, from_carry = power(own - top), power(at - top)
    for n in range(dh.shape[0]):
        for j in range(dh.shape[1]):
            dh[n, j] = from_dy * dy[n, t, j] + from_carry * carry[n, j]
    return top


@jit
def summed(a, d, a_exponents, lag, at, aligned, out):
    """out 2^k = Σ_t a_tᵀ d_t 2^e_t for the k that is returned, e_t = at_t + a_exponents_(t-lag)."""
    T, N, G = d.shape
    top, same = _NOWHERE, True
    for t in range(lag, T):
        if nonzero(d[t]) and nonzero(a[t]):
            e = at[t] + a_exponents[t - lag]
            same = same and (top in (_NOWHERE, e))
            top = max(top, e)
    if not same:
        for t in range(T):
            e = at[t] + a_exponents[t - lag] if t >= lag else top
            # A dead step may lie above the top, but adds nothing.
            factor = power(min(e - top, 0))
            for n in range(N):
                for k in range(G):
                    aligned[t, n, k] = factor * d[t, n, k]
        d = aligned
    np.dot(a.reshape(a.shape[0] * N, a.shape[2])[: T * N].T, d.reshape(T * N, G), out)
    return np.int64(0) if top == _NOWHERE else top


@jit
def summed_over_steps(d, at, row, out):
    """out 2^k = Σ_t Σ_n d_tn 2^(at_t) for the k that is returned."""
    top = _NOWHERE
    for t in range(d.shape[0]):
        if nonzero(d[t]):
            top = max(top, at[t])
    out.fill(0)
    for t in range(d.shape[0]):
        row.fill(0)
        for n in range(d.shape[1]):
            for k in range(out.size):
                row[k] += d[t, n, k]
        factor = power(min(at[t] - top, 0))
        for k in range(out.size):
            out[k] += factor * row[k]
    return np.int64(0) if top == _NOWHERE else top


# --- what all steps share -------------------------------------------------------------------------


@kernel("(n,t,i),(i,g)->(t,n,i),(t,n,g)")
def project(x, W_ih, steps, gates):
    """Time-major x, and its product with W_ih."""
    for t in range(steps.shape[0]):
        for n in range(x.shape[0]):
            for i in range(x.shape[2]):
                steps[t, n, i] = x[n, t, i]
    T, N, G = gates.shape
    np.dot(steps.reshape(T * N, x.shape[2]), W_ih, gates.reshape(T * N, G))


@kernel("(k,u,n,h),(t)->(n,t,h)")
def output(states, exponents, y, scaled):
    hand_on(states[0, 1:], exponents, y, scaled)


@kernel("(i,g),(t),(k,u,n,h),(t),(t,n,i),(d,t,n,g),(t)->(n,t,i),(i,g),(h,g),(g),(g),(four),(a)")
def gather_gradients(
    W_ih,
    x_exponents,
    states,
    exponents,
    steps,
    deltas,
    at,
    dx,
    dW_ih,
    dW_hh,
    db_ih,
    db_hh,
    gradient_exponents,
    scratch,
    scaled,
):
    """dx and the gradients, from the cotangents of the products with W_ih and with W_hh."""
    T, N, I = steps.shape
    dz_ih, dz_hh = deltas[0], deltas[-1]
    G = dz_ih.shape[2]
    dsteps, aligned = scratch[: T * N * I], scratch[: T * N * G].reshape(T, N, G)
    np.dot(dz_ih.reshape(T * N, G), W_ih.T, dsteps.reshape(T * N, I))
    hand_on(dsteps.reshape(T, N, I), at, dx, scaled)
    gradient_exponents[0] = summed(steps, dz_ih, x_exponents, 0, at, aligned, dW_ih)
    gradient_exponents[1] = summed(states[0], dz_hh, exponents, 1, at, aligned, dW_hh)
    gradient_exponents[2] = summed_over_steps(dz_ih, at, aligned[0, 0], db_ih)
    gradient_exponents[3] = summed_over_steps(dz_hh, at, aligned[0, 0], db_hh)
    if not scaled:
        shift(dW_ih, gradient_exponents[0])
        shift(dW_hh, gradient_exponents[1])
        shift(db_ih, gradient_exponents[2])
        shift(db_hh, gradient_exponents[3])
        gradient_exponents.fill(0)


# --- the loops over time --------------------------------------------------------------------------


class Rows(NamedTuple):
    """One example's rows at one step, of which a cell's forward function writes h, c and ``kept``.

    Arrays (g, h) have a row for each of the cell's g gates. What the forward function leaves in z
    its adjoint finds there.
    """

    z: np.ndarray  # (g, h), x_t W_ih
    p: np.ndarray  # (g, h), h_{t−1} W_hh
    b_ih: np.ndarray  # (g, h)
    b_hh: np.ndarray  # (g, h)
    powers: tuple[float, float, float]  # z, p and biases are to be multiplied by them: see ``cell``
    h_before: np.ndarray  # (h,), h_{t−1}
    h: np.ndarray  # (h,), h_t
    c_before: np.ndarray  # (h,), c_{t−1} where the cell carries two states, and h_{t−1} otherwise
    c: np.ndarray  # (h,), c_t likewise
    kept: np.ndarray  # (kept h,), for the adjoint


class AdjointRows(NamedTuple):
    """One example's rows at one step, of which a cell's adjoint writes dz, dp, dc and dh.

    It finds ∂L/∂h_t and, of what later steps made of c_t, ∂L/∂c_t. It leaves ∂L/∂c_{t−1}, and in dh
    the part of ∂L/∂h_{t−1} that does not go through p.
    """

    z: np.ndarray  # (g, h), as the forward function left it
    h_before: np.ndarray
    c_before: np.ndarray
    c: np.ndarray
    kept: np.ndarray
    dh: np.ndarray  # (h,)
    dc: np.ndarray  # (h,)
    dz: np.ndarray  # (g, h)
    dp: np.ndarray  # (g, h), the same array as dz unless the cell keeps them separate


def _along_time(
    W_hh,
    b_ih,
    b_hh,
    x_exponents,
    exponents,
    norms,
    states,
    gates,
    kept,
    product,
    comfort,
    homogeneous,
    constants,
):
    T, N, G = gates.shape
    blocks = G // W_hh.shape[0], W_hh.shape[0]
    z, p = borrowed(gates.reshape(T, N, *blocks)), borrowed(product.reshape(N, *blocks))
    biases = borrowed(b_ih.reshape(blocks)), borrowed(b_hh.reshape(blocks))
    biased = nonzero(b_ih) or nonzero(b_hh)
    states, kept = borrowed(states), borrowed(kept)
    h, c = states[0], states[-1]
    h[0].fill(0)
    c[0].fill(0)
    for t in range(T):
        np.dot(h[t], W_hh, product)
        top, powers = np.int64(0), (1.0, 1.0, 1.0)
        if homogeneous:
            before = exponents[t - 1] if t > 0 else np.int64(0)
            top = common(gates[t], x_exponents[t], h[t], before, biased)
            powers = power(x_exponents[t] - top), power(before - top), power(-top)
        else:
            shift(gates[t], x_exponents[t])
        for n in range(N):
            states_of = h[t, n], h[t + 1, n], c[t, n], c[t + 1, n]
            rows = Rows(z[t, n], p[n], *biases, powers, *states_of, kept[t, n])
            step(rows, *constants)  # noqa: F821  see _over_steps
        log2_norm(h[t + 1], norms[t : t + 1])
        k = excess(norms[t], h[t + 1].size, comfort) if homogeneous else np.int64(0)
        shift(h[t + 1], -k)
        norms[t] += top
        exponents[t] = top + k


def _back_along_time(
    W_hh,
    states,
    gates,
    kept,
    dy,
    at,
    norms,
    delta_norms,
    deltas,
    cotangents,
    carry,
    scaled,
    comfort,
    truncation,
    direct,
    constants,
):
    T, N, G = gates.shape
    blocks = G // W_hh.shape[0], W_hh.shape[0]
    z = borrowed(gates.reshape(T, N, *blocks))
    dz, dp = borrowed(deltas[0].reshape(T, N, *blocks)), borrowed(deltas[-1].reshape(T, N, *blocks))
    states, kept, cotangents = borrowed(states), borrowed(kept), borrowed(cotangents)
    h, c = states[0], states[-1]
    dh, dc, two = cotangents[0], cotangents[-1], len(states) > 1
    carry.fill(0)
    dc.fill(0)
    after = np.int64(0)
    for t in range(T - 1, -1, -1):
        top = gather(dy, t, at[t] if scaled else 0, carry, after, dh)
        if two and nonzero(dc):
            shift(dh, min(top - after, 0))
            top = max(top, after)
            shift(dc, after - top)
        log2_norm(dh, norms[t : t + 1])
        size = norms[t]
        if two:
            log2_norm(dc, delta_norms[t : t + 1])
            size = max(size, delta_norms[t])
        k = excess(size, dh.size, comfort)
        shift(cotangents, -k)
        norms[t] += top
        after = at[t] = top + k
        for n in range(N):
            states_of = h[t, n], c[t, n], c[t + 1, n], kept[t, n]
            rows = AdjointRows(z[t, n], *states_of, dh[n], dc[n], dz[t, n], dp[t, n])
            step(rows, *constants)  # noqa: F821
        log2_norm(deltas[0, t], delta_norms[t : t + 1])
        delta_norms[t] += after
        if truncation > 0 and t % truncation == 0:
            carry.fill(0)
            dc.fill(0)
            continue
        np.dot(deltas[-1, t], W_hh.T, carry)
        if direct:
            for n in range(N):
                for j in range(dh.shape[1]):
                    carry[n, j] += dh[n, j]


def cell(forward: Callable, adjoint: Callable) -> tuple[Kernel, Kernel]:
    """The kernels that pass a cell along time and back, from its equations at one step.

    ``forward(rows, *constants)`` and ``adjoint(rows, *constants)`` get :class:`Rows` and
    :class:`AdjointRows` of one example, and the layer's ``constants()``. In a cell that is
    positively homogeneous z, p, biases and h_t have different exponents, and ``powers`` make up
    for it; in others they are 1.
    """
    return (
        _over_steps(
            _along_time, forward, "(h,g),(g),(g),(t)->(t),(t),(k,u,n,h),(t,n,g),(t,n,m),(n,g)"
        ),
        _over_steps(
            _back_along_time,
            adjoint,
            "(h,g),(k,u,n,h),(t,n,g),(t,n,m),(n,t,h)->(t),(t),(t),(d,t,n,g),(k,n,h),(n,h)",
        ),
    )


def _over_steps(loop: Callable, function: Callable, signature: str) -> Kernel:
    """A copy of the loop that calls this function as ``step``, and is called and kept as it is.

    Numba's disk cache refuses functions that are given as arguments, but not those that stand in a
    module's namespace.
    """
    code = loop.__code__.replace(co_filename=function.__code__.co_filename)
    namespace = {**globals(), "__name__": function.__module__, "step": jit(function, inline=True)}
    return kernel(signature)(FunctionType(code, namespace, function.__name__))


# --- the norms of examples ------------------------------------------------------------------------


@kernel("(a,b),(a,b)->()", reassociate=True)
def _inner(u, v, out):
    total = 0.0
    for i in range(u.shape[0]):
        for j in range(u.shape[1]):
            total += np.float64(u[i, j]) * v[i, j]
    out[0] = total


inner = _inner.single


@jit
def example_norm(a, d, a_exponents, lag, at):
    """log2 √Σ_n ‖g_n‖² of g_n = Σ_t a_tnᵀ d_tn 2^(e_t), e_t as in ``summed``.

    From g_n itself, or as ‖g_n‖² = Σ (a_t · a_t')(d_t · d_t') over t and t' where that is cheaper:
    in float64, and given up where terms cancel.
    """
    (T, N, G), D = d.shape, a.shape[2]
    top, size = _NOWHERE, 0.0
    for t in range(lag, T):
        if nonzero(a[t]) and nonzero(d[t]):
            size = max(size, largest(a[t]))
            top = max(top, at[t] + a_exponents[t - lag])
    if top == _NOWHERE:
        return -np.inf
    down = math.frexp(size)[1] if size < np.inf else 0
    of_a = power(-down)
    by_pairs = 2 * T * (D + G) < D * G
    left, right = np.empty((T, D), a.dtype), np.empty((T, G), a.dtype)
    own = np.empty((D, G), a.dtype)
    pairs = T if by_pairs else 0
    left_pairs, right_pairs = np.empty((pairs, pairs)), np.empty((pairs, pairs))
    total, one = 0.0, np.empty(1)
    for n in range(N):
        for t in range(T):
            of_d = power(min(at[t] + a_exponents[t - lag] - top, 0)) if t >= lag else 0.0
            for i in range(D):
                left[t, i] = of_a * a[t, n, i]
            for k in range(G):
                right[t, k] = of_d * d[t, n, k]
        if by_pairs:
            wide_left, wide_right = left.astype(np.float64), right.astype(np.float64)
            np.dot(wide_left, wide_left.T, left_pairs)
            np.dot(wide_right, wide_right.T, right_pairs)
            inner(left_pairs, right_pairs, one)
            if one[0] > 1e-4 * np.trace(left_pairs) * np.trace(right_pairs):
                total += one[0]
                continue
        np.dot(left.T, right, own)
        inner(own, own, one)
        total += one[0]
    return 0.5 * np.log2(total) + down + top


@kernel("(t),(k,u,n,h),(t),(t,n,i),(d,t,n,g),(t),(n,t,h)->(four)")
def recurrent_example_norms(x_exponents, states, exponents, steps, deltas, at, dy, out):
    dz_ih, dz_hh = deltas[0], deltas[-1]
    ones = np.ones((steps.shape[0], steps.shape[1], 1), steps.dtype)
    zeros = np.zeros(x_exponents.size, np.int64)
    out[0] = example_norm(steps, dz_ih, x_exponents, 0, at)
    out[1] = example_norm(states[0], dz_hh, exponents, 1, at)
    out[2] = example_norm(ones, dz_ih, zeros, 0, at)
    out[3] = example_norm(ones, dz_hh, zeros, 0, at)


# --- any recurrence -------------------------------------------------------------------------------


def together(log2_norms: np.ndarray) -> np.ndarray:
    """log2 of the norm of all steps, of those of each: (seeds, steps) -> (seeds,)."""
    return 0.5 * np.logaddexp2.reduce(2 * log2_norms, axis=1)


def step_norms(x: np.ndarray) -> np.ndarray:
    """log2 norms of each step of (seeds, n, steps, features): (seeds, steps)."""
    steps = np.ascontiguousarray(x.swapaxes(1, 2))
    return scale.log2_norm(steps.reshape(-1, *steps.shape[2:])).reshape(steps.shape[:2])


def _each_step(scaled: Scaled) -> np.ndarray:
    """Exponents (seeds, steps) of what arrives."""
    x, exponent, *along = scaled
    return along[0] if along else np.repeat(exponent[:, None], x.shape[2], axis=1)


class Recurrence(Layer):
    """What recurrent layers share: X (n, T, i) to the states (n, T, h), from h_0 = 0.

    Parameters are W_ih (i, g h), W_hh (h, g h), b_ih and b_hh (g h,) for g gates. ``recurrent``
    names the scheme that draws W_hh in place of the run's, times ``radius``: orthogonal and
    identity matrices have exactly that spectral radius, those of ``lecun`` tend to it as h grows.
    With several gates that is each gate's block. ``truncation=k`` cuts the cotangent of the state
    after steps k, 2k, ..., as if the state went on from there as a constant (Williams and Peng
    1990); the pullback is then no adjoint.

    Beside the contract's two passes there are two with exponents (seeds, T), int64, between which
    nothing leaves the float range. All of them leave in the tape, as log2 of Frobenius norms over
    batch and features, float64 (seeds, T): ``state_log2_norms`` of h_t; and after a pullback
    ``state_cotangent_log2_norms`` of all of ∂L/∂h_t and ``delta_log2_norms`` of ∂L/∂z_t.

    Raises InputError for ``features`` or ``truncation`` below 1, an unknown scheme and a negative
    ``radius``, ShapeError for an input that has not three axes.
    """

    trainable = True
    along_time = True
    recorded = False  # exponents along time are NumPy's matter
    comfort = 16.0  # log2 of the root mean square beyond which arrays are rescaled
    forward_kernel: Kernel
    pullback_kernel: Kernel
    gates = 1
    carried = 1  # how many states run along time: h, or h and c
    kept = 0  # numbers for each unit that a step keeps for its adjoint beside gates
    separate = False  # do the products with W_ih and with W_hh have different cotangents?
    direct = False  # does h_{t−1} enter h_t beside its product with W_hh?
    example_norms = recurrent_example_norms
    example_norms_reads = (
        *("x_exponents", "states", "exponents", "steps", "deltas", "cotangent_exponents"),
    )

    def __init__(
        self,
        features: int,
        recurrent: str | None = None,
        radius: float = 1.0,
        truncation: int | None = None,
    ):
        for name, value in (("features", features), ("truncation", truncation)):
            if value is not None and value < 1:
                raise InputError(f"{self.name}: {name} must be at least 1; got {value}")
        if not 0 <= radius < math.inf:
            raise InputError(
                f"{self.name}: radius must be a finite number, at least 0; got {radius}"
            )
        if recurrent is not None and recurrent not in SCHEMES:
            raise unknown(f"{self.name}: recurrent", recurrent, SCHEMES)
        self.features, self.recurrent, self.radius = features, recurrent, radius
        self.truncation = truncation
        self._declared: dict = {}

    def constants(self) -> tuple:
        """What the cell's functions receive after their rows."""
        return ()

    @property
    def saturates(self) -> bool:
        return not self.homogeneous

    def declare(self, shape):
        if shape not in self._declared:
            expect_elements(self.name, shape)
            self._declared[shape] = self._shapes(shape)
        return self._declared[shape]

    def _shapes(self, shape) -> Declaration:
        if len(shape) != 3:
            raise ShapeError(
                f"{self.name}: input must have axes (batch, time, features); got shape {shape}"
            )
        (n, T, i), h = shape, self.features
        g = self.gates * h
        bias = Parameter((g,), fan_in=h, fan_out=h, role="bias")
        parameters = {
            "W_ih": Parameter((i, g), fan_in=i, fan_out=h),
            "W_hh": Parameter((h, g), h, h, factor=self.radius, scheme=self.recurrent),
            "b_ih": bias,
            "b_hh": bias,
        }
        saved = {"states": (self.carried, T + 1, n, h), "gates": (T, n, g)}
        saved |= {"kept": (T, n, self.kept * h), "steps": (T, n, i)}
        kept = [(n, T, h), *saved.values(), *(p.shape for p in parameters.values())]
        elements = sum(map(math.prod, kept))
        return Declaration((n, T, h), parameters, saved, elements=elements)

    def forward(self, x, parameters, workspace):
        y, _, tape = self._forward(x, None, parameters, workspace)
        return y, tape

    def forward_along_time(self, x, exponents, parameters, workspace):
        """(y, exponents, tape) for the input x[:, :, t] 2^exponents[:, t].

        The state of step t is y[:, :, t] 2^(the returned exponents[:, t]); parameters are true
        values, without an exponent. Where the recurrence is not positively homogeneous the state
        has no exponents: they are 0.
        """
        return self._forward(x, np.ascontiguousarray(exponents, np.int64), parameters, workspace)

    def pullback(self, dy, tape, workspace, watch=None):
        dx, _, gradients = self._pullback(dy, None, tape, workspace, watch)
        return dx, gradients

    def pullback_along_time(self, dy, exponents, tape, workspace, watch=None):
        """(dx, exponents, gradients) for the cotangent dy[:, :, t] 2^exponents[:, t].

        The cotangent of x at step t is dx[:, :, t] 2^(the returned exponents[:, t]); the true
        gradient of parameter k is gradients[k] 2^(tape["gradient_exponents"][:, k]), int64
        (seeds, 4), also for ``watch``.
        """
        return self._pullback(dy, np.array(exponents, np.int64), tape, workspace, watch)

    def forward_scaled(self, scaled, parameters, workspace, comfort=None):
        x, exponent, *_ = scaled
        y, along, tape = self.forward_along_time(x, _each_step(scaled), parameters, workspace)
        tape["x_exponent"] = exponent
        norms = together(tape["state_log2_norms"]) - exponent
        return (y, along[:, -1].copy(), along), tape, norms

    def pullback_scaled(self, scaled, tape, workspace, watch=None):
        dy, exponent, *_ = scaled
        tape["cotangent_exponent"] = exponent
        dx, along, gradients = self.pullback_along_time(
            dy, _each_step(scaled), tape, workspace, watch
        )
        for number, (name, gradient) in enumerate(gradients.items()):
            # In the units of the block's exponents, for whoever keeps them.
            own = tape["gradient_exponents"][:, number] - exponent
            scale.shift(gradient, own - tape["x_exponent"] if name[0] == "W" else own)
        norms = together(step_norms(dx) + along) - exponent
        return (dx, along.max(axis=1), along), gradients, norms

    def measured(self, tape, dy, dx, gradients) -> Measured:
        """What the pullback shows, with the exponents that steps and gradients have."""
        received, shared = tape["x_exponent"][:, None], tape["cotangent_exponent"][:, None]
        delta = together(tape["delta_log2_norms"])
        passed = together(step_norms(dx) + tape["cotangent_exponents"])
        norms = np.stack([scale.log2_norm(gradient) for gradient in gradients.values()], axis=1)
        norms += tape["gradient_exponents"]
        examples = np.empty(norms.shape)
        self.example_norms.run(*(tape[k] for k in self.example_norms_reads), dy, examples)
        for number, name in enumerate(gradients):
            if name.startswith("W"):  # in the units of the input, too
                norms[:, number : number + 1] -= received
                examples[:, number : number + 1] -= received
        every = np.column_stack([delta, passed, norms])
        terms = self._terms(tape, delta)
        return Measured(every - shared, examples - shared, (), terms - shared)

    def _terms(self, tape, delta):
        """log2 norms (S, gradients) of the terms of gradients, even over a step's examples."""
        received = tape["x_exponent"][:, None]
        examples = 0.5 * np.log2(tape["x"].shape[1])
        inputs = step_norms(tape["x"]) + (tape["x_exponents"] - received)
        states, deltas = tape["state_log2_norms"], tape["delta_log2_norms"]
        of_input = together(inputs + deltas) - examples
        nothing = np.full((len(deltas), 1), -np.inf)
        before = np.hstack([nothing, states[:, :-1]]) - received
        of_state = together(before + deltas) - examples
        return np.column_stack([of_input, of_state, delta, delta])

    def _forward(self, x, exponents, parameters, workspace):
        declaration, seeds = self.declare(x.shape[1:]), x.shape[:1]
        if parameters.keys() != declaration.parameters.keys():
            raise ShapeError(
                f"{self.name}: parameters must be {list(declaration.parameters)}; "
                f"got {list(parameters)}"
            )
        for name, parameter in declaration.parameters.items():
            expect_shape(self.name, name, parameters[name].shape, seeds + parameter.shape)
        times = seeds + x.shape[2:3]
        scaled = exponents is not None
        if scaled:
            expect_shape(self.name, "exponents", exponents.shape, times)
        y = workspace.take(seeds + declaration.output, x.dtype)
        saved = {k: workspace.take(seeds + s, x.dtype) for k, s in declaration.saved.items()}
        along = {
            "x_exponents": exponents if scaled else np.zeros(times, np.int64),
            "exponents": np.empty(times, np.int64),
            "state_log2_norms": np.empty(times),
        }
        states, gates, kept, steps = saved.values()
        product = workspace.take(seeds + gates.shape[2:], x.dtype)
        _, *of_states = (parameters[name] for name in declaration.parameters)
        project.run(x, parameters["W_ih"], steps, gates)
        self.forward_kernel.run(
            *(*of_states, *along.values(), states, gates, kept, product),
            *(self.comfort, self.homogeneous, self.constants()),
        )
        output.run(states, along["exponents"], y, scaled)
        workspace.give(product)
        return y, along["exponents"], {"x": x, "y": y, **parameters, **saved, **along}

    def _pullback(self, dy, exponents, tape, workspace, watch):
        x, states, gates, steps = (tape[name] for name in ("x", "states", "gates", "steps"))
        expect_shape(self.name, "dy", dy.shape, tape["y"].shape)
        declaration, seeds, times = self.declare(x.shape[1:]), x.shape[:1], tape["exponents"].shape
        scaled = exponents is not None
        if scaled:
            expect_shape(self.name, "exponents", exponents.shape, times)

        def take(*shape):
            return workspace.take(seeds + shape, x.dtype)

        dx = take(*x.shape[1:])
        gradients = {k: take(*p.shape) for k, p in declaration.parameters.items()}
        along = {
            "cotangent_exponents": exponents if scaled else np.empty(times, np.int64),
            "state_cotangent_log2_norms": np.empty(times),
            "delta_log2_norms": np.empty(times),
        }
        of_gradients = np.empty((*seeds, len(gradients)), np.int64)
        deltas = take(1 + self.separate, *gates.shape[1:])
        _, k, _, n, h = states.shape
        cotangents, carry = take(k, n, h), take(n, h)
        scratch = take(max(math.prod(steps.shape[1:]), math.prod(gates.shape[1:])))
        self.pullback_kernel.run(
            *(tape["W_hh"], states, gates, tape["kept"], dy, *along.values()),
            *(deltas, cotangents, carry, scaled, self.comfort, self.truncation or 0),
            *(self.direct, self.constants()),
        )
        gather_gradients.run(
            *(tape["W_ih"], tape["x_exponents"], states, tape["exponents"], steps, deltas),
            *(along["cotangent_exponents"], dx, *gradients.values(), of_gradients, scratch, scaled),
        )
        tape |= {**along, "gradient_exponents": of_gradients}
        buffers = [deltas, cotangents, carry, scratch]
        if watch is not None:
            # Cotangents of the products are there for the watch alone.
            watch(self, {**tape, "deltas": deltas}, dy, dx, gradients)
            buffers += gradients.values()
        for array in buffers:
            workspace.give(array)
        return dx, along["cotangent_exponents"], gradients


# --- the simple recurrence ------------------------------------------------------------------------


def recurrent_forward(row, activation):
    z, p, b_ih, b_hh, h = row.z[0], row.p[0], row.b_ih[0], row.b_hh[0], row.h
    of_x, of_h, of_b = row.powers
    for j in range(h.size):
        bias = of_b * (np.float64(b_ih[j]) + b_hh[j])
        z[j] = of_x * z[j] + of_h * p[j] + bias
    if activation == _TANH:
        for j in range(h.size):
            h[j] = tanh_and_slope(z[j])[0]
    elif activation == _RELU:
        for j in range(h.size):
            h[j] = 0 if z[j] <= 0 else z[j]
    else:
        copy(z, h)


def recurrent_adjoint(row, activation):
    z, dh, dz = row.z[0], row.dh, row.dz[0]
    if activation == _TANH:
        for j in range(dh.size):
            dz[j] = dh[j] * tanh_and_slope(z[j])[1]
    elif activation == _RELU:
        for j in range(dh.size):
            dz[j] = dh[j] if z[j] > 0 else 0
    else:
        copy(dh, dz)


class Recurrent(Recurrence):
    """h_t = φ(x_t W_ih + b_ih + h_{t−1} W_hh + b_hh); see :class:`Recurrence`.

    ``activation`` is tanh, relu or identity, InputError otherwise; the last two are positively
    homogeneous, so that states keep an exponent too.
    """

    name = "recurrent"
    forward_kernel, pullback_kernel = cell(recurrent_forward, recurrent_adjoint)

    def __init__(self, features: int, activation: str = "tanh", **options):
        super().__init__(features, **options)
        if activation not in ACTIVATIONS:
            raise unknown("recurrent: activation", activation, ACTIVATIONS)
        self.activation, self.homogeneous = activation, activation != "tanh"

    def constants(self):
        return (ACTIVATIONS.index(self.activation),)


# --- after the sequence ---------------------------------------------------------------------------


@kernel("(n,t,h)->(n,h)")
def last_step_forward(x, y):
    for n in range(y.shape[0]):
        copy(x[n, -1], y[n])


@kernel("(n,h)->(n,t,h)")
def last_step_pullback(dy, dx):
    dx.fill(0)
    for n in range(dy.shape[0]):
        copy(dy[n], dx[n, -1])


class LastStep(Primitive):
    """The last step of X (n, T, h): (n, h). Raises ShapeError for other axes."""

    name = "last_step"
    homogeneous = True
    forward_kernel, pullback_kernel = last_step_forward, last_step_pullback
    pullback_reads = ()

    def shapes(self, shape):
        if len(shape) != 3:
            raise ShapeError(
                f"last_step: input must have axes (batch, time, features); got shape {shape}"
            )
        return Declaration(output=(shape[0], shape[2]))
