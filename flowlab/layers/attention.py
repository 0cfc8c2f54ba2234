"""Attention: every token takes a mean of all tokens' values, weighted by how its query meets keys.

Y = A V with A = softmax(scale Q Kᵀ) over the keys, for each head by itself (Vaswani et al. 2017,
"Attention is all you need", eq. 1 and section 3.2.2). The adjoint, with dA = dY Vᵀ:

    dV = Aᵀ dY,    dS = A ∘ (dA - rowsum(dA ∘ A)),    dQ = scale dS K,    dK = scale dSᵀ Q.

Where one key m takes more than half of a row, dA is counted from dA_m there: the bracket of m is
then -Σ_j≠m A_j (dA_j - dA_m), which keeps its digits when 1 - A_m is below rounding.

Heads are successive parts of the last axis, as in PyTorch's ``MultiheadAttention``.
"""

import math

import numpy as np

from flowlab.errors import InputError
from flowlab.kernel import ShapeError, jit, kernel
from flowlab.layer import Chain, Declaration, Parameter, Primitive
from flowlab.layers.fork import Fork
from flowlab.layers.linear import Linear
from flowlab.numerics.elementary import exp
from flowlab.numerics.scale import exponent


@jit
def _split(x, heads, scale):
    """(t, d) into heads (h, t, e), each contiguous; rows are read as they lie in memory."""
    width = heads.shape[2]
    for t in range(x.shape[0]):
        for h in range(heads.shape[0]):
            source, target = x[t, h * width : (h + 1) * width], heads[h, t]
            for k in range(width):
                target[k] = scale * source[k]


@jit
def _merge(heads, y):
    """The inverse of ``_split``."""
    width = heads.shape[2]
    for t in range(y.shape[0]):
        for h in range(heads.shape[0]):
            source, target = heads[h, t], y[t, h * width : (h + 1) * width]
            for k in range(width):
                target[k] = source[k]


@jit
def _largest(z):
    """The maximum, in eight lanes that fit a vector register; NaN is passed over."""
    a = b = c = d = e = f = g = h = z[0]
    last = z.size - z.size % 8
    for j in range(0, last, 8):
        a = z[j] if z[j] > a else a
        b = z[j + 1] if z[j + 1] > b else b
        c = z[j + 2] if z[j + 2] > c else c
        d = z[j + 3] if z[j + 3] > d else d
        e = z[j + 4] if z[j + 4] > e else e
        f = z[j + 5] if z[j + 5] > f else f
        g = z[j + 6] if z[j + 6] > g else g
        h = z[j + 7] if z[j + 7] > h else h
    for j in range(last, z.size):
        a = z[j] if z[j] > a else a
    return max(max(max(a, b), max(c, d)), max(max(e, f), max(g, h)))


@kernel("->(t)", reassociate=True)
def _softmax(z):
    """Logits become probabilities, in place; False where they are not numbers."""
    top = _largest(z)
    total = z.dtype.type(0)
    for j in range(z.size):
        z[j] = exp(z[j] - top)
        total += z[j]
    scale = z.dtype.type(1.0 / total)
    for j in range(z.size):
        z[j] = scale * z[j]
    return total >= 1


_normalise = _softmax.single


@jit
def _scaled_down(a, power):
    down, a = math.ldexp(1.0, -power), a.reshape(a.size)
    for i in range(a.size):
        a[i] = down * a[i]


@jit
def _hide(weights, hidden, seen):
    for j in range(seen):
        if hidden[j] != 0:
            weights[j] = -np.inf


@jit
def _attend_far(q, k, weights, hidden, causal):
    """Probabilities where logits leave the float range: from q and k beside powers of two."""
    power_q, power_k = exponent(q), exponent(k)
    _scaled_down(q, power_q)
    _scaled_down(k, power_k)
    np.dot(q, k.T, weights)
    for t in range(weights.shape[0]):
        seen = t + 1 if causal else weights.shape[1]
        row = weights[t, :seen]
        if hidden is not None:
            _hide(row, hidden, seen)
        top = _largest(row)
        for j in range(seen):
            row[j] = math.ldexp(np.float64(row[j]) - np.float64(top), power_q + power_k)
        _normalise(row)
        weights[t, seen:] = 0


