"""Attention: laws, frameworks, what may not see what, entropy and cosine."""

import math

import numpy as np
import pytest

from flowlab import laws
from flowlab.errors import InputError
from flowlab.kernel import ShapeError
from flowlab.layer import Chain, Workspace, map_leaves, primitives
from flowlab.layers import (
    LayerNorm,
    MultiHeadAttention,
    Residual,
    ScaledDotProductAttention,
)
from flowlab.layers.attention import attention_entropy, token_cosine
from tests.support.passes import close, run

SEEDS, BATCH, TOKENS, WIDTH = 2, 3, 5, 6
HIDDEN = np.zeros((SEEDS, BATCH, TOKENS), int)
HIDDEN[0, 0, 3:] = HIDDEN[0, 2, 1] = HIDDEN[1, 1, 2:] = 1
# heads, causal, scale, masked
CASES = [
    *((1, False, None, False), (2, False, None, False), (3, True, None, False)),
    *((2, False, 1 / 3, False), (6, True, 0.7, False), (2, False, None, True)),
    (3, True, 0.25, True),
]


def draw(layer, shape, dtype=np.float64):
    """x, parameters in the layer's nest and dy, standard normal."""
    random, declaration = np.random.default_rng(3), layer.declare(shape)

    def one(declared):
        if declared.role == "target":
            return HIDDEN
        return random.standard_normal((SEEDS, *declared.shape)).astype(dtype)

    x = random.standard_normal((SEEDS, *shape)).astype(dtype)
    p = map_leaves(one, declaration.parameters)
    return x, p, random.standard_normal((SEEDS, *declaration.output)).astype(dtype)


def attention(case):
    layer = ScaledDotProductAttention(*case)
    return layer, draw(layer, (BATCH, 3, TOKENS, WIDTH))


@pytest.mark.parametrize("case", CASES)
def test_against_frameworks(apart, case):
    data = {"hidden": HIDDEN} if case[3] else {}
    assert apart(ScaledDotProductAttention(*case), (BATCH, 3, TOKENS, WIDTH), data) < 1e-12


@pytest.mark.parametrize("case", [CASES[1], CASES[2], CASES[5], CASES[6]])
def test_multi_head_attention_against_torch(case):
    """torch.nn.MultiheadAttention keeps Q, K and V in one matrix, transposed."""
    torch = pytest.importorskip("torch")
    heads, causal, _, masked = case
    layer = MultiHeadAttention(WIDTH, heads, causal, masked=masked)
    x, p, dy = draw(layer, (BATCH, TOKENS, WIDTH))
    y, dx, gradients = run(layer, x, p, dy)
    module = torch.nn.MultiheadAttention(WIDTH, heads, batch_first=True).double()
    later = torch.triu(torch.ones(TOKENS, TOKENS, dtype=bool), 1) if causal else None

    def joined(nest, name, s):
        return np.concatenate([one[name][s].T for one in nest])

    for s in range(SEEDS):
        with torch.no_grad():
            module.in_proj_weight.copy_(torch.tensor(joined(p[0], "W", s)))
            module.in_proj_bias.copy_(torch.tensor(joined(p[0], "b", s)))
            module.out_proj.weight.copy_(torch.tensor(p[2]["W"][s].T))
            module.out_proj.bias.copy_(torch.tensor(p[2]["b"][s]))
        module.zero_grad()
        their_x = torch.tensor(x[s], requires_grad=True)
        padding = torch.tensor(HIDDEN[s] != 0) if masked else None
        their_y, weights = module(
            *[their_x] * 3, key_padding_mask=padding, attn_mask=later, average_attn_weights=False
        )
        their_y.backward(torch.tensor(dy[s]))
        close(y[s], their_y.detach())
        close(dx[s], their_x.grad)
        close(joined(gradients[0], "W", s), module.in_proj_weight.grad)
        close(joined(gradients[0], "b", s), module.in_proj_bias.grad)
        close(gradients[2]["W"][s].T, module.out_proj.weight.grad)
        close(gradients[2]["b"][s], module.out_proj.bias.grad)
        _, tape = layer.forward(x, p, Workspace())
        close(tape[1]["attention"][s], weights.detach())


# --- laws ---------------------------------------------------------------------------------------


