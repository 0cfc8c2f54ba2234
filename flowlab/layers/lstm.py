"""Long short-term memory (Hochreiter and Schmidhuber 1997; forget gate, Gers et al. 2000).

    i, f, g, o = σ, σ, tanh, σ (x_t W_ih + b_ih + h_{t−1} W_hh + b_hh),
    c_t = f c_{t−1} + i g,   h_t = o tanh c_t.

Along the cell alone a cotangent is multiplied by f_t at each step. The cotangents of h_t and c_t
have one exponent in common.
"""

import math

from flowlab.errors import InputError
from flowlab.kernel import jit
from flowlab.layers.recurrent import Recurrence, cell, gate, gate_slope, opened
from flowlab.numerics.elementary import like, tanh_and_slope


@jit
def _gates(a):
    return a[0], a[1], a[2], a[3]


# Short loops over few arrays: LLVM turns them into SIMD.


def lstm_forward(row, forget_bias):
    i, f, g, o = _gates(row.z)
    z, p, b_ih, b_hh, before, c, h = row.z, row.p, row.b_ih, row.b_hh, row.c_before, row.c, row.h
    for k in range(4):
        for j in range(h.size):
            z[k, j] = z[k, j] + (b_ih[k, j] + b_hh[k, j]) + p[k, j]
    for j in range(h.size):
        i[j] = gate(i[j])
    for j in range(h.size):
        f[j] = gate(f[j] + like(f[j], forget_bias))
    for j in range(h.size):
        o[j] = gate(o[j])
    for j in range(h.size):
        c[j] = opened(f[j]) * before[j] + opened(i[j]) * tanh_and_slope(g[j])[0]
    for j in range(h.size):
        h[j] = opened(o[j]) * tanh_and_slope(c[j])[0]


def lstm_adjoint(row, forget_bias):
    (i, f, g, o), (di, df, dg, do) = _gates(row.z), _gates(row.dz)
    before, c, dh, dc = row.c_before, row.c, row.dh, row.dc
    for j in range(dh.size):
        tanh_c, slope_c = tanh_and_slope(c[j])
        do[j] = dh[j] * tanh_c * gate_slope(o[j])
        dc[j] = dc[j] + dh[j] * opened(o[j]) * slope_c
    for j in range(dh.size):
        tanh_g, slope_g = tanh_and_slope(g[j])
        di[j] = dc[j] * tanh_g * gate_slope(i[j])
        dg[j] = dc[j] * opened(i[j]) * slope_g
    for j in range(dh.size):
        df[j] = dc[j] * before[j] * gate_slope(f[j])
        dc[j] = dc[j] * opened(f[j])


class LSTM(Recurrence):
    """Long short-term memory; see :class:`Recurrence`.

    ``forget_bias`` is added to the forget gate's preactivation (Jozefowicz et al. 2015 advise 1);
    InputError where it is not finite.
    """

    name = "lstm"
    gates, carried = 4, 2
    forward_kernel, pullback_kernel = cell(lstm_forward, lstm_adjoint)

    def __init__(self, features: int, forget_bias: float = 0.0, **options):
        super().__init__(features, **options)
        if not math.isfinite(forget_bias):
            raise InputError(f"lstm: forget_bias must be a finite number; got {forget_bias}")
        self.forget_bias = float(forget_bias)

    def constants(self):
        return (self.forget_bias,)
