"""Gradient flow through time: h_{t+1} = phi(W h_t + inputs), and gated cells at initialization.

Rates are factors of the squared cotangent per time step going backward. The weights are tied: over
t steps the cotangent meets powers of one matrix. While t is well below sqrt(N) those of a Gaussian
W act like independent draws, and the rate is the mean-field chi = g^2 E phi'^2, g^2 = N Var(W)
(measured: E||W^t x||^2 is g^{2t} within 10 % up to t = sqrt(N), and double at t = 2 sqrt(N)). Later
the largest eigenvalue takes over: 2 log rho per step where phi' = 1 (linear, or tanh of small
signals). An orthogonal W, or a ReLU net with W = 1 and positive preactivations, has rate 1 exactly.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit, gammainc, gammaln

from flowlab.errors import InputError
from flowlab.theory.activations import Activation, get_activation
from flowlab.theory.mean_field import chi, q_fixed_point, q_map
from flowlab.theory.moments import NODES, WEIGHTS


def spectral_radius(weights: np.ndarray) -> np.ndarray:
    """Largest modulus of an eigenvalue, (...) for weights (..., N, N)."""
    return np.abs(np.linalg.eigvals(weights)).max(axis=-1)


def largest_singular_value(weights: np.ndarray) -> np.ndarray:
    """The spectral norm, (...) for weights (..., N, M)."""
    return np.linalg.norm(weights, 2, axis=(-2, -1))


def late_log_rate(weights: np.ndarray) -> np.ndarray:
    """2 log rho, (...): the log of the rate after many steps where phi' = 1 throughout."""
    with np.errstate(divide="ignore"):
        return 2 * np.log(spectral_radius(weights))


def largest_slope(activation: str | Activation) -> float:
    """sup |phi'|: the gamma of Pascanu et al. (2013), 1 for tanh and ReLU, 1/4 for sigmoid."""
    return float(np.abs(get_activation(activation).derivative(np.linspace(-50, 50, 200_001))).max())


def rate_bound(weights: np.ndarray, activation: str | Activation) -> np.ndarray:
    """(sigma_max sup|phi'|)^2, (...): no step's rate exceeds it (Pascanu et al. 2013, section 2.1).

    Below 1 gradients must vanish; above 1 they may explode or not: necessary, not sufficient.
    """
    return (largest_singular_value(weights) * largest_slope(activation)) ** 2


def gaussian_late_log_rate(width: int, g2: float = 1.0) -> float:
    """E 2 log rho of a Gaussian W, width x width entries of variance g2/width.

    log g2 plus what finite width adds, 0.08 to 0.12 for widths of 16 to 256: the law of the largest
    modulus is taken as prod_k P(k, N x)^{1/2}, x = rho^2/g2, the square root of the complex
    matrix's (Kostlan 1992), which is right at the edge for large N (Rider & Sinclair 2014). It
    comes out low by about 1/N (0.03 at 32, 0.02 at 64), as simulation says.
    Raises `InputError` for width < 1 or g2 <= 0.
    """
    if width < 1:
        raise InputError(f"width must be at least 1; got {width}")
    if not g2 > 0:
        raise InputError(f"g2 must be above 0; got {g2}")
    log_x = np.linspace(-9, 4, 4001) / np.sqrt(width)
    k = np.arange(max(1, int(width - 12 * np.sqrt(width) - 40)), width + 1)
    with np.errstate(divide="ignore"):
        log_cdf = np.log(gammainc(k[:, None], width * np.exp(log_x))).sum(0) / 2
    # E log x = (upper end) - integral of the distribution function.
    return float(np.log(g2) + log_x[-1] - np.trapezoid(np.exp(log_cdf), log_x))


def untied_rate(activation: str | Activation, g2: float, input_variance: float = 0.0) -> float:
    """Mean-field rate g^2 E phi'^2 at the variance's fixed point, valid for t well below sqrt(N).

    input_variance: of the inputs' share of a preactivation, drawn afresh at every step.
    """
    act = get_activation(activation)
    return chi(act, q_fixed_point(act, g2, input_variance), g2)


def gated_rate(
    bias: float,
    variance: float,
    candidate_rate: float,
    *,
    gate_sigma_w2: float = 0.0,
    gap: float = 0.0,
) -> float:
    """Rate of h' = u h + (1 - u) c(h) with u = sigmoid(gate), gate ~ N(bias, variance).

    E u^2 + E (1-u)^2 candidate_rate + gate_sigma_w2 E [u (1-u)]^2 gap: untied weights, gates
    independent of h unit by unit. candidate_rate: chi of c (for a GRU whose reset gate is open);
    gap: E (h - c)^2, through which the gate's own weights, of N Var = gate_sigma_w2, carry
    gradient. variance = 0 is the constant gate of Chen et al. (2018), u^2 + (1-u)^2 chi.
    Raises `InputError` for a negative variance.
    """
    u = _gate(bias, variance)
    rate = (
        u**2 + (1 - u) ** 2 * candidate_rate + gate_sigma_w2 * gap * (u * (1 - u)) ** 2
    ) @ WEIGHTS
    return float(rate)