def block(**options):
    branch = Chain([LayerNorm(), MultiHeadAttention(WIDTH, 2, **options)])
    return Residual(branch, 0.5)


@pytest.mark.parametrize("case", CASES)
def test_laws_of_attention(case):
    given = {"hidden": HIDDEN} if case[3] else {}
    layer = ScaledDotProductAttention(*case)
    shape = (BATCH, 3, TOKENS, WIDTH)
    assert laws.check(layer, shape, parameters=given, seeds=SEEDS) == list(laws.LAWS)


def test_laws_of_one_token_and_of_many():
    laws.check(ScaledDotProductAttention(2), (1, 3, 1, 2))
    laws.check(ScaledDotProductAttention(1, causal=True), (2, 3, 19, 3), seeds=1)


def test_laws_of_composites():
    """Each type by itself: the gradient of K's bias is 0, so its rounding has no relative size."""
    masked, shape = {"1.1.hidden": HIDDEN}, (BATCH, TOKENS, WIDTH)
    for dtype in ("float64", "float32"):
        laws.check(MultiHeadAttention(WIDTH, 3), (2, 4, WIDTH), seeds=2, dtypes=[dtype])
        laws.check(block(causal=True), (2, 4, WIDTH), seeds=2, dtypes=[dtype])
        given = {"parameters": masked, "seeds": SEEDS, "dtypes": [dtype]}
        laws.check(block(masked=True), shape, **given)


def test_the_bias_of_keys_has_no_gradient():
    layer = MultiHeadAttention(WIDTH, 2)
    _, _, gradients = run(layer, *draw(layer, (BATCH, TOKENS, WIDTH)))
    q, k, _ = (np.abs(own["b"]).max() for own in gradients[0])
    assert k < 1e-13 * q


def test_a_watch_is_called_in_the_order_of_the_backward_pass():
    layer = MultiHeadAttention(WIDTH, 2)
    x, p, dy = draw(layer, (BATCH, TOKENS, WIDTH))
    _, tape = layer.forward(x, p, Workspace())
    names = []
    layer.pullback(dy, tape, Workspace(), lambda layer, *rest: names.append(layer.name))
    assert names == ["O", "attention", "V", "K", "Q", "projections"]
    assert names[:-1] == [layer.name for layer in primitives(layer)][::-1]


# --- wrong versions -----------------------------------------------------------------------------


class InNumPy(ScaledDotProductAttention):
    """The pullback from the formulas, of which ``wrong`` names one that is changed."""

    wrong = ""
    recorded = False

    def pullback(self, dy, tape, workspace, watch=None):
        x, A = tape["x"], tape["attention"]
        s, n, _, t, d = x.shape
        scale = np.asarray(self.declare(x.shape[1:]).constants[0], x.dtype)

        def split(a):
            return np.swapaxes(a.reshape(s, n, t, self.heads, -1), 2, 3)

        q, k, v = (split(x[:, :, i]) for i in range(3))
        g = split(dy)
        dA = g @ v.swapaxes(-1, -2)
        mean = 0 if self.wrong == "no mean" else (dA * A).sum(-1, keepdims=True)
        dS = (A if self.wrong != "no weights" else 1) * (dA - mean)
        left = dS if self.wrong == "untransposed" else dS.swapaxes(-1, -2)
        dk = (1 if self.wrong == "unscaled" else scale) * left @ q
        parts = [scale * dS @ k, dk, A.swapaxes(-1, -2) @ g]
        if self.wrong == "swapped":
            parts = [parts[1], parts[0], parts[2]]
        dx = workspace.take(x.shape, x.dtype)
        for i, part in enumerate(parts):
            dx[:, :, i] = part.swapaxes(2, 3).reshape(s, n, t, d)
        if self.wrong == "one part in a million":
            dx[:, :, 1, :, 0] *= 1 + 1e-6
        if watch is not None:
            watch(self, tape, dy, dx, {})
        return dx, {}


@pytest.mark.parametrize(
    "wrong",
    ["", "no mean", "no weights", "untransposed", "unscaled", "swapped", "one part in a million"],
)
def test_wrong_pullbacks_are_rejected(wrong):
    layer = InNumPy(2, causal=True)
    layer.wrong = wrong
    if not wrong:
        laws.check(layer, (2, 3, 4, 6))
        return
    with pytest.raises(laws.LawBroken) as broken:
        laws.check(layer, (2, 3, 4, 6))
    assert broken.value.law == "adjoint"


