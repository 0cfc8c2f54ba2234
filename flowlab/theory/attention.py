"""Gradient flow through self-attention and transformer blocks at initialization.

One head: S = (X W_Q)(X W_K)'/sqrt(d), p = softmax of each row of S, Y = p X W_V W_O, with T tokens
of d entries and r.m.s. 1; sigma2 = d Var(W) for each Gaussian matrix. Tokens are exchangeable, with
cosine rho between any two; cotangents dY are independent of everything, with cosine r. To leading
order in 1/d, and in 1/T where it is not exact:

* Logits have variance s^2 = sigma2_Q sigma2_K, of which the softmax sees what differs within a row,
  s^2 (1-rho); two rows' logits correlate by rho. So T sum p_a^2 -> e^{s^2 (1-rho)} and
  T sum p_a p_b -> e^{s^2 rho (1-rho)} as T grows (`RowOverlaps`).
* Values: (p C p')_ab = rho + (1-rho) sum p_a p_b for the tokens' Gram matrix C. The part in which
  tokens differ shrinks by about 1/T: rank collapse (Dong et al. 2021). A row also prefers tokens
  that lie along its query, by s sqrt(1-rho) in one direction of d: this adds
  (1-rho)^2 s^2 (tr J)^2/d, J below, which counts once T nears d.
* Queries and keys: dS_a = J_a dp_a with J_a = diag p_a - p_a p_a' and dp_ab = <dO_a, v_b>. J kills
  what is common to a row, so that dp^2 counts as (1-rho). dQ_a = sum_b dS_ab k_b/sqrt(d), and rows
  of dS sum to zero: the keys give another (1-rho). dK_b = sum_a dS_ab q_a/sqrt(d) keeps the common
  part of the queries, but its sum over b is zero, so that X in dW_K = X' dK gives it. Hence

      ||dW_Q||^2 and ||dW_K||^2 vanish as (1-rho)^2, ||dQ||^2 as (1-rho)^2, ||dK||^2 as (1-rho):

  the norms of both weights' gradients are quadratic in the residual ||X - mean||. Those of W_V and
  W_O stay (Noci et al. 2022, "Signal propagation in transformers"). dQ_a is
  the image of W_V dO_a under the tokens' covariance in p_a, X' J_a X, whose square is per direction
  (1-rho)^2 [tr J_a^2 + (tr J_a)^2/d]: the second term is the covariance's mean.

Left out: terms of 1/T^2 and chance overlaps of queries between rows, which leave the gradients of Q
and K up to a tenth off for T = 16, d = 128 and collapsed cotangents, and a third where T = 32 and
tokens are orthogonal; the spread of cosines within a net, which leaves (1-rho) a third too small
once it has shrunk tenfold; the variance of log norms. Several heads of the same s^2 obey the same
formulas, with d the whole width. Over eight blocks of d = 96 and T = 16 or 32 with skips the
simulated mean log rate lies within 0.04 per block of `token_flow`, for pre-norm within 0.02.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from flowlab.errors import InputError, unknown
from flowlab.numerics.blas import kept
from flowlab.theory.activations import get_activation
from flowlab.theory.moments import Sites

NORM_PLACES = ("pre", "post", "none")
_LARGEST_VARIANCE = 400


def _check(tokens, cosines):
    if tokens < 2:
        raise InputError(f"tokens must be at least 2; got {tokens}")
    for name, value in cosines.items():
        if not 0 <= value <= 1:
            raise InputError(f"{name} must be between 0 and 1; got {value}")


@kept(maxsize=4096)
def softmax_moments(variance: float, tokens: int) -> tuple[float, float]:
    """T E sum p^2 and T E ||diag p - pp'||_F^2 for T independent Gaussian logits.

    Exact, any T: 1/(sum e^S)^k = int lambda^{k-1} e^{-lambda sum e^S} d lambda / Gamma(k) makes
    both one-dimensional integrals. As T grows they tend to e^variance, here within O(1/T).
    ||diag p - pp'||^2 = sum p^2 - 2 sum p^3 + (sum p^2)^2.
    """
    if not 0 <= variance <= _LARGEST_VARIANCE:
        raise InputError(
            f"the logits' variance must be between 0 and {_LARGEST_VARIANCE}; got {variance}"
        )
    s, n, step = np.sqrt(variance), tokens, 0.15
    z = np.arange(-8.0, 8.0, 0.2 / max(1.0, s))
    weights = np.exp(-z * z / 2)
    weights /= weights.sum()
    log_lambda = np.arange(-9 * s - 15, 9 * s + 5, step) - np.log(n)
    exponent = log_lambda[:, None] + s * z
    decay = np.exp(np.minimum(exponent, 50.0))
    # lambda^k E e^{k S - lambda e^S}, over log lambda.
    m0, m2, m3, m4 = (np.exp(k * exponent - decay) @ weights for k in (0, 2, 3, 4))
    others = m0 ** (n - 1)
    square = n * step * (m2 @ others)
    cube = n * step * (m3 @ others) / 2
    fourth = n * step * (m4 @ others + (n - 1) * (m2**2 @ m0 ** (n - 2))) / 6
    return float(n * square), float(n * (square - 2 * cube + fourth))


@kept(maxsize=32)
def _logits(tokens):
    """A fixed sample of standard normals (3, rows, tokens): two rows' own part and the common."""
    rows = max(2**18 // tokens, 256)
    return np.random.default_rng(0).standard_normal((3, rows, tokens))


@kept(maxsize=4096)
def _pairs_of_rows(variance: float, correlation: float, tokens: int) -> tuple[float, float]:
    """T E sum p_a p_b and T E tr J_a J_b of two rows whose logits have that correlation."""
    first, second, common = _logits(tokens)
    shared, own = np.sqrt(variance * correlation), np.sqrt(variance * (1 - correlation))
    a, b = (softmax(shared * common + own * x, axis=1) for x in (first, second))
    overlap = (a * b).sum(1)
    jacobian = overlap - (a * b * (a + b)).sum(1) + overlap**2
    return float(tokens * overlap.mean()), float(tokens * jacobian.mean())


@dataclass(frozen=True)
class RowOverlaps:
    """Means over rows a != b of attention, each times T.

    own: sum p_a^2; cross: sum p_a p_b; own_jacobian: ||J_a||^2; cross_jacobian: tr J_a J_b;
    trace: tr J_a = 1 - sum p_a^2, not times T.
    """

    own: float
    cross: float
    own_jacobian: float
    cross_jacobian: float
    trace: float


def overlaps(cosine: float, tokens: int, logit_variance: float = 1.0) -> RowOverlaps:
    """RowOverlaps of attention rows over tokens of that cosine; logit_variance: s^2.

    For Gaussian logits the own ones are exact, the cross ones right to O(1/T^2) where
    8 e^{variance} is below T; beyond they are means of a fixed sample, within about a hundredth.
    Raises `InputError` for a cosine outside [0, 1], tokens < 2 or a negative variance.
    """
    _check(tokens, {"cosine": cosine})
    v = float(logit_variance * (1 - cosine))
    own, own_jacobian = softmax_moments(v, tokens)
    if 8 * np.exp(v) < tokens:
        c = v * cosine
        correction = 2 * np.exp(v) + np.exp(c) - 1 - 2 * np.exp(v + c)
        cross = np.exp(c) * (1 + correction / tokens)
        cross_jacobian = cross - (2 * np.exp(v + 2 * c) - np.exp(2 * c)) / tokens
    else:
        cross, cross_jacobian = _pairs_of_rows(v, float(cosine), tokens)
    cross, cross_jacobian = float(min(cross, own)), float(min(cross_jacobian, own_jacobian))
    return RowOverlaps(own, cross, own_jacobian, cross_jacobian, 1 - own / tokens)


def attention_gram(
    cosine: float, tokens: int, width: int, logit_variance: float = 1.0
) -> tuple[float, float]:
    """Diagonal and off-diagonal of the Gram matrix of p X over d, for tokens of r.m.s. 1.

    Times sigma2_V sigma2_O those of the attention's output: the first is the forward rate.
    """
    o = overlaps(cosine, tokens, logit_variance)
    aligned = logit_variance * (1 - cosine) * o.trace**2 / width
    return (
        cosine + (1 - cosine) * (o.own / tokens + aligned),
        cosine + (1 - cosine) * (o.cross / tokens + cosine * aligned),
    )


@dataclass(frozen=True)
class Pullback:
    """||dX||^2/||dY||^2 through values, queries and keys, for sigma2_V sigma2_O = 1; and ``off``.

    off: mean <dx_a, dx_b> over pairs, in units of the mean ||dy||^2, of the three paths together.
    """

    value: float
    query: float
    key: float
    off: float

    @property
    def rate(self) -> float:
        """The paths' sum: E||dX||^2/||dY||^2."""
        return self.value + self.query + self.key


def attention_pullback(
    cosine: float, cotangent_cosine: float, tokens: int, width: int, logit_variance: float = 1.0
) -> Pullback:
    """The backward rate of attention on tokens of r.m.s. 1; sigma2_V sigma2_O multiplies it.

    cotangent_cosine: r, 0 for iid and 1 for collapsed cotangents.
    Raises `InputError` for cosines outside [0, 1] or tokens < 2.
    """
    _check(tokens, {"cosine": cosine, "cotangent_cosine": cotangent_cosine})
    o, n, r = overlaps(cosine, tokens, logit_variance), tokens, cotangent_cosine
    value = o.own / n + r * (n - 1) * o.cross / n
    value_off = (1 - o.own / n) / (n - 1) + r * (1 - o.cross / n)
    apart, aligned = logit_variance * (1 - cosine), o.trace**2 / width
    query = apart * (1 - cosine) * (o.own_jacobian / n + aligned)
    query_off = apart * (1 - cosine) * r * (o.cross_jacobian / n + aligned)
    key = apart * (o.own_jacobian + cosine * r * (n - 1) * o.cross_jacobian) / n
    return Pullback(value, query, key, value_off + query_off - key / (n - 1))


@dataclass(frozen=True)
class WeightGradients:
    """E||dW||^2 of the four matrices, in units of d ||dY||^2."""

    query: float
    key: float
    value: float
    output: float


def weight_gradients(
    cosine: float,
    cotangent_cosine: float,
    tokens: int,
    width: int,
    *,
    query: float = 1.0,
    key: float = 1.0,
    value: float = 1.0,
    output: float = 1.0,
) -> WeightGradients:
    """How the squared gradient divides among W_Q, W_K, W_V, W_O, for tokens of r.m.s. 1.

    query, key, value, output: sigma2 of each matrix, d Var(W). With equal ones Q and K get the
    same, and so do V and O. Raises `InputError` for cosines outside [0, 1] or tokens < 2.
    """
    _check(tokens, {"cosine": cosine, "cotangent_cosine": cotangent_cosine})
    o, r, n = overlaps(cosine, tokens, query * key), cotangent_cosine, tokens
    diagonal, off = attention_gram(cosine, tokens, width, query * key)
    linear = diagonal + r * (n - 1) * off
    pairs, aligned = cosine * r * (n - 1), o.trace**2 / width
    softmax = (o.own_jacobian + pairs * o.cross_jacobian) / n + (1 + pairs) * aligned
    logits = (1 - cosine) ** 2 * value * output * softmax
    return WeightGradients(key * logits, query * logits, output * linear, value * linear)


@dataclass(frozen=True)
class TokenFlow:
    """Tokens and cotangents through L blocks; entry 0 is the input.

    square, cosine: (L + 1,) mean ||x||^2/d and token cosine; rate: (L,) E||dx_l||^2 over
    E||dx_{l+1}||^2; cotangent_cosine: (L + 1,).
    """

    square: np.ndarray
    cosine: np.ndarray
    rate: np.ndarray
    cotangent_cosine: np.ndarray


def token_flow(
    depth: int,
    tokens: int,
    width: int,
    *,
    cosine: float,
    cotangent_cosine: float = 0.0,
    square: float = 1.0,
    norm: str = "pre",
    skip: bool = True,
    branch_scale: float = 1.0,
    output_scale: float = 1.0,
    logit_variance: float = 1.0,
    value_variance: float = 1.0,
    activation: str | None = None,
    hidden_variance: float = 1.0,
    output_variance: float = 1.0,
) -> TokenFlow:
    """Rank collapse forward and rates backward of attention-only nets or transformer blocks.

    A block is x + a attention(.), then, where an ``activation`` is given, x + a phi(. W_1) W_2.
    norm: ``pre`` (each branch reads norm(x)), ``post`` (norm after each sum) or
    ``none`` (logits then vary as s^2 square^2); skip = False leaves out the sums' x, which
    ``output_scale`` multiplies as a whole.
    value_variance: sigma2_V sigma2_O; hidden_variance, output_variance: sigma2 of W_1 and W_2.
    cotangent_cosine is that at the output. Norms are r.m.s. or layer norm at infinite width.
    Raises `InputError` for bad arguments, and where logits come to vary by more than 400.
    """
    if norm not in NORM_PLACES:
        raise unknown("norm", norm, NORM_PLACES)
    if depth < 1:
        raise InputError(f"depth must be at least 1; got {depth}")
    if not square > 0:
        raise InputError(f"square must be above 0; got {square}")
    _check(tokens, {"cosine": cosine, "cotangent_cosine": cotangent_cosine})
    v = float(square)
    rho, a2, keep = float(cosine), (output_scale * branch_scale) ** 2, skip * output_scale**2
    act = None if activation is None else get_activation(activation)
    squares, cosines, pulls = [v], [rho], []
    for _ in range(depth):
        for branch in ("attention", "mlp")[: 1 if act is None else 2]:
            read = 1.0 if norm == "pre" else v
            if branch == "attention":
                variance = logit_variance * read**2
                own, off = (
                    a2 * value_variance * read * x
                    for x in attention_gram(rho, tokens, width, variance)
                )
                pull = ("attention", rho, variance, a2 * value_variance)
            else:
                site = Sites(act, np.log([hidden_variance * read]))
                moment = output_variance * float(np.exp(site.log_phi2[0]))
                own = a2 * moment
                off = own * site.phi_correlation(0, rho)
                pair = float(site.pairs(np.array([rho]))[0][0])
                chi = a2 * output_variance * hidden_variance * float(site.mu1[0])
                pull = ("mlp", pair, None, chi)
            total, common = keep * v + own, keep * v * rho + off
            # A norm divides the branch's input (pre) or the whole sum (post).
            before = v if norm == "pre" else 1.0
            after = total if norm == "post" else 1.0
            pulls.append((*pull, before, after))
            v, rho = total / after, min(common / total, 1.0)
        squares.append(v)
        cosines.append(rho)

    r = float(cotangent_cosine)
    rates, back, per_block = [], [r], len(pulls) // depth
    for block in reversed(range(depth)):
        log_rate = 0.0
        for kind, first, variance, gain, before, after in reversed(
            pulls[block * per_block : (block + 1) * per_block]
        ):
            if kind == "attention":
                # Beyond 1/T^2 the expansions may leave [0, 1] by rounding.
                pull = attention_pullback(first, min(max(r, 0.0), 1.0), tokens, width, variance)
                own, off = gain * pull.rate, gain * pull.off
            else:
                own, off = gain, gain * first * r
            total, common = keep + own / before, keep * r + off / before
            log_rate += np.log(total / after)
            r = common / total
        rates.append(np.exp(log_rate))
        back.append(r)
    return TokenFlow(*(np.array(x) for x in (squares, cosines, rates[::-1], back[::-1])))
