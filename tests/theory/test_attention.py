"""Attention at initialization against a hand-written single head in plain NumPy."""

import numpy as np
import pytest

from flowlab.errors import InputError
from flowlab.theory import attention as at
from flowlab.theory import get_activation


def tokens(rng, seeds, count, width, cosine):
    """Exchangeable Gaussian tokens of that cosine, (seeds, count, width)."""
    common = rng.standard_normal((seeds, 1, width))
    return np.sqrt(cosine) * common + np.sqrt(1 - cosine) * rng.standard_normal(
        (seeds, count, width)
    )


def rms(x):
    return np.sqrt(np.mean(x**2, axis=-1, keepdims=True))


def turn(x):
    return x.swapaxes(-1, -2)


def softmax(s):
    e = np.exp(s - s.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def matrices(rng, seeds, width, *sigma2):
    return [rng.standard_normal((seeds, width, width)) * np.sqrt(s / width) for s in sigma2]


def head(x, w):
    q, k, v = (x @ m for m in w[:3])
    p = softmax(q @ turn(k) / np.sqrt(x.shape[-1]))
    o = p @ v
    return o @ w[3], (x, q, k, v, p, o)


def pull_head(dy, saved, w):
    """Cotangents of x through values, queries and keys, and of W_Q, W_K, W_V, W_O."""
    x, q, k, v, p, o = saved
    do = dy @ turn(w[3])
    dv, dp = turn(p) @ do, do @ turn(v)
    ds = p * (dp - np.sum(dp * p, axis=-1, keepdims=True)) / np.sqrt(x.shape[-1])
    dq, dk = ds @ k, turn(ds) @ q
    paths = dv @ turn(w[2]), dq @ turn(w[0]), dk @ turn(w[1])
    return paths, (turn(x) @ dq, turn(x) @ dk, turn(x) @ dv, turn(o) @ dy)


def square(x):
    return np.sum(x**2, axis=(1, 2))


def cosine_of(x):
    """Mean over pairs of <x_a, x_b> over the mean ||x_a||^2."""
    total, own = np.sum(np.sum(x, axis=1) ** 2), np.sum(x**2)
    return (total / own - 1) / (x.shape[1] - 1)


def close(draws, expected, slack):
    se = draws.std() / np.sqrt(draws.size)
    assert abs(draws.mean() - expected) < 4 * se + slack * expected


def test_the_oracle_is_the_derivative():
    rng = np.random.default_rng(0)
    x, w = tokens(rng, 1, 5, 6, 0.3), matrices(rng, 1, 6, 1, 1, 1, 1)
    y, saved = head(x, w)
    dy = rng.standard_normal(y.shape)
    paths, gradients = pull_head(dy, saved, w)
    arrays = [x, *w]
    for index, gradient in enumerate([sum(paths), *gradients]):
        direction = rng.standard_normal(arrays[index].shape)
        ends = []
        for sign in (1, -1):
            moved = list(arrays)
            moved[index] = moved[index] + sign * 1e-5 * direction
            ends.append(np.sum(head(moved[0], moved[1:])[0] * dy))
        slope = (ends[0] - ends[1]) / 2e-5
        assert np.sum(gradient * direction) == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("variance", [0.0, 0.25, 1.0, 4.0])
@pytest.mark.parametrize("count", [2, 7, 40])
def test_softmax_moments_match_draws(variance, count):
    s = np.sqrt(variance) * np.random.default_rng(1).standard_normal((60_000, count))
    p = softmax(s)
    second, third = np.sum(p**2, axis=1), np.sum(p**3, axis=1)
    own, jacobian = at.softmax_moments(variance, count)
    close(count * second, own, 1e-9)
    close(count * (second - 2 * third + second**2), jacobian, 1e-9)


def test_participation_tends_to_the_lognormal_moment():
    for variance in (0.25, 1.0):
        assert at.softmax_moments(variance, 10**5)[0] == pytest.approx(np.exp(variance), rel=1e-3)


def test_cross_overlaps_match_draws():
    """Two rows of 200 logits, common parts removed by the softmax: within O(1/T^2)."""
    rng, count, rho, s2 = np.random.default_rng(2), 200, 0.4, 1.5
    cov = s2 * (1 - rho) * np.array([[1, rho], [rho, 1]])
    pair = rng.multivariate_normal([0, 0], cov, (6_000, count))
    pa, pb = softmax(pair[..., 0]), softmax(pair[..., 1])
    product = pa * pb
    o = at.overlaps(rho, count, s2)
    close(count * product.sum(1), o.cross, 1e-3)
    trace = product.sum(1) - np.sum(product * (pa + pb), axis=1) + product.sum(1) ** 2
    close(count * trace, o.cross_jacobian, 2e-3)
    close(1 - np.sum(pa**2, axis=1), o.trace, 1e-4)


@pytest.mark.parametrize("r", [0.0, 0.4, 1.0])
def test_uniform_attention_averages(r):
    """Without logits every dx_b is the mean of dy, and every row of p X the mean token."""
    pull = at.attention_pullback(0.3, r, 5, 8, logit_variance=0.0)
    mean = (1 + 4 * r) / 5
    assert (pull.value, pull.off, pull.rate) == pytest.approx((mean, mean, mean))
    assert at.attention_gram(0.3, 5, 8, 0.0) == pytest.approx(((1 + 4 * 0.3) / 5,) * 2)


@pytest.mark.parametrize(
    "count, width, cosine, cotangent_cosine, sigma2",
    [
        (16, 128, 0.0, 0.0, (1, 1, 1, 1)),
        (64, 128, 0.0, 0.0, (1, 1, 1, 1)),
        (32, 128, 0.5, 0.0, (2.0, 0.7, 1.5, 0.6)),
        (32, 128, 0.5, 0.5, (0.5, 0.5, 1, 1)),
        (32, 128, 0.9, 1.0, (1, 1, 1, 1)),
        (64, 64, 0.3, 1.0, (0.5, 0.5, 1, 1)),
    ],
)
def test_one_head_matches_nets(count, width, cosine, cotangent_cosine, sigma2):
    """Rates of the three paths, their overlap and four weight gradients: 4 SE + 5 %."""
    rng, seeds = np.random.default_rng(3), 60
    x = tokens(rng, seeds, count, width, cosine)
    x /= rms(x)
    dy = tokens(rng, seeds, count, width, cotangent_cosine)
    w = matrices(rng, seeds, width, *sigma2)
    y, saved = head(x, w)
    paths, gradients = pull_head(dy, saved, w)
    rho, r = max(cosine_of(x), 0.0), min(max(cosine_of(dy), 0.0), 1.0)
    s2, outer = sigma2[0] * sigma2[1], sigma2[2] * sigma2[3]

    own, off = at.attention_gram(rho, count, width, s2)
    close(np.mean(y**2, axis=(1, 2)), outer * own, 0.05)
    apart = np.sum((y - y.mean(1, keepdims=True)) ** 2, axis=(1, 2)) / (count - 1) / width
    close(apart, outer * (own - off), 0.08)

    pull = at.attention_pullback(rho, r, count, width, s2)
    for path, rate in zip(paths, (pull.value, pull.query, pull.key), strict=True):
        close(square(path) / square(dy), outer * rate, 0.05)
    dx = sum(paths)
    close(square(dx) / square(dy), outer * pull.rate, 0.05)
    overlap = cosine_of(dx) * np.sum(dx**2) / np.sum(dy**2)
    assert overlap == pytest.approx(outer * pull.off, rel=0.1, abs=0.005)

    names = dict(zip(("query", "key", "value", "output"), sigma2, strict=True))
    shares = at.weight_gradients(rho, r, count, width, **names)
    for gradient, name in zip(gradients, names, strict=True):
        close(square(gradient) / square(dy) / width, getattr(shares, name), 0.05)


def test_queries_and_keys_vanish_quadratically():
    """Slopes of log ||.||^2 over log(1 - rho): 2 for dW_Q, dW_K, dQ, 1 for dK, 0 for V and O."""
    count, width, seeds = 12, 48, 60
    gaps, rows = np.array([1e-1, 1e-2, 1e-3]), []
    for gap in gaps:
        rng = np.random.default_rng(4)
        x = tokens(rng, seeds, count, width, 1 - gap)
        w = matrices(rng, seeds, width, 1, 1, 1, 1)
        dy = rng.standard_normal(x.shape)
        paths, gradients = pull_head(dy, head(x / rms(x), w)[1], w)
        rows.append([np.mean(square(g)) for g in (*gradients, *paths[1:])])
    slopes = np.polyfit(np.log(gaps), np.log(rows), 1)[0]
    np.testing.assert_allclose(slopes, [2, 2, 0, 0, 2, 1], atol=0.08)
    shares = [at.weight_gradients(1 - gap, 0.0, count, width) for gap in gaps[1:]]
    for name, power in (("query", 2), ("key", 2), ("value", 0), ("output", 0)):
        ratio = getattr(shares[0], name) / getattr(shares[1], name)
        assert np.log10(ratio) == pytest.approx(power, abs=0.03)
    keys = [at.attention_pullback(1 - gap, 0.0, count, width).key for gap in gaps[1:]]
    assert np.log10(keys[0] / keys[1]) == pytest.approx(1, abs=0.03)


def flow(depth, count, width, seeds, cosine, norm, skip, scale, activation, cotangent_cosine):
    """Mean square and cosine of tokens, log rates per block (depth, seeds), cotangents' cosine."""
    rng, act = np.random.default_rng(5), activation and get_activation(activation)
    x = tokens(rng, seeds, count, width, cosine)
    x /= rms(x)
    saved, squares, cosines = [], [1.0], [cosine_of(x)]
    for _ in range(depth):
        for branch in ("attention", "mlp")[: 2 if act else 1]:
            before = rms(x) if norm == "pre" else 1.0
            u = x / before
            if branch == "attention":
                w = matrices(rng, seeds, width, 1, 1, 1, 1)
                y, kept = head(u, w)
            else:
                w = matrices(rng, seeds, width, 1, 2)
                kept = u @ w[0]
                y = act.phi(kept) @ w[1]
            x = skip * x + scale * y
            after = rms(x) if norm == "post" else 1.0
            x = x / after
            saved.append((branch, u, before, w, kept, x, after))
        squares.append(np.mean(x**2))
        cosines.append(cosine_of(x))

    def pull_norm(d, u, size):
        return (d - u * np.mean(d * u, axis=-1, keepdims=True)) / size

    d = tokens(rng, seeds, count, width, cotangent_cosine)
    log, back = [np.log(square(d))], [cosine_of(d)]
    for index, (branch, u, before, w, kept, x, after) in enumerate(reversed(saved), start=1):
        if norm == "post":
            d = pull_norm(d, x, after)
        if branch == "attention":
            g = sum(pull_head(d, kept, w)[0])
        else:
            g = ((d @ turn(w[1])) * act.derivative(kept)) @ turn(w[0])
        d = skip * d + scale * (pull_norm(g, u, before) if norm == "pre" else g)
        if index % (len(saved) // depth) == 0:
            log.append(np.log(square(d)))
            back.append(cosine_of(d))
    return np.array(squares), np.array(cosines), np.diff(log, axis=0)[::-1], np.array(back[::-1])


@pytest.mark.parametrize(
    "norm, skip, scale, activation, cotangent_cosine, slack",
    [
        ("pre", True, 1.0, None, 0.0, 0.02),
        ("pre", True, 0.4, "relu", 0.5, 0.01),
        ("pre", True, 1.0, "relu", 0.0, 0.02),
        ("post", True, 1.0, "gelu", 0.0, 0.04),
        ("none", True, 0.4, None, 0.0, 0.01),
        ("none", False, 1.0, None, 0.0, 0.06),
    ],
)
def test_blocks_match_nets(norm, skip, scale, activation, cotangent_cosine, slack):
    """Mean log rate per block within 4 SE + slack; squares, cosines within 10 %."""
    depth, count, width, seeds = 5, 16, 96, 16
    squares, cosines, rates, back = flow(
        depth, count, width, seeds, 0.3, norm, skip, scale, activation, cotangent_cosine
    )
    theory = at.token_flow(
        depth,
        count,
        width,
        cosine=cosines[0],
        cotangent_cosine=max(back[-1], 0.0),
        norm=norm,
        skip=skip,
        branch_scale=scale,
        activation=activation,
        output_variance=2.0,
    )
    total = rates.sum(0) / depth
    error = abs(total.mean() - np.log(theory.rate).mean())
    assert error < 4 * total.std(ddof=1) / np.sqrt(seeds) + slack
    np.testing.assert_allclose(squares, theory.square, rtol=0.1 if skip else 0.2)
    np.testing.assert_allclose(cosines, theory.cosine, atol=0.05)
    np.testing.assert_allclose(back, theory.cotangent_cosine, atol=0.06)


def test_logits_without_norm_grow_with_the_square_of_the_tokens():
    """One norm-free head on tokens of r.m.s. sqrt 2: 4 SE + 5 %."""
    rng, count, width, seeds, s2 = np.random.default_rng(6), 16, 128, 60, 0.3
    x = tokens(rng, seeds, count, width, 0.3)
    x *= np.sqrt(2) / rms(x)
    w = matrices(rng, seeds, width, s2, 1, 1, 1)
    y, saved = head(x, w)
    dy = rng.standard_normal(y.shape)
    dx = sum(pull_head(dy, saved, w)[0])
    options = {"norm": "none", "skip": False, "square": 2.0, "logit_variance": s2}
    theory = at.token_flow(1, count, width, cosine=cosine_of(x), **options)
    close(square(dx) / square(dy), theory.rate[0], 0.05)
    close(np.mean(y**2, axis=(1, 2)), theory.square[1], 0.05)
    assert cosine_of(y) == pytest.approx(theory.cosine[1], rel=0.05)


def test_residual_scaling_keeps_tokens_apart():
    """With a^2 = 1/L the last cosine does not depend on depth; with a = 1 tokens collapse."""
    ends = [
        at.token_flow(n, 64, 256, cosine=0.1, branch_scale=n**-0.5).cosine[-1] for n in (25, 200)
    ]
    assert ends[0] == pytest.approx(ends[1], abs=0.01) and ends[1] < 0.6
    assert at.token_flow(200, 64, 256, cosine=0.1).cosine[-1] > 0.98


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: at.overlaps(1.2, 4), "cosine must be between 0 and 1; got 1.2"),
        (lambda: at.attention_pullback(0.1, -0.5, 4, 8), "cotangent_cosine must be between 0"),
        (lambda: at.overlaps(0.2, 1), "tokens must be at least 2; got 1"),
        (lambda: at.softmax_moments(-1.0, 4), "variance must be between 0 and 400; got -1.0"),
        (lambda: at.token_flow(3, 4, 8, cosine=0.1, norm="pres"), "did you mean pre"),
        (lambda: at.token_flow(0, 4, 8, cosine=0.1), "depth must be at least 1; got 0"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(InputError, match=message):
        call()
