"""The gated recurrent unit (Cho et al. 2014), its reset gate after the product as in PyTorch.

    r, u = σ(x_t W_ih + b_ih + h_{t−1} W_hh + b_hh),   m = h_{t−1} W_hn + b_hn,
    n = tanh(x_t W_in + b_in + r m),   h_t = (1 − u) n + u h_{t−1},

with gates in the order r, u, n. The products with W_ih and with W_hh have different cotangents: of
n's part the second is r times the first, which is ∂L/∂z.
"""

from flowlab.kernel import jit
from flowlab.layers.recurrent import Recurrence, cell, copy, gate, gate_slope, opened
from flowlab.numerics.elementary import tanh_and_slope


@jit
def _gates(a):
    return a[0], a[1], a[2]


# Short loops over few arrays: LLVM turns them into SIMD.


def gru_forward(row):
    (r, u, n), (pr, pu, pn) = _gates(row.z), _gates(row.p)
    (br, bu, bn), (cr, cu, cn) = _gates(row.b_ih), _gates(row.b_hh)
    before, h, m = row.h_before, row.h, row.kept
    for j in range(h.size):
        r[j] = gate(r[j] + (br[j] + cr[j]) + pr[j])
    for j in range(h.size):
        u[j] = gate(u[j] + (bu[j] + cu[j]) + pu[j])
    for j in range(h.size):
        m[j] = pn[j] + cn[j]
    for j in range(h.size):
        n[j] = n[j] + bn[j] + opened(r[j]) * m[j]
    for j in range(h.size):
        h[j] = opened(-u[j]) * tanh_and_slope(n[j])[0] + opened(u[j]) * before[j]


def gru_adjoint(row):
    (r, u, n), (dr, du, dn), (er, eu, en) = _gates(row.z), _gates(row.dz), _gates(row.dp)
    before, m, dh = row.h_before, row.kept, row.dh
    for j in range(dh.size):
        tanh_n, slope_n = tanh_and_slope(n[j])
        dn[j] = dh[j] * opened(-u[j]) * slope_n
        du[j] = tanh_n
    for j in range(dh.size):
        du[j] = dh[j] * (before[j] - du[j]) * gate_slope(u[j])
        dh[j] = dh[j] * opened(u[j])
    for j in range(dh.size):
        dr[j] = dn[j] * m[j] * gate_slope(r[j])
        en[j] = dn[j] * opened(r[j])
    copy(dr, er)
    copy(du, eu)


class GRU(Recurrence):
    """The gated recurrent unit; see :class:`Recurrence`."""

    name = "gru"
    gates, kept = 3, 1
    separate = direct = True
    forward_kernel, pullback_kernel = cell(gru_forward, gru_adjoint)
