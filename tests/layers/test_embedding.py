"""Embeddings and positions: laws, frameworks, the published table, norms of examples."""

import math

import numpy as np
import pytest

from flowlab import laws
from flowlab.errors import InputError
from flowlab.kernel import ShapeError
from flowlab.layer import Chain, Workspace
from flowlab.layers import Linear, PositionalEncoding, TokenEmbedding
from flowlab.layers.embedding import sinusoids
from tests.support.passes import close, run

SEEDS, BATCH, TOKENS, WIDTH, VOCABULARY = 2, 4, 6, 5, 7
X = np.random.default_rng(1).integers(0, VOCABULARY, (SEEDS, BATCH, TOKENS)).astype(float)
# Laws move inputs in proportion to them, and try 1 - 3x for the middle example: it must be 0.
SMALL = np.random.default_rng(2).integers(0, 2, (SEEDS, BATCH, TOKENS)).astype(float)
SMALL[:, BATCH // 2] = 0
BOTH = [PositionalEncoding(9), PositionalEncoding(6, "sinusoidal")]


def normal(*shape, seed=3):
    return np.random.default_rng(seed).standard_normal(shape)


# --- tokens -------------------------------------------------------------------------------------


def test_tokens_against_frameworks(apart):
    assert apart(TokenEmbedding(VOCABULARY, WIDTH), (BATCH, TOKENS), inputs=X) < 1e-13


def test_tokens_have_no_gradient():
    W, dy = normal(SEEDS, VOCABULARY, WIDTH), normal(SEEDS, BATCH, TOKENS, WIDTH, seed=4)
    y, dx, _ = run(TokenEmbedding(VOCABULARY, WIDTH), X, {"W": W}, dy)
    assert dx.shape == X.shape and not dx.any()
    for s in range(SEEDS):
        np.testing.assert_array_equal(y[s], W[s][X[s].astype(int)])


def test_laws_of_tokens():
    embedding, given = TokenEmbedding(4, WIDTH), {"inputs": SMALL, "seeds": SEEDS}
    assert laws.check(embedding, (BATCH, TOKENS), **given) == list(laws.LAWS)
    net = Chain([embedding, PositionalEncoding(9), Linear(3)])
    laws.check(net, (BATCH, TOKENS), **given)
    assert not net.homogeneous and not embedding.homogeneous


class LastPlaceAlone(TokenEmbedding):
    """A gradient that is written where it must be added."""

    def pullback(self, dy, tape, workspace, watch=None):
        dx, gradients = super().pullback(dy, tape, workspace)
        for s, n, t in np.ndindex(tape["x"].shape):
            gradients["W"][s, int(tape["x"][s, n, t])] = dy[s, n, t]
        return dx, gradients


class InputGradient(TokenEmbedding):
    def pullback(self, dy, tape, workspace, watch=None):
        dx, gradients = super().pullback(dy, tape, workspace)
        dx[...] = dy.sum(axis=-1)
        return dx, gradients


class RowsAbove(TokenEmbedding):
    def pullback(self, dy, tape, workspace, watch=None):
        dx, gradients = super().pullback(dy, tape, workspace)
        gradients["W"][...] = np.roll(gradients["W"], 1, axis=1)
        return dx, gradients


@pytest.mark.parametrize("wrong", [LastPlaceAlone, InputGradient, RowsAbove])
def test_wrong_embeddings_are_rejected(wrong):
    with pytest.raises(laws.LawBroken) as broken:
        laws.check(wrong(4, WIDTH), (BATCH, TOKENS), inputs=SMALL, seeds=SEEDS)
    assert broken.value.law == "adjoint"


@pytest.mark.parametrize(
    "dtype, up", [("float64", 0), ("float64", -200), ("float64", 250), ("float32", 30)]
)
def test_example_norms_of_tokens(dtype, up):
    """Against the gradients that each example gives when it is alone; tokens recur in one."""
    layer, W = TokenEmbedding(VOCABULARY, WIDTH), normal(SEEDS, VOCABULARY, WIDTH)
    dy, out, squares = normal(SEEDS, BATCH, TOKENS, WIDTH), np.empty((SEEDS, 1)), 0.0
    for n in range(BATCH):
        one = slice(n, n + 1)
        _, _, alone = run(layer, X[:, one].copy(), {"W": W}, dy[:, one].copy())
        squares = squares + np.sum(alone["W"] ** 2, axis=(1, 2))
    layer.example_norms(X.astype(dtype), (dy * 10.0**up).astype(dtype), out)
    expected = 0.5 * np.log2(squares) + up * np.log2(10)
    np.testing.assert_allclose(out[:, 0], expected, rtol=0, atol=1e-12 if up == 0 else 1e-5)
    dy[0], dy[1, 2, 3, 4] = 0, np.nan
    layer.example_norms(X, dy, out)
    assert out[0, 0] == -np.inf and np.isnan(out[1, 0])


# --- positions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", BOTH, ids=lambda layer: layer.kind)
@pytest.mark.parametrize("shape", [(BATCH, TOKENS, WIDTH), (1, 1, 1)])
def test_laws_of_positions(layer, shape):
    laws.check(layer, shape)
    assert not layer.homogeneous and layer.trainable == (layer.kind == "learned")


def test_learned_positions():
    P, x, dy = (normal(SEEDS, *shape) for shape in [(9, WIDTH), *[(BATCH, TOKENS, WIDTH)] * 2])
    y, dx, gradients = run(BOTH[0], x, {"P": P}, dy)
    np.testing.assert_array_equal(y, x + P[:, None, :TOKENS])
    np.testing.assert_array_equal(dx, dy)
    close(gradients["P"][:, :TOKENS], dy.sum(axis=1), 1e-13)
    assert not gradients["P"][:, TOKENS:].any()
    out = np.empty((SEEDS, 1))
    for scale in (1.0, 1e-250, 1e250):
        BOTH[0].example_norms(x, scale * dy, out)
        expected = np.log2(np.linalg.norm(dy.reshape(SEEDS, -1), axis=1)) + np.log2(scale)
        np.testing.assert_allclose(out[:, 0], expected, rtol=1e-13)


@pytest.mark.parametrize("features", [6, 5, 1])
def test_sinusoids_are_those_published(features):
    for t, j in np.ndindex(TOKENS, features):
        wave = (math.sin, math.cos)[j % 2]
        expected = wave(t / 10000 ** ((j - j % 2) / features))
        assert sinusoids(TOKENS, features)[t, j] == pytest.approx(expected, rel=1e-14)
    layer = PositionalEncoding(TOKENS, "sinusoidal")
    x = normal(SEEDS, BATCH, 4, features)
    y, dx, gradients = run(layer, x, {}, x)
    np.testing.assert_array_equal(y, x + sinusoids(4, features))
    np.testing.assert_array_equal(dx, x)
    assert gradients == {} and layer.example_norms is None


class OnePositionLost(PositionalEncoding):
    def pullback(self, dy, tape, workspace, watch=None):
        dx, gradients = super().pullback(dy, tape, workspace)
        gradients["P"][:, 2] = 0
        return dx, gradients


def test_wrong_positions_are_rejected():
    with pytest.raises(laws.LawBroken) as broken:
        laws.check(OnePositionLost(6), (BATCH, TOKENS, WIDTH))
    assert broken.value.law == "adjoint"


def test_tables_are_drawn_with_variance_one():
    """By a scheme of variance 1/fan_in: one row is read at a time."""
    for declared in (
        TokenEmbedding(9, 4).declare((2, 3)).parameters["W"],
        PositionalEncoding(9).declare((2, 3, 4)).parameters["P"],
    ):
        assert (declared.shape, declared.fan_in, declared.fan_out) == ((9, 4), 1, 4)
        assert declared.role == "weight"


# --- what is refused ----------------------------------------------------------------------------


def embed(token):
    W = {"W": np.ones((1, 7, 2))}
    return TokenEmbedding(7, 2).forward(np.array([[[1.0, token]]]), W, Workspace())


@pytest.mark.parametrize(
    "make, error, line",
    [
        *(
            (
                lambda token=token: embed(token),
                InputError,
                "token_embedding: tokens must be at least 0 and below the vocabulary, 7; "
                f"got {token:g}",
            )
            for token in (7.0, -1.0, math.nan, math.inf)
        ),
        (
            lambda: TokenEmbedding(0, 3),
            InputError,
            "token_embedding: vocabulary must be at least 1; got 0",
        ),
        (
            lambda: TokenEmbedding(3, 0),
            InputError,
            "token_embedding: features must be at least 1; got 0",
        ),
        (
            lambda: TokenEmbedding(3, 2).declare((2, 3, 4)),
            ShapeError,
            "token_embedding: input must have axes (batch, tokens); got shape (2, 3, 4)",
        ),
        (
            lambda: PositionalEncoding(0),
            InputError,
            "positional_encoding: length must be at least 1; got 0",
        ),
        (
            lambda: PositionalEncoding(4, "learnt"),
            InputError,
            "positional_encoding: kind must be one of learned, sinusoidal; got learnt; "
            "did you mean learned?",
        ),
        (
            lambda: PositionalEncoding(4, "sinusoidal").declare((2, 5, 3)),
            ShapeError,
            "positional_encoding: sequence length must be at most the position table's 4; got 5",
        ),
        (
            lambda: PositionalEncoding(4).declare((2, 3)),
            ShapeError,
            "positional_encoding: input must have axes (batch, tokens, features); got shape (2, 3)",
        ),
    ],
)
def test_bad_input_is_one_line(make, error, line):
    with pytest.raises(error) as caught:
        make()
    assert str(caught.value) == line
