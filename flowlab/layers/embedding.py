"""Embeddings: tokens become vectors, and positions are added to them."""

import math

import numpy as np

from flowlab.errors import InputError, unknown
from flowlab.kernel import ShapeError, jit, kernel
from flowlab.layer import WHOLE, Declaration, Parameter, Primitive
from flowlab.numerics.scale import exponent

KINDS = ("learned", "sinusoidal")


@jit
def _row(token):
    return np.int64(math.floor(token + 0.5))


@kernel("(n,t),(v,d)->(n,t,d)")
def token_embedding_forward(x, W, y):
    for n in range(x.shape[0]):
        for t in range(x.shape[1]):
            y[n, t] = W[_row(x[n, t])]


@kernel("(n,t),(n,t,d)->(n,t),(v,d)")
def token_embedding_pullback(x, dy, dx, dW):
    dx[:], dW[:] = 0, 0
    for n in range(x.shape[0]):
        for t in range(x.shape[1]):
            row = _row(x[n, t])
            for k in range(dW.shape[1]):
                dW[row, k] += dy[n, t, k]


@kernel("(n,t),(n,t,d)->(one)")
def token_embedding_example_norms(x, dy, out):
    tokens = x.shape[1]
    e = exponent(dy)
    down, total = math.ldexp(1.0, -e), 0.0
    row = np.empty(dy.shape[2])
    for n in range(x.shape[0]):
        for t in range(tokens):
            if np.any(x[n, :t] == x[n, t]):
                continue  # the token's first place has counted it
            row[:] = 0
            for other in range(t, tokens):
                if x[n, other] == x[n, t]:
                    for k in range(row.size):
                        row[k] += down * dy[n, other, k]
            for k in range(row.size):
                total += row[k] * row[k]
    out[0] = 0.5 * np.log2(total) + e


class TokenEmbedding(Primitive):
    """Y[n, t] = W[x[n, t]] with tokens x (n, T) and a table W (vocabulary, features).

    Tokens are whole numbers in the arrays' float type, rounded to the nearest. dW adds up the dY
    of every place where a token stands. Y is piecewise constant in x: dx is 0.

    One row is read for a token, so the table has fan_in 1: entries of variance 1 where weights have
    variance 1/fan_in, as ``torch.nn.Embedding`` draws them.

    InputError for a vocabulary or features below 1, a vocabulary beyond 2^24, whose tokens float32
    cannot hold, and for tokens that are not in the vocabulary,
    ShapeError for an input that has not two axes.
    """

    name = "token_embedding"
    trainable = True
    forward_kernel, pullback_kernel = token_embedding_forward, token_embedding_pullback
    example_norms = token_embedding_example_norms

    def __init__(self, vocabulary: int, features: int):
        self.vocabulary, self.features = vocabulary, features
        for name, value in (("vocabulary", vocabulary), ("features", features)):
            if value < 1:
                raise InputError(f"{self.name}: {name} must be at least 1; got {value}")
        if vocabulary > WHOLE:
            raise InputError(f"{self.name}: vocabulary must be at most {WHOLE}; got {vocabulary}")

    def shapes(self, shape):
        if len(shape) != 2:
            raise ShapeError(
                f"{self.name}: input must have axes (batch, tokens); got shape {shape}"
            )
        table = (self.vocabulary, self.features)
        parameters = {"W": Parameter(table, fan_in=1, fan_out=self.features)}
        return Declaration(output=(*shape, self.features), parameters=parameters)

    def forward(self, x, parameters, workspace):
        inside = (x >= -0.5) & (x < self.vocabulary - 0.5)
        if not inside.all():
            raise InputError(
                f"{self.name}: tokens must be at least 0 and below the vocabulary, "
                f"{self.vocabulary}; got {x[~inside][0]:g}"
            )
        return super().forward(x, parameters, workspace)


@kernel("(n,t,d),(length,d)->(n,t,d)")
def learned_positions_forward(x, P, y):
    for n in range(x.shape[0]):
        for t in range(x.shape[1]):
            for k in range(x.shape[2]):
                y[n, t, k] = x[n, t, k] + P[t, k]


@kernel("(n,t,d)->(n,t,d),(length,d)")
def learned_positions_pullback(dy, dx, dP):
    dP[:] = 0
    for t in range(dy.shape[1]):
        for n in range(dy.shape[0]):
            for k in range(dy.shape[2]):
                dx[n, t, k] = dy[n, t, k]
                dP[t, k] += dy[n, t, k]


@kernel("(n,t,d),(n,t,d)->(one)", reassociate=True)
def learned_positions_example_norms(x, dy, out):
    e, flat = exponent(dy), dy.reshape(dy.size)
    down, total = math.ldexp(1.0, -e), 0.0
    for k in range(flat.size):
        v = down * flat[k]
        total += v * v
    out[0] = 0.5 * np.log2(total) + e


@kernel("(n,t,d)->(n,t,d)")
def fixed_positions_forward(x, y, table):
    for n in range(x.shape[0]):
        for t in range(x.shape[1]):
            for k in range(x.shape[2]):
                y[n, t, k] = x[n, t, k] + table[t, k]


@kernel("(n,t,d)->(n,t,d)")
def fixed_positions_pullback(dy, dx, table):
    dx[:] = dy


class PositionalEncoding(Primitive):
    """Y[n, t] = X[n, t] + P[t] for X (n, T, d) and a table P (length, d) with length >= T.

    ``learned``: P is a parameter; one row is read for a position, so it has fan_in 1, as the table
    of :class:`TokenEmbedding`. ``sinusoidal``: P[t, 2k] = sin(t / 10000^(2k/d)) and P[t, 2k+1] the
    cosine of the same (Vaswani et al. 2017, section 3.5), and there is no parameter.

    InputError for a length below 1 and an unknown kind, ShapeError for an input that has not three
    axes or more tokens than the table has rows.
    """

    name = "positional_encoding"

    def __init__(self, length: int, kind: str = "learned"):
        if length < 1:
            raise InputError(f"{self.name}: length must be at least 1; got {length}")
        if kind not in KINDS:
            raise unknown(f"{self.name}: kind", kind, KINDS)
        self.length, self.kind = length, kind
        self.trainable = kind == "learned"
        self.pullback_reads = ()
        self.forward_kernel, self.pullback_kernel = (
            (learned_positions_forward, learned_positions_pullback)
            if self.trainable
            else (fixed_positions_forward, fixed_positions_pullback)
        )
        self.example_norms = learned_positions_example_norms if self.trainable else None

    def shapes(self, shape):
        if len(shape) != 3:
            raise ShapeError(
                f"{self.name}: input must have axes (batch, tokens, features); got shape {shape}"
            )
        tokens, d = shape[1:]
        if tokens > self.length:
            raise ShapeError(
                f"{self.name}: sequence length must be at most the position table's "
                f"{self.length}; got {tokens}"
            )
        if self.trainable:
            P = Parameter((self.length, d), fan_in=1, fan_out=d)
            return Declaration(output=shape, parameters={"P": P})
        return Declaration(output=shape, constants=(sinusoids(tokens, d),))


def sinusoids(tokens: int, features: int) -> np.ndarray:
    """The table (tokens, features) of :class:`PositionalEncoding`'s kind ``sinusoidal``."""
    k = np.arange(features)
    angles = np.arange(tokens)[:, None] / 10000 ** (2 * (k // 2) / features)
    return np.where(k % 2 == 0, np.sin(angles), np.cos(angles))