# --- what sees what -----------------------------------------------------------------------------


def test_a_query_does_not_see_what_is_hidden():
    """Not a bit changes with the values and keys of hidden tokens, nor do these get a gradient."""
    layer, (x, p, dy) = attention((2, False, None, True))
    y, dx, _ = run(layer, x, p, dy)
    _, tape = layer.forward(x, p, Workspace())
    hidden = np.broadcast_to(HIDDEN[:, :, None, None] != 0, tape["attention"].shape)
    assert np.all(tape["attention"][hidden] == 0) and np.all(tape["attention"][~hidden] > 0)
    where = HIDDEN != 0
    for part in (1, 2):
        assert np.all(dx[:, :, part][where] == 0) and np.all(dx[:, :, part][~where] != 0)
        x[:, :, part][where] = 1e3
    np.testing.assert_array_equal(run(layer, x, p, dy)[0], y)


def test_a_query_does_not_see_later_tokens():
    layer, (x, p, dy) = attention((2, True, None, False))
    y, *_ = run(layer, x, p, dy)
    close(y[:, :, 0], x[:, :, 2, 0])
    for t in range(1, TOKENS):
        changed = x.copy()
        changed[:, :, 1:, t:] = 7.0
        after = run(layer, changed, p, dy)[0]
        np.testing.assert_array_equal(after[:, :, :t], y[:, :, :t])
        assert np.all(after[:, :, t] != y[:, :, t])


def test_attention_without_scale_is_the_mean():
    layer, (x, p, dy) = attention((3, False, 0.0, False))
    y, dx, _ = run(layer, x, p, dy)
    close(y, np.repeat(x[:, :, 2].mean(axis=2, keepdims=True), TOKENS, axis=2))
    assert not dx[:, :, :2].any()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_large_logits_are_no_trouble(dtype):
    layer = ScaledDotProductAttention(1, scale=1.0)
    x = np.zeros((1, 1, 3, 3, 1), dtype)
    x[0, 0, :, :, 0] = [1e3, -1e3, 0], [1e3, -1e3, 0], [1, 2, 3]
    y, dx, _ = run(layer, x, {}, np.ones((1, 1, 3, 1), dtype))
    np.testing.assert_array_equal(y[0, 0, :, 0], [1, 2, 2])
    assert np.isfinite(dx).all()


def test_single_precision_is_double_rounded():
    layer = ScaledDotProductAttention(2, scale=3.0)
    x, p, dy = draw(layer, (4, 3, 33, 16), np.float32)
    single = run(layer, x, p, dy)
    _, tape = layer.forward(x, p, Workspace())
    wide = x.astype(float)
    double = run(layer, wide, p, dy.astype(float))
    for a, b in zip(single[:2], double[:2], strict=True):
        close(a, b, 1e-6)
    _, wide_tape = layer.forward(wide, p, Workspace())
    # Logits of size 40 are rounded to 2^-19, and e^z carries that on.
    np.testing.assert_allclose(tape["attention"], wide_tape["attention"], rtol=2e-5, atol=1e-37)
    np.testing.assert_allclose(tape["attention"].sum(-1), 1, rtol=1e-6)


def test_exponential_in_single_precision():
    """With one feature, scale 1 and a query of 1 the keys are the logits."""
    z = -np.geomspace(1e-3, 80, 400).astype(np.float32)
    x = np.zeros((1, 1, 3, 401, 1), np.float32)
    x[0, 0, 0], x[0, 0, 1, 1:, 0] = 1, z
    _, tape = ScaledDotProductAttention(1, scale=1.0).forward(x, {}, Workspace())
    weights = tape["attention"][0, 0, 0, 0].astype(float)
    np.testing.assert_allclose(weights[1:] / weights[0], np.exp(z.astype(float)), rtol=3e-7)