@jit
def _attend(x, hidden, y, attention, heads, scale, causal):
    tokens = x.shape[2]
    q, k, v, out = heads[0], heads[1], heads[2], heads[3]
    for n in range(x.shape[0]):
        _split(x[n, 0], q, scale)
        _split(x[n, 1], k, 1.0)
        _split(x[n, 2], v, 1.0)
        padding = None if hidden is None else hidden[n]
        for h in range(attention.shape[1]):
            weights, numbers = attention[n, h], True
            np.dot(q[h], k[h].T, weights)
            for t in range(tokens):
                seen = t + 1 if causal else tokens
                if padding is not None:
                    _hide(weights[t], padding, seen)
                numbers = _normalise(weights[t, :seen]) and numbers
                weights[t, seen:] = 0
            if not numbers:
                _attend_far(q[h], k[h], weights, padding, causal)
            np.dot(weights, v[h], out[h])
        _merge(out, y[n])


@kernel("(n,three,t,d)->(n,t,d),(n,h,t,t),(four,h,t,e),(t,t)")
def attention_forward(x, y, attention, heads, square, scale, causal):
    _attend(x, None, y, attention, heads, scale, causal)


@kernel("(n,three,t,d),(n,t)->(n,t,d),(n,h,t,t),(four,h,t,e),(t,t)")
def masked_attention_forward(x, hidden, y, attention, heads, square, scale, causal):
    _attend(x, hidden, y, attention, heads, scale, causal)


@kernel("->(t,t)", reassociate=True)
def _softmax_pullback(weights, ds):
    """dS from dA, in place."""
    zero, half = ds.dtype.type(0), ds.dtype.type(0.5)
    for t in range(ds.shape[0]):
        origin = along = zero
        for j in range(ds.shape[1]):  # one term at most
            origin += ds[t, j] if weights[t, j] > half else zero
        for j in range(ds.shape[1]):
            ds[t, j] = ds[t, j] - origin
            along += ds[t, j] * weights[t, j]
        for j in range(ds.shape[1]):
            ds[t, j] = weights[t, j] * (ds[t, j] - along)


_through_softmax = _softmax_pullback.single


@kernel("(n,three,t,d),(n,h,t,t),(n,t,d)->(n,three,t,d),(four,h,t,e),(t,t)")
def attention_pullback(x, attention, dy, dx, heads, ds, scale, causal):
    q, k, v, g = heads[0], heads[1], heads[2], heads[3]
    for n in range(x.shape[0]):
        _split(x[n, 0], q, scale)
        _split(x[n, 1], k, scale)
        _split(x[n, 2], v, 1.0)
        _split(dy[n], g, 1.0)
        for h in range(attention.shape[1]):
            weights = attention[n, h]
            np.dot(g[h], v[h].T, ds)
            _through_softmax(weights, ds)
            # A gradient takes the place of an operand that is no longer needed.
            np.dot(weights.T, g[h], v[h])
            np.dot(ds, k[h], g[h])
            np.dot(ds.T, q[h], k[h])
        _merge(g, dx[n, 0])
        _merge(k, dx[n, 1])
        _merge(v, dx[n, 2])


@jit
def _row_norms(x, heads, out):
    """Norms (h, t) of the parts of each token that heads see."""
    width = x.shape[1] // heads
    for t in range(x.shape[0]):
        for h in range(heads):
            square = 0.0
            for k in range(h * width, (h + 1) * width):
                square += np.float64(x[t, k]) ** 2
            out[h, t] = math.sqrt(square)


