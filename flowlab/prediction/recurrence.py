"""Recurrent nets: the cotangent of the state against time, `flowlab.theory.recurrence`.

``dh_log10_norm`` is predicted in the last recurrent layer, in rows with ``time``; norms of whole
layers are not. With rates counted backward from the last step, where the net is read:

* *Identity activation, orthogonal or identity W_hh*: the radius per step, exactly, for any depth
  and data.
* *Identity activation, Gaussian W_hh* (lecun, he, ...): powers of one matrix. While fewer steps
  than sqrt(N) are counted, g^2 = N Var(W) per step; from 2 sqrt(N) on 2 log rho
  (`gaussian_late_log_rate`), whose slope is predicted over those late steps if they are half of
  all, with an error of 0.1 per step (the approach to it). In between theory is silent.
* *All else*: large width, by sampled units (`flowlab.theory.dynamic_mean_field`), so
  that inputs may be alike from step to step, biases stay and layers read the states below. Plain
  cells whose weights mix need no sampling: their variances follow one another (`_plain`). Error of
  a step: what finite width adds, `kappa`/(2N) (2/N with gates, whose kappa is not derived), of the
  sample 0.01, and of Gaussian weights log(2)/(2 sqrt(N)), as powers of W double beyond g^2 by
  2 sqrt(N) steps; mean field counts at most so many back.

Silent: norms, truncated backpropagation. The level is that of the read-out's cotangent; under a
loss with logits of the last state's mean-field variance, for linear nets as if they were small.
"""

import math

import numpy as np
import pandas as pd
from scipy.special import logsumexp

from flowlab.prediction.curve import SHALLOW, unpredicted
from flowlab.prediction.inputs import TO_LOG10, Run
from flowlab.schema import COTANGENT
from flowlab.theory.activations import Activation, get_activation
from flowlab.theory.dynamic_mean_field import Layer, sampled_flow
from flowlab.theory.finite_width import kappa
from flowlab.theory.one_point import one_point
from flowlab.theory.recurrence import gaussian_late_log_rate

_EXAMPLES, _SAMPLED = 64, 8
_SCHEMES = ("orthogonal", "delta_orthogonal", "identity")


def predict(run: Run) -> pd.DataFrame | str:
    """The layers' rows without a prediction, then one row per step of the last recurrent layer."""
    settings, steps = run.settings, run.settings.network.steps
    cut = settings.network.truncation
    if settings.depth < 2:
        return SHALLOW
    if steps < 2:
        return "one step has no way through time; network.steps=2 has a prediction"
    if settings.norm != "none":
        return (
            "theory follows a cotangent through time alone and a normalization stands between "
            "layers; norm=none has a prediction"
        )
    if (cut or steps) < steps:
        return (
            "truncated backpropagation cuts the way that theory follows; "
            "network.truncation=null has a prediction"
        )
    told = _log_squares(run, steps)
    if isinstance(told, str):
        return told
    log_square, last_square, error = told
    readout = run.maps(-1)[0][0]
    log_q = math.log(readout * last_square) if last_square > 0 else -700.0
    level = run.top(1, log_q)[0] + math.log(readout)
    rows = pd.DataFrame(
        {
            "run": settings.run(),
            "layer": settings.depth - 1,
            "op": "state",
            "time": np.arange(1, steps + 1),
            COTANGENT: (level + log_square) * TO_LOG10,
            "slope_error": error * TO_LOG10,
        }
    )
    table = pd.concat([unpredicted(run), rows], ignore_index=True)
    return table.assign(time=table["time"].astype("Int64"))


