"""Covariances over positions: windows by hand, exchangeable members, moments by quadrature."""

import numpy as np
import pytest

from flowlab.errors import InputError
from flowlab.theory import ACTIVATIONS, get_activation
from flowlab.theory.field_moments import Pairs, one_point
from flowlab.theory.finite_width import exact_step, orthogonal_relu_step
from flowlab.theory.normalization import batch_norm_rate, pre_batch_norm
from flowlab.theory.position_covariances import PositionCovariances, Windows, windows_freedom

BENT = ("tanh", "gelu", "selu", "softplus")


@pytest.mark.parametrize("circular", [True, False])
def test_windows_move_along_with_both_positions(circular):
    shape, size, rng = (4, 3), 3, np.random.default_rng(0)
    pairs = rng.standard_normal((12, 12))
    expected = np.zeros_like(pairs)
    for p, q in np.ndindex(12, 12):
        for o in np.ndindex(size, size):
            ends = []
            for at in (p, q):
                place = np.array(np.unravel_index(at, shape)) + o - 1
                inside = circular or np.all((place >= 0) & (place < shape))
                ends.append(np.ravel_multi_index(tuple(place % shape), shape) if inside else None)
            if None not in ends:
                expected[p, q] += pairs[tuple(ends)] / size**2
    np.testing.assert_allclose(Windows(shape, (3, 3), circular)(pairs), expected, atol=1e-12)


@pytest.mark.parametrize("name", [*BENT, "relu", "identity"])
def test_one_point_moments_by_quadrature(name):
    """E phi^2 and E phi'^2 by the trapezoid rule on a fine grid, at q across many decades."""
    act, z = get_activation(name), np.linspace(-12, 12, 400_001)
    weights = np.exp(-z * z / 2)
    weights /= weights.sum()
    for log_q in (-20.3, -3.14, 0.07, 2.9, 7.7):
        u = np.exp(log_q / 2) * z
        found = one_point(act)(np.array([log_q]))
        expected = [np.log(f(u) ** 2 @ weights) for f in (act.phi, act.derivative)]
        np.testing.assert_allclose(np.ravel(found), expected, atol=1e-4)
    found = one_point(act)(np.array([-np.inf]))
    with np.errstate(divide="ignore"):
        expected = 2 * np.log(np.abs([act.phi(np.zeros(1)), act.derivative(np.zeros(1))]))
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize("name", [name for name in BENT if name != "selu"])
def test_pairs_of_unequal_variance_by_quadrature(name):
    """Gauss-Hermite in two dimensions, of smooth activations."""
    act, q, c = get_activation(name), np.array([0.3, 2.0]), 0.6
    x, w = np.polynomial.hermite_e.hermegauss(120)
    w = np.outer(w, w) / w.sum() ** 2
    u = np.sqrt(q[0]) * x[:, None] * np.ones(120)
    v = np.sqrt(q[1]) * (c * x[:, None] + np.sqrt(1 - c * c) * x)
    pairs = Pairs(act, np.log(q))
    at = np.array([[1.0, c], [c, 1.0]])
    d = act.derivative
    for found, one, f in (
        (pairs.values(at), pairs.log_phi2, act.phi),
        (pairs.slopes(at), pairs.log_mu1, d),
        (pairs.overlaps(at)[1], 2 * pairs.log_mu1, lambda u: d(u) ** 2),
    ):
        expected = (w * f(u) * f(v)).sum() / np.exp(one.sum() / 2)
        assert found[0, 1] == pytest.approx(expected, rel=5e-3)
    tilts = (w * u * d(u) * v * d(v)).sum() / np.sqrt(q.prod()) / np.exp(pairs.log_mu1.sum() / 2)
    assert pairs.tilts(at)[0, 1] == pytest.approx(tilts, rel=1e-2)


def kernels(activation, layers, norm="batch", batch=4, shape=(4, 4), kernel=(1, 1), **options):
    size = int(np.prod(shape))
    inputs = np.stack([np.eye(size), np.zeros((size, size))])
    windows = Windows(shape, kernel, options.pop("circular", True))
    return PositionCovariances(
        activation, layers, inputs=inputs, batch=batch, windows=windows, norm=norm, **options
    )


