"""Long short-term memory (Hochreiter and Schmidhuber 1997; forget gate, Gers et al. 2000).

    i, f, g, o = σ, σ, tanh, σ (x_t W_ih + b_ih + h_{t−1} W_hh + b_hh),
    c_t = f c_{t−1} + i g,   h_t = o tanh c_t.

Along the cell alone a cotangent is multiplied by f_t at each step. The cotangents of h_t and c_t
have one exponent in common.
"""

import math

import numpy as np

from flowlab.errors import InputError
from flowlab.kernel import kernel
from flowlab.layers.recurrent import (
    Recurrence,
    begin,
    excess,
    finish,
    gate,
    gate_slope,
    gather,
    hand_on,
    log2_norm,
    nonzero,
    opened,
    shift,
)
from flowlab.numerics.elementary import like, tanh_and_slope


@kernel("(n,t,i),(i,g),(h,g),(g),(g)->(n,t,h),(t),(t),(t),(u,n,h),(t,n,g),(u,n,h),(t,n,i),(n,g)")
def lstm_forward(
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
    cells,
    steps,
    product,
    scaled,
    comfort,
    forget_bias,
):
    begin(x, W_ih, x_exponents, states, gates, steps, scaled)
    cells[0].fill(0)
    H = states.shape[2]
    for t in range(gates.shape[0]):
        np.dot(states[t], W_hh, product)
        shift(gates[t], x_exponents[t])
        for n in range(x.shape[0]):
            z, p = gates[t, n], product[n]
            for k in range(z.size):
                z[k] = z[k] + (b_ih[k] + b_hh[k]) + p[k]
            zi, zf, zg, zo = z[:H], z[H : 2 * H], z[2 * H : 3 * H], z[3 * H :]
            before, c, h = cells[t, n], cells[t + 1, n], states[t + 1, n]
            # Short loops over few arrays: LLVM turns them into SIMD.
            for j in range(H):
                zi[j] = gate(zi[j])
            for j in range(H):
                zf[j] = gate(zf[j] + like(zf[j], forget_bias))
            for j in range(H):
                zo[j] = gate(zo[j])
            for j in range(H):
                c[j] = opened(zf[j]) * before[j] + opened(zi[j]) * tanh_and_slope(zg[j])[0]
            for j in range(H):
                h[j] = opened(zo[j]) * tanh_and_slope(c[j])[0]
        log2_norm(states[t + 1], norms[t : t + 1])
        exponents[t] = 0
    hand_on(states, exponents, y, scaled)


@kernel(
    "(t),(i,g),(h,g),(u,n,h),(t),(t,n,g),(u,n,h),(t,n,i),(n,t,h)->(n,t,i),(i,g),(h,g),(g),(g),"
    "(t),(t),(t),(four),(t,n,g),(t,n,g),(n,h),(n,h),(n,h),(t,n,i)"
)
def lstm_pullback(
    x_exponents,
    W_ih,
    W_hh,
    states,
    exponents,
    gates,
    cells,
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
    dc,
    dsteps,
    scaled,
    comfort,
    truncation,
    forget_bias,
):
    carry.fill(0)
    dc.fill(0)
    H = dh.shape[1]
    after = np.int64(0)
    for t in range(gates.shape[0] - 1, -1, -1):
        top = gather(dy, t, at[t] if scaled else 0, carry, after, dh)
        if nonzero(dc):
            shift(dh, min(top - after, 0))
            top = max(top, after)
            shift(dc, after - top)
        log2_norm(dh, norms[t : t + 1])
        log2_norm(dc, delta_norms[t : t + 1])
        k = excess(max(norms[t], delta_norms[t]), dh.size, comfort)
        norms[t] += top
        after = at[t] = top + k
        shift(dh, -k)
        shift(dc, -k)
        for n in range(dh.shape[0]):
            q, d = gates[t, n], dz[t, n]
            qi, qf, zg, qo = q[:H], q[H : 2 * H], q[2 * H : 3 * H], q[3 * H :]
            di, df, dg, do = d[:H], d[H : 2 * H], d[2 * H : 3 * H], d[3 * H :]
            before, c, from_h, along = cells[t, n], cells[t + 1, n], dh[n], dc[n]
            for j in range(H):
                tanh_c, slope_c = tanh_and_slope(c[j])
                do[j] = from_h[j] * tanh_c * gate_slope(qo[j])
                along[j] = along[j] + from_h[j] * opened(qo[j]) * slope_c
            for j in range(H):
                tanh_g, slope_g = tanh_and_slope(zg[j])
                di[j] = along[j] * tanh_g * gate_slope(qi[j])
                dg[j] = along[j] * opened(qi[j]) * slope_g
            for j in range(H):
                df[j] = along[j] * before[j] * gate_slope(qf[j])
                along[j] = along[j] * opened(qf[j])
        log2_norm(dz[t], delta_norms[t : t + 1])
        delta_norms[t] += after
        if truncation > 0 and t % truncation == 0:
            carry.fill(0)
            dc.fill(0)
        else:
            np.dot(dz[t], W_hh.T, carry)
    finish(
        *(x_exponents, W_ih, states, exponents, steps, dz, dz, at),
        *(dx, dW_ih, dW_hh, db_ih, db_hh, gradient_exponents, aligned, dsteps, scaled),
    )


class LSTM(Recurrence):
    """Long short-term memory; see :class:`Recurrence`.

    ``forget_bias`` is added to the forget gate's preactivation (Jozefowicz et al. 2015 advise 1);
    InputError where it is not finite.
    """

    name = "lstm"
    gates = 4
    forward_kernel, pullback_kernel = lstm_forward, lstm_pullback

    def __init__(self, features: int, forget_bias: float = 0.0, **options):
        super().__init__(features, **options)
        if not math.isfinite(forget_bias):
            raise InputError(f"lstm: forget_bias must be a finite number; got {forget_bias}")
        self.forget_bias = float(forget_bias)

    def memory(self, n, T):
        return {"cells": (T + 1, n, self.features)}

    def memory_cotangents(self, n):
        return [(n, self.features)]

    def constants(self):
        return (self.forget_bias,)