@kernel("(n,three,t,d),(n,h,t,t),(n,t,d)->(three)", reassociate=True)
def attention_terms(x, attention, dy, out, scale, causal):
    """log2 norms of the terms that dQ, dK and dV are sums of.

    Those of dA_ij are taken as ‖dY_i‖‖V_j‖/√e over e features; dS_ij has A_ij A_il (dA_ij - dA_il)
    for every other key l. Probabilities below the float range count as its smallest.
    """
    (heads, tokens), least = attention.shape[1:3], np.finfo(attention.dtype).tiny
    q, k, v, g = np.empty((4, heads, tokens))
    out[:] = 0.0
    for n in range(x.shape[0]):
        _row_norms(x[n, 0], heads, q)
        _row_norms(x[n, 1], heads, k)
        _row_norms(x[n, 2], heads, v)
        _row_norms(dy[n], heads, g)
        for h in range(heads):
            for t in range(tokens):
                seen = t + 1 if causal else tokens
                a = attention[n, h, t]
                # The others' sums without the one above a half: what is left of 1 may be tiny.
                others = of_others = most = of_most = of_q = 0.0
                for j in range(seen):
                    p = np.float64(a[j]) + least
                    others += p if p <= 0.5 else 0.0
                    of_others += p * v[h, j] if p <= 0.5 else 0.0
                    most += p if p > 0.5 else 0.0
                    of_most += p * v[h, j] if p > 0.5 else 0.0
                for j in range(seen):
                    p = np.float64(a[j]) + least
                    rest = others if p > 0.5 else max(others - p, 0.0) + most
                    of_rest = of_others if p > 0.5 else max(of_others - p * v[h, j], 0.0) + of_most
                    apart = p * (rest * v[h, j] + of_rest)
                    of_q += (apart * k[h, j]) ** 2
                    out[1] += (apart * q[h, t] * g[h, t]) ** 2
                    out[2] += (p * g[h, t]) ** 2
                out[0] += of_q * g[h, t] ** 2
    width = x.shape[3] // heads
    of_logits = np.log2(abs(scale)) - 0.5 * np.log2(width)
    out[0] = 0.5 * np.log2(out[0]) + of_logits
    out[1] = 0.5 * np.log2(out[1]) + of_logits
    out[2] = 0.5 * np.log2(out[2])


class ScaledDotProductAttention(Primitive):
    """Attention of (n, 3, T, d), the queries, keys and values of T tokens, to (n, T, d).

    Logits are queries times keys times ``scale``, by default 1/√(d/heads). ``causal`` hides later
    tokens from a query. With ``masked`` there is a parameter ``hidden`` (n, T) of role ``target``,
    not 0 where a key is padding, PyTorch's ``key_padding_mask``. Saves the probabilities
    ``attention`` (n, heads, T, T), whose rows are queries.

    InputError for ``heads`` below 1, a scale that is not finite and a mask that leaves a query
    nothing to see; ShapeError for other axes and for heads that do not divide d.
    """

    name = "attention"
    pullback_kernel = attention_pullback
    pullback_reads = ("x", "attention")
    readings = ("attention_entropy",)

    def __init__(
        self, heads: int, causal: bool = False, scale: float | None = None, masked: bool = False
    ):
        if heads < 1:
            raise InputError(f"{self.name}: heads must be at least 1; got {heads}")
        if scale is not None and not math.isfinite(scale):
            raise InputError(f"{self.name}: scale must be a finite number; got {scale}")
        self.heads, self.causal, self.scale, self.masked = heads, causal, scale, masked
        self.forward_kernel = masked_attention_forward if masked else attention_forward

    def shapes(self, shape):
        if len(shape) != 4 or shape[1] != 3:
            raise ShapeError(
                f"{self.name}: input must have axes (batch, 3, tokens, features); got shape {shape}"
            )
        n, _, tokens, d = shape
        if d % self.heads:
            raise ShapeError(
                f"{self.name}: heads must divide the {d} features; got {self.heads} heads"
            )
        width = d // self.heads
        scale = 1 / math.sqrt(width) if self.scale is None else self.scale
        hidden = {"hidden": Parameter((n, tokens), role="target")} if self.masked else {}
        return Declaration(
            output=(n, tokens, d),
            parameters=hidden,
            saved={"attention": (n, self.heads, tokens, tokens)},
            scratch={"heads": (4, self.heads, tokens, width), "square": (tokens, tokens)},
            constants=(float(scale), bool(self.causal)),
        )

    def read(self, tape, dx, terms):
        return (attention_entropy(tape["attention"]),)

    def terms(self, tape, dy):
        out = np.empty((len(dy), 3))
        constants = self.declare(tape["x"].shape[1:]).constants
        attention_terms.run(tape["x"], tape["attention"], dy, out, *constants)
        return out, None

    def forward(self, x, parameters, workspace):
        if self.masked and "hidden" in parameters:
            self._expect_keys(parameters["hidden"] != 0)
        return super().forward(x, parameters, workspace)

    def _expect_keys(self, hidden: np.ndarray) -> None:
        """Raise InputError unless every query sees a key; the first query sees the fewest."""
        blind = hidden[..., 0] if self.causal else hidden.all(axis=-1)
        if blind.any():
            network, example = np.argwhere(blind)[0]
            what = "the first token, all that the first query sees" if self.causal else "every key"
            raise InputError(
                f"{self.name}: hidden must leave every query a key; "
                f"got a mask that hides {what}, in example {example} of network {network}"
            )