@pytest.mark.parametrize("activation", ["relu", "identity", "tanh", "gelu"])
def test_positions_without_windows_are_a_batch(activation):
    """64 exchangeable members: batch norm's rate (Yang et al. 2019), to second order in 1/64 where
    phi is homogeneous and to first where it bends."""
    found = kernels(activation, [[(2.0, 0.3)]] * 5).back().log_rate
    expected = np.log(batch_norm_rate(activation, 64))
    bends = activation in BENT
    np.testing.assert_allclose(found[1:-1], expected, atol=1 / 64 if bends else 20 / 64**2)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_residual_positions_without_windows_are_a_batch(activation):
    found = kernels(activation, [[(1.5, 0.0)]] * 8, residual=True, branch_scale=0.7).back()
    start = 1.5 * 1.0
    flow = pre_batch_norm(activation, 64, 1.5, 7, start=start, branch_scale=0.7)
    np.testing.assert_allclose(found.log_rate, np.log(flow.rate), atol=20 / 64**2)
    np.testing.assert_allclose(found.share, 1 - 1 / flow.rate, atol=20 / 64**2)


def test_a_border_takes_its_share_of_a_norm():
    """What zeros at the border take from the variance a norm gives back."""
    for norm in ("example", "batch"):
        found = kernels("relu", [[(2.0, 0.0)]] * 40, norm, 16, (6, 6), (3, 3), circular=False).back(
            white=False
        )
        plain = kernels("relu", [[(2.0, 0.0)]] * 40, "none", 16, (6, 6), (3, 3), circular=False)
        lost = plain.back(white=False).log_rate[15]
        assert lost < -0.1
        assert found.log_rate[15] > lost + 0.1


def test_degrees_of_freedom_of_windows():
    """By the eigenvalues of the members' covariance; few for few features, none for constants."""
    rng, windows = np.random.default_rng(1), Windows((5, 4), (3, 3), False)
    x = rng.standard_normal((6, 2, 5, 4))
    features = []
    for b, i, j in np.ndindex(6, 5, 4):
        field = np.pad(x[b], ((0, 0), (1, 1), (1, 1)))
        features.append(field[:, i : i + 3, j : j + 3].ravel())
    features = np.array(features) - np.mean(features, axis=0)
    lam = np.linalg.eigvalsh(features @ features.T)
    assert windows_freedom(x, windows) == pytest.approx(lam.sum() ** 2 / (lam**2).sum())
    assert windows_freedom(x[:, :1], Windows((5, 4), (1, 1), False)) == pytest.approx(1.0)
    assert windows_freedom(np.ones((3, 1, 4, 4)), Windows((4, 4), (1, 1), True)) == 0.0


def test_orthogonal_relu_step_by_nets():
    """One example through square orthogonal weights, N = 12; within 4 standard errors."""
    rng, n, depth, nets = np.random.default_rng(2), 12, 6, 1500
    steps = []
    for _ in range(nets):
        z, maps = rng.standard_normal(n), []
        for _ in range(depth):
            q, r = np.linalg.qr(rng.standard_normal((n, n)))
            w = np.sqrt(2) * q * np.sign(np.diag(r))
            maps.append((w, z > 0))
            z = w @ np.maximum(z, 0)
        d = rng.standard_normal(n)
        start = np.log(d @ d)
        for w, on in reversed(maps):
            d = on * (w.T @ d)
        if d @ d > 0:
            steps.append((np.log(d @ d) - start) / depth)
    mean, _ = orthogonal_relu_step(n)
    assert exact_step(get_activation("relu"), n, 3.0, True)[0] == mean
    assert np.mean(steps) == pytest.approx(mean, abs=4 * np.std(steps) / np.sqrt(nets))
    assert mean < -1.5 / n - 0.01  # beyond first order


def test_every_activation_has_moments_at_the_ends_of_its_range():
    for name in ACTIVATIONS:
        phi2, mu1 = one_point(get_activation(name))(np.array([-800.0, 800.0]))
        assert np.isfinite(phi2).all()
        assert np.isfinite(mu1).all()


def test_an_unknown_norm_is_refused_by_name():
    with pytest.raises(InputError, match="norm must be one of none, example, batch; got layer"):
        kernels("relu", [[(1.0, 0.0)]], "layer")
