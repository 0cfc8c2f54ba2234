"""Recurrent nets: the cotangent of the state against time, `flowlab.theory.recurrence`.

``dh_log10_norm`` is predicted in the last recurrent layer, in rows with ``time``; norms of whole
layers are not. With rates counted backward from the last step, where the net is read:

* *Identity activation, orthogonal or identity W_hh*: the radius per step, exactly, for any depth
  and data.
* *Identity activation, Gaussian W_hh* (lecun, he, ...): powers of one matrix. While fewer steps
  than sqrt(N) are counted, g^2 = N Var(W) per step; from 2 sqrt(N) on 2 log rho
  (`gaussian_late_log_rate`), whose slope is predicted over those late steps if they are half of
  all, with an error of 0.1 per step (the approach to it). In between theory is silent.
* *ReLU with identity W_hh of radius 1*, no biases: the arcsine law of `reflected_walk`.
* *tanh and ReLU, LSTM, GRU* with orthogonal or Gaussian W_hh: large width along the trajectory from
  h_0 = 0 (`recurrent_flow`, `lstm_flow`, `gru_flow`), fresh inputs deciding anew at every step
  which units pass. Error of a step: what finite width adds, `kappa`/(2N) (2/N with gates, whose
  kappa is not derived), and of Gaussian weights log(2)/(2 sqrt(N)), as powers of W double beyond
  g^2 by 2 sqrt(N) steps.

But for the first, those need gaussian data (inputs drawn afresh), one recurrent layer and no drawn
biases; mean field counts at most 2 sqrt(N) steps of Gaussian W_hh back. Silent: norms, truncated
backpropagation, other settings. The level is that of the read-out's cotangent; under a loss with
logits of the last state's mean-field variance, for linear nets as if they were small.
"""

import math

import numpy as np
import pandas as pd

from flowlab.prediction.curve import SHALLOW, unpredicted
from flowlab.prediction.inputs import TO_LOG10, Run, moments
from flowlab.statistics import COTANGENT
from flowlab.theory.finite_width import kappa
from flowlab.theory.recurrence import (
    gaussian_late_log_rate,
    gru_flow,
    lstm_flow,
    recurrent_flow,
    reflected_walk,
)

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
    into, back = run.weights(settings.depth - 2)
    scheme = network.recurrent or settings.init.name
    g2 = run.sigma2(back)
    if scheme in _SCHEMES:  # gates stand side by side, each of them a scaled isometry
        gain = 1.0 if network.recurrent else settings.init.gain
        g2 = (gain * network.radius) ** 2
    linear = network.name == "rnn" and settings.activation == "identity"
    counted = np.arange(steps)[::-1]
    if linear and scheme in _SCHEMES:
        return counted * math.log(g2), 0.0, 0.0
    for fails, because in (
        (
            settings.data.name != "gaussian",
            "theory takes inputs as drawn afresh at every step; data=gaussian has a prediction",
        ),
        (
            not run.unbiased,
            "theory has no biases, which are the same at every step; init=lecun has a prediction",
        ),
        (
            settings.depth > 2,
            "theory takes inputs as drawn afresh at every step and the states of a layer below are "
            "not; depth=2 has a prediction",
        ),
    ):
        if fails:
            return because
    reach = counted <= math.sqrt(width)
    if linear:
        late = counted >= 2 * math.sqrt(width)
        if 2 * late.sum() >= steps:
            rate = gaussian_late_log_rate(width, g2)
            return np.where(late, counted * rate, math.nan), 0.0, 0.1
        return np.where(reach, counted * math.log(g2), math.nan), 0.0, 2 / width
    if scheme == "identity":
        relu = network.name == "rnn" and settings.activation == "relu"
        if relu and g2 == 1.0:
            return reflected_walk(steps), 0.0, 0.0
        return (
            "with an identity for recurrent weights units never mix, which is derived for ReLU of "
            "radius 1 alone; network.recurrent=orthogonal has a prediction"
        )
    q, _ = moments(run.inputs().reshape(1, -1, into.shape[0]))
    inputs = run.sigma2(into) * q
    orthogonal = scheme in _SCHEMES
    match network.name:
        case "rnn":
            flow = recurrent_flow(settings.activation, g2, inputs, steps)
            spread = kappa(settings.activation, inputs, orthogonal) / 2
        case "lstm":
            flow, spread = lstm_flow(g2, inputs, steps, network.forget_bias), 2.0
        case "gru":
            flow, spread = gru_flow(g2, inputs, steps), 2.0
    log_square = np.append(np.cumsum(flow.log_rate[::-1])[::-1], 0.0)
    within = counted <= (steps if orthogonal else 2 * math.sqrt(width))
    # Of Gaussian weights the square doubles beyond g^2 by 2 sqrt(N) steps.
    error = spread / width + (0.0 if orthogonal else math.log(2) / (2 * math.sqrt(width)))
    return np.where(within, log_square, math.nan), float(flow.square[-1]), error
