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

import numpy as np

from flowlab.errors import InputError, unknown
from flowlab.initializers import SCHEMES
from flowlab.kernel import Kernel, ShapeError, jit, kernel
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
def begin(x, W_ih, x_exponents, states, gates, steps, scaled):
    """Time-major x and X W_ih for all steps; without exponents of x they are 0."""
    for t in range(steps.shape[0]):
        for n in range(x.shape[0]):
            for i in range(x.shape[2]):
                steps[t, n, i] = x[n, t, i]
        if not scaled:
            x_exponents[t] = 0
    states[0].fill(0)
    T, N, G = gates.shape
    np.dot(steps.reshape(T * N, x.shape[2]), W_ih, gates.reshape(T * N, G))


@jit
def hand_on(states, exponents, y, scaled):
    """The states as y (n, t, h), without their exponents unless ``scaled``."""
    for t in range(y.shape[1]):
        k = np.int64(0) if scaled else min(max(exponents[t], -2200), 2000)
        half, rest = power(k // 2), power(k - k // 2)
        for n in range(y.shape[0]):
            for j in range(y.shape[2]):
                y[n, t, j] = states[t + 1, n, j] * half * rest


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


@jit
def finish(
    x_exponents,
    W_ih,
    states,
    exponents,
    steps,
    dz_ih,
    dz_hh,
    at,
    dx,
    dW_ih,
    dW_hh,
    db_ih,
    db_hh,
    gradient_exponents,
    aligned,
    dsteps,
    scaled,
):
    """What all steps share, from the cotangents of the products with W_ih and with W_hh."""
    T, N, G = dz_ih.shape
    np.dot(dz_ih.reshape(T * N, G), W_ih.T, dsteps.reshape(T * N, dx.shape[2]))
    for t in range(T):
        k = np.int64(0) if scaled else min(max(at[t], -2200), 2000)
        half, rest = power(k // 2), power(k - k // 2)
        for n in range(N):
            for i in range(dx.shape[2]):
                dx[n, t, i] = dsteps[t, n, i] * half * rest
    gradient_exponents[0] = summed(steps, dz_ih, x_exponents, 0, at, aligned, dW_ih)
    gradient_exponents[1] = summed(states, dz_hh, exponents, 1, at, aligned, dW_hh)
    gradient_exponents[2] = summed_over_steps(dz_ih, at, aligned[0, 0], db_ih)
    gradient_exponents[3] = summed_over_steps(dz_hh, at, aligned[0, 0], db_hh)
    if not scaled:
        shift(dW_ih, gradient_exponents[0])
        shift(dW_hh, gradient_exponents[1])
        shift(db_ih, gradient_exponents[2])
        shift(db_hh, gradient_exponents[3])
        gradient_exponents.fill(0)


# --- the simple recurrence ------------------------------------------------------------------------


@kernel("(n,t,i),(i,g),(h,g),(g),(g)->(n,t,h),(t),(t),(t),(u,n,h),(t,n,g),(t,n,i),(n,g)")
def recurrent_forward(
    x,
    W_ih,
    W_hh,
    b_ih,
    b_hh,
    y,
    x_exponents,
    exponents,
    norms,
    states,
    gates,
    steps,
    product,
    scaled,
    comfort,
    activation,
):
    begin(x, W_ih, x_exponents, states, gates, steps, scaled)
    biased = nonzero(b_ih) or nonzero(b_hh)
    for t in range(gates.shape[0]):
        z, h = gates[t], states[t + 1]
        np.dot(states[t], W_hh, product)
        before, top = exponents[t - 1] if t > 0 else 0, 0
        if activation != _TANH:
            top = _NOWHERE
            if nonzero(z):
                top = x_exponents[t]
            if nonzero(states[t]):
                top = max(top, before)
            if biased:
                top = max(top, 0)
            if top == _NOWHERE:
                top = before
        of_x, of_h, of_b = power(x_exponents[t] - top), power(before - top), power(-top)
        for n in range(z.shape[0]):
            for j in range(z.shape[1]):
                bias = of_b * (np.float64(b_ih[j]) + b_hh[j])
                z[n, j] = of_x * z[n, j] + of_h * product[n, j] + bias
        if activation == _TANH:
            for n in range(z.shape[0]):
                for j in range(z.shape[1]):
                    h[n, j] = tanh_and_slope(z[n, j])[0]
        elif activation == _RELU:
            for n in range(z.shape[0]):
                for j in range(z.shape[1]):
                    h[n, j] = 0 if z[n, j] <= 0 else z[n, j]
        else:
            copy(z, h)
        log2_norm(h, norms[t : t + 1])
        k = excess(norms[t], h.size, comfort) if activation != _TANH else np.int64(0)
        shift(h, -k)
        norms[t] += top
        exponents[t] = top + k
    hand_on(states, exponents, y, scaled)


@kernel(
    "(t),(i,g),(h,g),(u,n,h),(t),(t,n,g),(t,n,i),(n,t,h)->(n,t,i),(i,g),(h,g),(g),(g),"
    "(t),(t),(t),(four),(t,n,g),(t,n,g),(n,h),(n,h),(t,n,i)"
)
def recurrent_pullback(
    x_exponents,
    W_ih,
    W_hh,
    states,
    exponents,
    gates,
    steps,
    dy,
    dx,
    dW_ih,
    dW_hh,
    db_ih,
    db_hh,
    at,
    norms,
    delta_norms,
    gradient_exponents,
    dz,
    aligned,
    dh,
    carry,
    dsteps,
    scaled,
    comfort,
    truncation,
    activation,
):
    carry.fill(0)
    after = np.int64(0)
    for t in range(gates.shape[0] - 1, -1, -1):
        top = gather(dy, t, at[t] if scaled else 0, carry, after, dh)
        log2_norm(dh, norms[t : t + 1])
        k = excess(norms[t], dh.size, comfort)
        shift(dh, -k)
        norms[t] += top
        after = at[t] = top + k
        z, d = gates[t], dz[t]
        if activation == _TANH:
            for n in range(d.shape[0]):
                for j in range(d.shape[1]):
                    d[n, j] = dh[n, j] * tanh_and_slope(z[n, j])[1]
        elif activation == _RELU:
            for n in range(d.shape[0]):
                for j in range(d.shape[1]):
                    d[n, j] = dh[n, j] if z[n, j] > 0 else 0
        else:
            copy(dh, d)
        log2_norm(d, delta_norms[t : t + 1])
        delta_norms[t] += after
        if truncation > 0 and t % truncation == 0:
            carry.fill(0)
        else:
            np.dot(d, W_hh.T, carry)
    finish(
        *(x_exponents, W_ih, states, exponents, steps, dz, dz, at),
        *(dx, dW_ih, dW_hh, db_ih, db_hh, gradient_exponents, aligned, dsteps, scaled),
    )


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


@kernel("(t),(u,n,h),(t),(t,n,i),(t,n,g),(t,n,g),(t),(n,t,h)->(four)")
def recurrent_example_norms(x_exponents, states, exponents, steps, dz_ih, dz_hh, at, dy, out):
    ones = np.ones((steps.shape[0], steps.shape[1], 1), steps.dtype)
    zeros = np.zeros(x_exponents.size, np.int64)
    out[0] = example_norm(steps, dz_ih, x_exponents, 0, at)
    out[1] = example_norm(states, dz_hh, exponents, 1, at)
    out[2] = example_norm(ones, dz_ih, zeros, 0, at)
    out[3] = example_norm(ones, dz_hh, zeros, 0, at)


# --- layers ---------------------------------------------------------------------------------------


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
    gates = 1
    comfort = 16.0  # log2 of the root mean square beyond which arrays are rescaled
    separate = False  # do the products with W_ih and with W_hh have different cotangents?
    forward_kernel: Kernel
    pullback_kernel: Kernel
    example_norms = recurrent_example_norms
    example_norms_reads = (
        *("x_exponents", "states", "exponents", "steps"),
        *("dz_ih", "dz_hh", "cotangent_exponents"),
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

    def memory(self, n: int, T: int) -> dict[str, tuple[int, ...]]:
        """Shapes of what the forward kernel saves beside states and gates."""
        return {}

    def memory_cotangents(self, n: int) -> list[tuple[int, ...]]:
        """Shapes of the pullback kernel's buffers for what runs along time beside the state."""
        return []

    def constants(self) -> tuple:
        """What both kernels are told at their end."""
        return ()

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
        saved = {"states": (T + 1, n, h), "gates": (T, n, g), **self.memory(n, T)}
        saved["steps"] = (T, n, i)
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
        if watch is None:  # gradients are kept: in the units of the block's exponents
            for number, (name, gradient) in enumerate(gradients.items()):
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
            "x_exponents": exponents if scaled else np.empty(times, np.int64),
            "exponents": np.empty(times, np.int64),
            "state_log2_norms": np.empty(times),
        }
        n, g = x.shape[1], declaration.parameters["b_ih"].shape[0]
        product = workspace.take((*seeds, n, g), x.dtype)
        values = [parameters[name] for name in declaration.parameters]
        arrays = (x, *values, y, *along.values(), *saved.values(), product)
        self.forward_kernel.run(*arrays, scaled, self.comfort, *self.constants())
        workspace.give(product)
        return y, along["exponents"], {"x": x, "y": y, **parameters, **saved, **along}

    def _pullback(self, dy, exponents, tape, workspace, watch):
        x, states, gates = tape["x"], tape["states"], tape["gates"]
        expect_shape(self.name, "dy", dy.shape, tape["y"].shape)
        declaration, seeds, times = self.declare(x.shape[1:]), x.shape[:1], tape["exponents"].shape
        scaled = exponents is not None
        if scaled:
            expect_shape(self.name, "exponents", exponents.shape, times)

        def take(shape):
            return workspace.take(shape, x.dtype)

        dx = take(x.shape)
        gradients = {k: take(seeds + p.shape) for k, p in declaration.parameters.items()}
        along = {
            "cotangent_exponents": exponents if scaled else np.empty(times, np.int64),
            "state_cotangent_log2_norms": np.empty(times),
            "delta_log2_norms": np.empty(times),
            "gradient_exponents": np.empty((*seeds, len(gradients)), np.int64),
        }
        deltas = [take(gates.shape) for _ in range(1 + self.separate)]
        state = seeds + states.shape[2:]
        buffers = [take(gates.shape), take(state), take(state)]
        buffers += [take(seeds + s) for s in self.memory_cotangents(x.shape[1])]
        buffers.append(take(tape["steps"].shape))
        memory = [tape[name] for name in self.memory(*x.shape[1:3])]
        reads = [tape[k] for k in ("x_exponents", "W_ih", "W_hh", "states", "exponents", "gates")]
        arrays = (*reads, *memory, tape["steps"], dy, dx, *gradients.values(), *along.values())
        self.pullback_kernel.run(
            *(*arrays, *deltas, *buffers, scaled, self.comfort, self.truncation or 0),
            *self.constants(),
        )
        tape |= along
        if watch is not None:
            # Cotangents of the products are there for the watch alone.
            watch(self, {**tape, "dz_ih": deltas[0], "dz_hh": deltas[-1]}, dy, dx, gradients)
            buffers += gradients.values()
        for array in (*deltas, *buffers):
            workspace.give(array)
        return dx, along["cotangent_exponents"], gradients


class Recurrent(Recurrence):
    """h_t = φ(x_t W_ih + b_ih + h_{t−1} W_hh + b_hh); see :class:`Recurrence`.

    ``activation`` is tanh, relu or identity, InputError otherwise; the last two are positively
    homogeneous, so that states keep an exponent too.
    """

    name = "recurrent"
    forward_kernel, pullback_kernel = recurrent_forward, recurrent_pullback

    def __init__(self, features: int, activation: str = "tanh", **options):
        super().__init__(features, **options)
        if activation not in ACTIVATIONS:
            raise unknown("recurrent: activation", activation, ACTIVATIONS)
        self.activation, self.homogeneous = activation, activation != "tanh"

    def constants(self):
        return (ACTIVATIONS.index(self.activation),)


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