@dataclass(frozen=True)
class GatePath:
    """log of ||dc_0||^2/||dc_t||^2 along a path of gates alone.

    typical: 2 t E log f, of one unit; fresh: t log E f^2, the many units' norm where every step
    draws its gates anew; frozen: log E f^{2t}, where a unit keeps its gate.
    """

    typical: float
    fresh: float
    frozen: float


def gate_path(bias: float, variance: float, steps: int) -> GatePath:
    """The direct cell path of an LSTM, prod f_t, or of a GRU, prod u_t, with the h-path cut.

    f = sigmoid(gate), gate ~ N(bias, variance) over units. Raises `InputError` for a negative
    variance or steps.
    """
    if steps < 0:
        raise InputError(f"steps must be at least 0; got {steps}")
    _gate(bias, variance)
    log_f = -np.logaddexp(0, -(bias + np.sqrt(variance) * NODES))
    return GatePath(
        typical=float(2 * steps * (log_f @ WEIGHTS)),
        fresh=float(steps * np.log(np.exp(2 * log_f) @ WEIGHTS)),
        frozen=_log_mean(2 * steps * log_f),
    )


def _log_mean(log_values):
    top = log_values.max()
    return float(top + np.log(np.exp(log_values - top) @ WEIGHTS))


def _gate(bias, variance):
    if not variance >= 0:
        raise InputError(f"variance must be at least 0; got {variance}")
    return expit(bias + np.sqrt(variance) * NODES)


@dataclass(frozen=True)
class TimeFlow:
    """States and cotangents along T steps from h_0 = 0, read at the last.

    square: (T,) E h_t^2; log_rate: (T - 1,), entry t - 1 the log of E||dL/dh_t||^2 over
    E||dL/dh_{t+1}||^2.
    """

    square: np.ndarray
    log_rate: np.ndarray


def recurrent_flow(
    activation: str | Activation, g2: float, input_variance: float, steps: int
) -> TimeFlow:
    """h_t = phi(W h_{t-1} + inputs), untied: q_t = g2 E phi(z_{t-1})^2 + input_variance.

    The rate from step t + 1 to t is g2 E phi'(z_{t+1})^2. Inputs are drawn afresh at every step.
    """
    act = get_activation(activation)
    q = [float(input_variance)]
    for _ in range(steps - 1):
        q.append(q_map(act, q[-1], g2, input_variance))
    square = np.array([q_map(act, value, 1.0) for value in q])
    return TimeFlow(square, np.log([chi(act, value, g2) for value in q[1:]]))


class _TiedWords:
    """E of a squared norm under x <- (d_t + W' e_t) x + noise_t x with one W for all steps.

    d_t and e_t are diagonal matrices' means, noise_t the diagonals' fluctuation, of relative square
    ``kick``. Words of different lengths in W are orthogonal and those of equal length add up before
    they are squared: (d + W'e)^k has the square sum_j binomial(k, j)^2 d^{2(k-j)} (g e)^{2j}, more
    than (d^2 + g^2 e^2)^k. What a kick makes starts anew.
    """

    def __init__(self, steps: int, start: float):
        self.words = np.zeros((steps + 1, steps + 1))  # (kick, length): amplitudes
        self.words[0, 0], self.kicks = np.sqrt(start), 1

    @property
    def square(self) -> float:
        return float(np.square(self.words).sum())

    def step(self, direct: float, tied: float, kick: float) -> None:
        """One step; tied: g e; kick: the square of what is added afresh."""
        longer = tied * self.words[:, :-1]
        self.words *= direct
        self.words[:, 1:] += longer
        self.words[self.kicks, 0] = np.sqrt(max(kick, 0.0))
        self.kicks += 1


