"""The gated recurrent unit (Cho et al. 2014), its reset gate after the product as in PyTorch.

    r, u = σ(x_t W_ih + b_ih + h_{t−1} W_hh + b_hh),   m = h_{t−1} W_hn + b_hn,
    n = tanh(x_t W_in + b_in + r m),   h_t = (1 − u) n + u h_{t−1},

with gates in the order r, u, n. The products with W_ih and with W_hh have different cotangents: of
n's part the second is r times the first, which is ∂L/∂z.
"""

import numpy as np

from flowlab.kernel import kernel
from flowlab.layers.recurrent import (
    Recurrence,
    begin,
    copy,
    excess,
    finish,
    gate,
    gate_slope,
    gather,
    hand_on,
    log2_norm,
    opened,
    shift,
)
from flowlab.numerics.elementary import tanh_and_slope


@kernel("(n,t,i),(i,g),(h,g),(g),(g)->(n,t,h),(t),(t),(t),(u,n,h),(t,n,g),(t,n,h),(t,n,i),(n,g)")
def gru_forward(
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
    recalled,
    steps,
    product,
    scaled,
    comfort,
):
    begin(x, W_ih, x_exponents, states, gates, steps, scaled)
    H = states.shape[2]
    br, bu, bn = b_ih[:H], b_ih[H : 2 * H], b_ih[2 * H :]
    cr, cu, cn = b_hh[:H], b_hh[H : 2 * H], b_hh[2 * H :]
    for t in range(gates.shape[0]):
        np.dot(states[t], W_hh, product)
        shift(gates[t], x_exponents[t])
        for n in range(x.shape[0]):
            z, p = gates[t, n], product[n]
            zr, zu, zn = z[:H], z[H : 2 * H], z[2 * H :]
            pr, pu, pn = p[:H], p[H : 2 * H], p[2 * H :]
            before, h, m = states[t, n], states[t + 1, n], recalled[t, n]
            # Short loops over few arrays: LLVM turns them into SIMD.
            for j in range(H):
                zr[j] = gate(zr[j] + (br[j] + cr[j]) + pr[j])
            for j in range(H):
                zu[j] = gate(zu[j] + (bu[j] + cu[j]) + pu[j])
            for j in range(H):
                m[j] = pn[j] + cn[j]
            for j in range(H):
                zn[j] = zn[j] + bn[j] + opened(zr[j]) * m[j]
            for j in range(H):
                h[j] = opened(-zu[j]) * tanh_and_slope(zn[j])[0] + opened(zu[j]) * before[j]
        log2_norm(states[t + 1], norms[t : t + 1])
        exponents[t] = 0
    hand_on(states, exponents, y, scaled)


@kernel(
    "(t),(i,g),(h,g),(u,n,h),(t),(t,n,g),(t,n,h),(t,n,i),(n,t,h)->(n,t,i),(i,g),(h,g),(g),(g),"
    "(t),(t),(t),(four),(t,n,g),(t,n,g),(t,n,g),(n,h),(n,h),(t,n,i)"
)
def gru_pullback(
    x_exponents,
    W_ih,
    W_hh,
    states,
    exponents,
    gates,
    recalled,
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
    dz_ih,
    dz_hh,
    aligned,
    dh,
    carry,
    dsteps,
    scaled,
    comfort,
    truncation,
):
    carry.fill(0)
    H = dh.shape[1]
    after = np.int64(0)
    for t in range(gates.shape[0] - 1, -1, -1):
        top = gather(dy, t, at[t] if scaled else 0, carry, after, dh)
        log2_norm(dh, norms[t : t + 1])
        k = excess(norms[t], dh.size, comfort)
        shift(dh, -k)
        norms[t] += top
        after = at[t] = top + k
        for n in range(dh.shape[0]):
            q, d, e = gates[t, n], dz_ih[t, n], dz_hh[t, n]
            qr, qu, zn = q[:H], q[H : 2 * H], q[2 * H :]
            dr, du, dn = d[:H], d[H : 2 * H], d[2 * H :]
            en = e[2 * H :]
            before, m, of_h = states[t, n], recalled[t, n], dh[n]
            for j in range(H):
                tanh_n, slope_n = tanh_and_slope(zn[j])
                dn[j] = of_h[j] * opened(-qu[j]) * slope_n
                du[j] = tanh_n
            for j in range(H):
                du[j] = of_h[j] * (before[j] - du[j]) * gate_slope(qu[j])
                of_h[j] = of_h[j] * opened(qu[j])
            for j in range(H):
                dr[j] = dn[j] * m[j] * gate_slope(qr[j])
                en[j] = dn[j] * opened(qr[j])
            copy(d[: 2 * H], e[: 2 * H])
        log2_norm(dz_ih[t], delta_norms[t : t + 1])
        delta_norms[t] += after
        if truncation > 0 and t % truncation == 0:
            carry.fill(0)
        else:
            np.dot(dz_hh[t], W_hh.T, carry)
            for n in range(dh.shape[0]):
                for j in range(H):
                    carry[n, j] += dh[n, j]
    finish(
        *(x_exponents, W_ih, states, exponents, steps, dz_ih, dz_hh, at),
        *(dx, dW_ih, dW_hh, db_ih, db_hh, gradient_exponents, aligned, dsteps, scaled),
    )


class GRU(Recurrence):
    """The gated recurrent unit; see :class:`Recurrence`."""

    name = "gru"
    gates = 3
    separate = True
    forward_kernel, pullback_kernel = gru_forward, gru_pullback

    def memory(self, n, T):
        return {"recalled": (T, n, self.features)}