def test_a_token_that_is_not_a_number_shows():
    layer, (x, p, dy) = attention((2, False, None, False))
    x[0, 1, 1, 2, 4] = np.nan  # a key in the second head
    y, *_ = run(layer, x, p, dy)
    assert np.isnan(y[0, 1, :, 3:]).all() and np.isfinite(y[0, 1, :, :3]).all()
    assert np.isfinite(y[1]).all() and np.isfinite(y[0, 0]).all()


# --- entropy and cosine -------------------------------------------------------------------------


def test_entropy():
    uniform, sure = np.full((1, 2, 3, 4, 7), 1 / 7), np.zeros((1, 2, 3, 4, 7))
    sure[..., 2] = 1
    assert attention_entropy(uniform)[0] == pytest.approx(math.log(7), rel=1e-14)
    assert attention_entropy(sure)[0] == 0
    random = np.random.default_rng(0)
    p = random.dirichlet(np.ones(5), (SEEDS, 2, 3, 5))
    expected = -(p * np.log(p)).sum(axis=-1).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(attention_entropy(p), expected, rtol=1e-13)
    np.testing.assert_allclose(attention_entropy(p.astype("float32")), expected, rtol=1e-6)


def test_cosine():
    random = np.random.default_rng(0)
    x = random.standard_normal((SEEDS, BATCH, TOKENS, WIDTH)) + 0.5
    unit = x / np.linalg.norm(x, axis=-1, keepdims=True)
    pairs = unit @ unit.swapaxes(-1, -2)
    different = ~np.eye(TOKENS, dtype=bool)
    expected = pairs[..., different].mean(axis=(1, 2))
    np.testing.assert_allclose(token_cosine(x), expected, rtol=1e-13)
    np.testing.assert_allclose(token_cosine(x.astype("float32")), expected, rtol=1e-6)
    alike = x[:, :, :1] * np.arange(1, 5)[:, None]
    np.testing.assert_allclose(token_cosine(alike), 1, rtol=1e-14)
    apart = np.broadcast_to(np.eye(4), (1, 2, 4, 4)).copy()
    assert token_cosine(apart)[0] == 0
    assert token_cosine(apart * np.array([1, -1, 1, 1]))[0] == 0
    x[0, 1, 2] = 0
    assert np.isnan(token_cosine(x)).tolist() == [True, False]
    assert np.isnan(token_cosine(x[:, :, :1].copy())).all()


# --- what is refused ----------------------------------------------------------------------------


def refused(mask, causal=False):
    layer = ScaledDotProductAttention(2, causal, masked=True)
    x, _, _ = draw(layer, (BATCH, 3, TOKENS, WIDTH))
    return layer.forward(x, {"hidden": mask}, Workspace())


ALL, FIRST = HIDDEN.copy(), HIDDEN.copy()
ALL[1, 2], FIRST[1, 0, 0] = 1, 1


@pytest.mark.parametrize(
    "make, error, line",
    [
        (
            lambda: ScaledDotProductAttention(0),
            InputError,
            "attention: heads must be at least 1; got 0",
        ),
        (
            lambda: ScaledDotProductAttention(2, scale=math.inf),
            InputError,
            "attention: scale must be a finite number; got inf",
        ),
        (
            lambda: ScaledDotProductAttention(4).declare((2, 3, 5, 6)),
            ShapeError,
            "attention: heads must divide the 6 features; got 4 heads",
        ),
        (
            lambda: MultiHeadAttention(6, 4),
            ShapeError,
            "attention: heads must divide the 6 features; got 4 heads",
        ),
        (
            lambda: ScaledDotProductAttention(2).declare((2, 5, 6)),
            ShapeError,
            "attention: input must have axes (batch, 3, tokens, features); got shape (2, 5, 6)",
        ),
        (
            lambda: refused(ALL),
            InputError,
            "attention: hidden must leave every query a key; "
            "got a mask that hides every key, in example 2 of network 1",
        ),
        (
            lambda: refused(FIRST, causal=True),
            InputError,
            "attention: hidden must leave every query a key; got a mask that hides the first "
            "token, all that the first query sees, in example 0 of network 1",
        ),
    ],
)
def test_bad_input_is_one_line(make, error, line):
    with pytest.raises(error) as caught:
        make()
    assert str(caught.value) == line


def test_a_mask_without_the_first_token_is_allowed_where_all_is_seen():
    y, _ = refused(FIRST)
    assert np.isfinite(y).all()