def _log_squares(run: Run, steps: int) -> tuple[np.ndarray, float, float] | str:
    """log of E||dh_t||^2 over E||dh_T||^2 (T,), E h_T^2, and the error of a step's log rate."""
    settings, network, width = run.settings, run.settings.network, run.settings.width
    layers = [_layer(run, block) for block in range(settings.depth - 1)]
    last, isometric = layers[-1], _scheme(run) in _SCHEMES
    counted = np.arange(steps)[::-1]
    if network.name == "rnn" and settings.activation == "identity":
        log_g2 = math.log(last.g2)
        if isometric:
            return counted * log_g2, 0.0, 0.0
        late = counted >= 2 * math.sqrt(width)
        if 2 * late.sum() >= steps:
            rate = gaussian_late_log_rate(width, last.g2)
            return np.where(late, counted * rate, math.nan), 0.0, 0.1
        reach = counted <= math.sqrt(width)
        return np.where(reach, counted * log_g2, math.nan), 0.0, 2 / width
    x = run.inputs()
    x = x[:, : max(1, _EXAMPLES // len(x))].reshape(-1, *x.shape[2:])[:_EXAMPLES]
    inputs = x @ x.transpose(0, 2, 1) / x.shape[2]
    if network.name == "rnn" and not last.identity:
        square, log_square, q = _plain(get_activation(settings.activation), layers, inputs)
        spread = kappa(settings.activation, q, isometric) / 2
    else:
        act = get_activation(settings.activation) if network.name == "rnn" else None
        spread_out = inputs[:: max(1, len(inputs) // _SAMPLED)][:_SAMPLED]
        try:
            with np.errstate(over="raise"):
                flow = sampled_flow(
                    network.name, layers, spread_out, act, width * settings.batch_size
                )
        except FloatingPointError:
            return "sampled units leave the float range; init.gain=1 has a prediction"
        square, log_square = flow.square[-1], flow.log_square
        spread = 2.0 + 0.01 * width
    if last.identity:  # units that differ by so much are few: half of what their tail carries
        tail = float(np.abs(flow.tail).max()) / (2 * max(steps - 1, 1))
        spread += width * tail
        isometric = True
    within = counted <= (steps if isometric else 2 * math.sqrt(width))
    # Of Gaussian weights the square doubles beyond g^2 by 2 sqrt(N) steps.
    error = spread / width + (0.0 if isometric else math.log(2) / (2 * math.sqrt(width)))
    within &= np.isfinite(log_square)
    return np.where(within, log_square, math.nan), float(square), error


def _scheme(run: Run) -> str:
    return run.settings.network.recurrent or run.settings.init.name


def _layer(run: Run, block: int) -> Layer:
    """A recurrent layer's second moments."""
    network, (into, back) = run.settings.network, run.weights(block)
    g2, scheme = run.sigma2(back), _scheme(run)
    if scheme in _SCHEMES:  # gates stand side by side, each of them a scaled isometry
        gain = 1.0 if network.recurrent else run.settings.init.gain
        g2 = (gain * network.radius) ** 2
    parameters = [p for own in run.parameters[block] for p in own.values()]
    biases = sum(run.sigma2(p) for p in parameters if p.role == "bias")
    return Layer(run.sigma2(into), g2, biases, scheme == "identity", network.forget_bias)


def _plain(act: Activation, layers: list[Layer], inputs: np.ndarray):
    """E h_T^2, log E||dh_t||^2 over E||dh_T||^2 (T,) and the last q, of weights that mix units.

    q_t = sigma2_in E x_t^2 + sigma2_b + g2 E h_{t-1}^2 of each example by itself, and a step's rate
    is g2 E phi'(z_{t+1})^2: what z_t is correlated with does not matter.
    """
    moments = one_point(act)
    with np.errstate(divide="ignore"):
        log_square = np.log(np.einsum("ett->et", inputs))
        for layer in layers:
            log_in, log_g2, log_b = np.log([layer.sigma2_in, layer.g2, layer.sigma2_b])
            own, before, log_q = np.logaddexp(log_in + log_square, log_b), -np.inf, []
            log_square = np.empty_like(own)
            for t in range(own.shape[1]):
                log_q.append(np.logaddexp(own[:, t], log_g2 + before))
                log_square[:, t] = before = moments(log_q[-1])[0]
    rates = math.log(layers[-1].g2) + moments(np.array(log_q[1:]))[1]  # (T - 1, examples)
    summed = np.cumsum(rates[::-1], axis=0)[::-1]
    back = np.append(logsumexp(summed, axis=1) - math.log(summed.shape[1]), 0.0)
    last = logsumexp(log_square[:, -1]) - math.log(len(log_square))
    return math.exp(min(last, 600.0)), back, math.exp(np.clip(np.mean(log_q[-1]), -600.0, 600.0))