def lstm_flow(g2: float, input_variance: float, steps: int, forget_bias: float = 0.0) -> TimeFlow:
    """An LSTM's states and cotangents at large width, without other biases; inputs drawn afresh.

    With v_t = g2 E h_{t-1}^2 + input_variance the variance of the gates' preactivations, all four
    and the cell independent and the cell Gaussian,

        E c_t^2 = E f^2 E c_{t-1}^2 + E i^2 E g^2,    E h_t^2 = E o^2 E tanh^2 c_t.

    Backward dc_t = f_{t+1} dc_{t+1} + b_t dh_t with b_t = o tanh'(c_t), and dh_t = W'(the gates'
    cotangents), each of its gate's slope times dc_{t+1}, of o's dh_{t+1}. The weights are the same
    at every step: f and, through the candidate's weights, b i (1 - g^2) have means that add up
    (`_TiedWords`); the other paths' means are zero, and that c persists in them is left out.
    """
    cells, squares, gates = [0.0], [], []
    for _ in range(steps):
        v = input_variance + g2 * (squares[-1] if squares else 0.0)
        f, i, g = _open(forget_bias, v), _open(0.0, v), _tanh(v)
        cells.append(f.square * cells[-1] + i.square * g.square)
        squares.append(i.square * _tanh(cells[-1]).square)
        gates.append((f, i, g))
    _, o, _ = gates[-1]
    words = _TiedWords(steps, o.square * _tanh(cells[-1]).slope)  # dc_T, in units of dh_T
    h, log_rate = 1.0, []
    for t in reversed(range(1, steps)):
        (f, i, g), cell, (_, o, _) = gates[t], _tanh(cells[t + 1]), gates[t - 1]
        c, below = words.square, _tanh(cells[t])
        through = i.slope * g.square + f.slope * cells[t] + i.square * g.slope
        before, h = h, g2 * (c * through + h * cell.square * i.slope)
        tied = np.sqrt(g2) * o.mean * below.mean_slope * i.mean * g.mean_slope
        kick = c * (f.square - f.mean**2 - tied**2) + o.square * below.slope * h
        words.step(f.mean, tied, kick)
        log_rate.append(float(np.log(h / before)))
    return TimeFlow(np.array(squares), np.array(log_rate[::-1]))


def gru_flow(g2: float, input_variance: float, steps: int) -> TimeFlow:
    """A GRU's states and cotangents at large width, without biases; inputs drawn afresh.

    h' = (1 - u) n + u h, n = tanh(x-part + r m), m of variance g2 E h^2: the squares of the paths
    through h itself, through u (h - n), through n and through r m add up, as in `gated_rate`; but
    u and, through the candidate's weights, (1 - u) (1 - n^2) r have means, which add up over steps
    as the weights are the same (`_TiedWords`). That h persists in the other paths is left out.
    """
    square, squares, moments = 0.0, [], []
    for _ in range(steps):
        m = g2 * square
        gate = _open(0.0, input_variance + m)
        n = _tanh(input_variance + gate.square * m)
        # sigmoid(-z) has the law of sigmoid(z), and so has 1 - u.
        candidate = gate.square * n.slope * (gate.square + m * gate.slope)
        rate = gate.square + g2 * (candidate + gate.slope * (square + n.square))
        tied = np.sqrt(g2) * gate.mean * n.mean_slope * gate.mean
        moments.append((gate.mean, tied, rate - gate.mean**2 - tied**2))
        square = gate.square * (n.square + square)
        squares.append(square)
    words, log_square = _TiedWords(steps, 1.0), [0.0]
    for direct, tied, kick in reversed(moments[1:]):
        words.step(direct, tied, kick * words.square)
        log_square.append(np.log(words.square))
    return TimeFlow(np.array(squares), np.diff(log_square)[::-1])


def reflected_walk(steps: int) -> np.ndarray:
    """log of E||dL/dh_t||^2 over E||dL/dh_T||^2, t = 1 .. T, of h_t = relu(h_{t-1} + x_t).

    W = 1 (Le et al. 2015). With symmetric continuous x_t drawn afresh, h is a random walk reflected
    at 0, h_t = S_t - min S; a unit's gradient lives while it has not touched 0, that is from where
    S was least. The place of the least is m with probability u_m u_{T-m}, u_m = C(2m, m)/4^m,
    whatever the law of the x_t (Sparre Andersen 1953): the discrete arcsine law.
    """
    m = np.arange(steps + 1)
    log_u = gammaln(2 * m + 1) - 2 * gammaln(m + 1) - m * np.log(4)
    return np.log(np.cumsum(np.exp(log_u + log_u[::-1])))[1:]


@dataclass(frozen=True)
class _Moments:
    """E f, E f^2, E f' and E f'^2 of a Gaussian input."""

    mean: float
    square: float
    mean_slope: float
    slope: float


def _open(bias, variance):
    u = _gate(bias, variance)
    return _moments(u, u * (1 - u))


def _tanh(variance):
    y = np.tanh(np.sqrt(variance) * NODES)
    return _moments(y, 1 - y * y)


def _moments(value, slope):
    return _Moments(*(float(f @ WEIGHTS) for f in (value, value**2, slope, slope**2)))