class MultiHeadAttention(Chain):
    """Self-attention of tokens (n, T, features): linear maps Q, K and V, attention, linear map O.

    PyTorch's ``MultiheadAttention`` without dropout, its weights transposed. Parameters are nested
    as ((Q, K, V), mask, O); ``causal``, ``scale`` and ``masked`` are those of
    :class:`ScaledDotProductAttention`, ``factors`` scale V's and O's initial weights. K's bias adds
    the same to all logits of a query, so its gradient is 0 up to rounding. ShapeError for heads
    that do not divide the features.
    """

    def __init__(
        self,
        features: int,
        heads: int,
        causal: bool = False,
        scale: float | None = None,
        masked: bool = False,
        factors: tuple[float, float] = (1.0, 1.0),
    ):
        of_value, of_output = factors
        maps = [Linear(features, name=name) for name in ("Q", "K")]
        maps.append(Linear(features, of_value, name="V"))
        attention = ScaledDotProductAttention(heads, causal, scale, masked)
        attention.declare((1, 3, 1, features))
        last = Linear(features, of_output, name="O")
        super().__init__([Fork(maps, name="projections"), attention, last], name="attention")


@kernel("(...)->()")
def _entropy(attention, out):
    rows = attention.size // attention.shape[-1]
    flat = attention.reshape(attention.size)
    total = 0.0
    for p in flat:
        if p != 0:
            total -= p * math.log(p)
    out[0] = total / rows


def attention_entropy(attention: np.ndarray) -> np.ndarray:
    """Mean entropy in nats of the rows of probabilities, (seeds, ..., keys) -> (seeds,), float64.

    0 where every query attends to one key, log T where it attends to T keys alike.
    """
    out = np.empty(len(attention))
    _entropy.run(attention, out)
    return out


@kernel("(n,t,d)->(),(d)")
def _cosine(x, out, total):
    (n, tokens), sum_of_all = x.shape[:2], 0.0
    for i in range(n):
        total[:] = 0
        own = 0.0
        for t in range(tokens):
            square, down = 0.0, 1.0
            for k in range(total.size):
                square += np.float64(x[i, t, k]) ** 2
            if not 1e-280 < square < 1e280:  # squares left float64's range
                square, down = 0.0, math.ldexp(1.0, -exponent(x[i, t]))
                for k in range(total.size):
                    square += (down * x[i, t, k]) ** 2
            inverse = 1.0 / math.sqrt(square)
            for k in range(total.size):
                total[k] += inverse * (down * x[i, t, k])
            own += square * inverse * inverse
        for k in range(total.size):
            sum_of_all += total[k] * total[k]
        sum_of_all -= own
    pairs = n * tokens * (tokens - 1)
    out[0] = sum_of_all / pairs if pairs > 0 else np.nan


def token_cosine(x: np.ndarray) -> np.ndarray:
    """Mean cosine between different tokens of an example, (seeds, n, T, d) -> (seeds,), float64.

    1 where all tokens of an example are alike up to a positive factor (rank collapse, Dong et al.
    2021); NaN for a single token and where a token is zero. From sums over tokens, in T d steps
    for each example: Σ_{t,t'} u_t · u_t' = ‖Σ_t u_t‖² for unit vectors u_t.
    """
    out = np.empty(len(x))
    _cosine.run(x, out, np.empty((len(x), x.shape[-1])))
    return out
