"""Theory against closed forms, SciPy and simulation in plain NumPy."""

import numpy as np
import pytest
from scipy import integrate

from flowlab import theory
from flowlab.errors import InputError


@pytest.mark.parametrize(
    "sigma_b2, sigma_w2",
    [(0, 1), (1e-4, 1.08603), (0.01, 1.42421), (0.05, 1.76096), (0.1, 1.98607), (0.3, 2.50513)],
)
def test_critical_line_of_tanh(sigma_b2, sigma_w2):
    assert theory.critical_sigma_w2("tanh", sigma_b2) == pytest.approx(sigma_w2, abs=6e-6)


@pytest.mark.parametrize(
    "sigma_w2, q, chi, c, xi_q, xi_c",
    [
        (1.0, 0.1936, 0.7590, 1, 1.75, 3.63),
        (1.5, 0.4180, 0.9386, 1, 1.68, 15.8),
        (2.5, 1.0640, 1.1335, 0.447, 1.18, 11.8),
    ],
)
def test_phases_of_tanh(sigma_w2, q, chi, c, xi_q, xi_c):
    fixed = theory.q_fixed_point("tanh", sigma_w2, 0.05)
    scales = theory.depth_scales("tanh", sigma_w2, 0.05)
    assert fixed == pytest.approx(q, abs=6e-5)
    assert theory.chi("tanh", fixed, sigma_w2) == pytest.approx(chi, abs=6e-5)
    assert theory.c_fixed_point("tanh", sigma_w2, 0.05) == pytest.approx(c, abs=6e-4)
    assert scales.xi_q == pytest.approx(xi_q, abs=6e-3)
    assert scales.xi_c == pytest.approx(xi_c, abs=6e-2)
    assert -1 / scales.xi_grad == pytest.approx(np.log(chi), abs=1e-4)


@pytest.mark.parametrize(
    "activation, sigma_w2, chi",
    [
        ("identity", 1, 1),
        ("identity", 2, 2),
        ("relu", 1, 0.5),
        ("relu", 2, 1),
        ("relu", 1 / 3, 0.1667),
        (theory.leaky_relu(0.2), 1, 0.52),
        (theory.leaky_relu(0.2), 2, 1.04),
        ("tanh", 1, 1),
        ("tanh", 2, 1.1055),
        ("tanh", 25 / 9, 1.2098),
        ("tanh", 1 / 3, 0.3333),
        ("sigmoid", 1, 0.0557),
        ("sigmoid", 2, 0.1010),
        ("sigmoid", 1 / 3, 0.0200),
        ("selu", 1, 1.0716),
        ("selu", 1 / 3, 0.699),
        ("erf", 1, 1.0169),
        ("erf", 2, 1.1974),
        ("erf", 1 / 3, 0.424),
    ],
)
def test_chi_at_the_fixed_point(activation, sigma_w2, chi):
    q = theory.q_fixed_point(activation, sigma_w2)
    assert theory.chi(activation, q, sigma_w2) == pytest.approx(
        chi, abs=5.1e-4 if chi < 1 else 6e-5
    )


def test_fixed_points_that_are_zero_infinite_or_everywhere():
    assert theory.q_fixed_point("selu", 1) == pytest.approx(1, rel=1e-9)
    assert theory.q_fixed_point("tanh", 25 / 9) == pytest.approx(1.178, abs=6e-4)
    assert theory.q_fixed_point("tanh", 1) == 0
    assert theory.q_fixed_point("gelu", 2) == 0
    assert theory.q_fixed_point("selu", 2) == np.inf
    assert theory.q_fixed_point("relu", 2, start=3.0) == 3.0
    assert theory.q_fixed_point("relu", 1, 0.3) == pytest.approx(0.6)
    assert theory.depth_scales("relu", 2).xi_grad == np.inf
    assert theory.critical_sigma_w2(theory.leaky_relu(0.3)) == pytest.approx(2 / 1.09)
    assert theory.critical_sigma_w2("erf") == pytest.approx(np.pi / 4)


@pytest.mark.parametrize("q", [1e-12, 0.3, 1.0, 40.0, 1e6])
@pytest.mark.parametrize("c", [-0.6, 0.0, 0.5, 0.99])
def test_erf_matches_its_closed_forms(q, c):
    kernel = 2 / np.pi * np.arcsin(2 * q * c / (1 + 2 * q))
    own = 2 / np.pi * np.arcsin(2 * q / (1 + 2 * q))
    assert theory.q_map("erf", q, 1.3, 0.0) == pytest.approx(1.3 * own, rel=1e-10)
    assert theory.chi("erf", q, 1.3) == pytest.approx(
        1.3 * 4 / np.pi / np.sqrt(1 + 4 * q), rel=1e-10
    )
    if q <= 40:
        assert theory.c_map("erf", c, q, 1.3) == pytest.approx(kernel / own, rel=1e-8, abs=1e-12)
        expected = 4 / np.pi / np.sqrt((1 + 2 * q) ** 2 - 4 * (q * c) ** 2)
        assert theory.chi_c("erf", c, q, 1.0) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("name", sorted(theory.ACTIVATIONS))
def test_moments_match_adaptive_quadrature(name):
    act, q = theory.get_activation(name), 1.7

    def mean(f):
        def integrand(z):
            return float(f(np.float64(np.sqrt(q) * z))) ** 2 * np.exp(-z * z / 2)

        halves = [
            integrate.quad(integrand, *ends, epsabs=0, epsrel=1e-12)
            for ends in ((-14, -1e-300), (1e-300, 14))
        ]
        return sum(half[0] for half in halves) / np.sqrt(2 * np.pi)

    assert theory.q_map(name, q, 1.0) == pytest.approx(mean(act.phi), rel=1e-10)
    assert theory.chi(name, q, 1.0) == pytest.approx(mean(act.derivative), rel=1e-10)


@pytest.mark.parametrize("name", sorted(theory.ACTIVATIONS))
def test_derivatives_match_finite_differences(name):
    act = theory.get_activation(name)
    u = np.linspace(-4, 4, 41) + 0.013
    slope = (act.phi(u + 1e-6) - act.phi(u - 1e-6)) / 2e-6
    np.testing.assert_allclose(act.derivative(u), slope, rtol=1e-7, atol=1e-9)


def test_tanh_limits_of_small_and_large_variance():
    assert theory.q_map("tanh", 1e-4, 1.0) == pytest.approx(1e-4 - 2e-8, rel=1e-6)
    assert theory.chi("tanh", 1e-4, 1.0) == pytest.approx(1 - 2e-4, rel=1e-6)
    assert theory.chi("tanh", 1e8, 1.0) == pytest.approx(4 / 3 / np.sqrt(2 * np.pi * 1e8), rel=1e-6)
    assert theory.q_map("tanh", 1e-300, 0.5) == pytest.approx(5e-301, rel=1e-9)
    assert theory.q_map("gelu", 1e300, 1.0) == pytest.approx(5e299, rel=1e-9)


def test_xavier_tanh_is_a_power_law():
    q = theory.q_trajectory("tanh", 1.0, 1.0, 0.0, 1000)
    assert 2000 * q[-1] == pytest.approx(1, abs=0.01)
    assert 1000 * np.prod([theory.chi("tanh", x, 1.0) for x in q[:-1]]) == pytest.approx(
        0.71, abs=0.01
    )


def test_relu_correlation_tends_to_one_as_a_power_law():
    c = 0.0
    for _ in range(5000):
        c = theory.c_map("relu", c, 1.0, 2.0)
    assert (1 - c) * 5000**2 == pytest.approx(9 * np.pi**2 / 2, rel=0.02)


def test_he_relu_step_matches_a_draw():
    rng, n = np.random.default_rng(0), 24
    k = rng.binomial(n, 0.5, 400_000)
    step = np.log(2 * rng.chisquare(k[k > 0]) / n)
    mean, variance = theory.step_mean_variance("relu", n)
    assert abs(step.mean() - mean) < 4 * np.sqrt(variance / step.size)
    assert step.var() == pytest.approx(variance, rel=0.015)


@pytest.mark.parametrize(
    "activation, orthogonal, expected",
    [
        ("identity", False, 2),
        ("relu", False, 5),
        ("identity", True, 0),
        ("relu", True, 3),
        (theory.leaky_relu(0.3), False, 6 * 1.0081 / 1.09**2 - 1),
    ],
)
def test_kappa(activation, orthogonal, expected):
    assert theory.kappa(activation, orthogonal=orthogonal) == pytest.approx(expected, abs=1e-12)


def test_a_batch_of_identical_examples_fluctuates_as_one():
    from flowlab.theory.finite_width import BackwardMap, batch_step

    relu = BackwardMap(h=1.0, m=2.0, m1=2.0)
    assert batch_step([relu], 1.0, 50, 16, 1.0) == pytest.approx((5 / 50, 1.0))
    linear = BackwardMap(1.0, 1.0, 1.0)
    assert batch_step([linear], 1.0, 50, 16, 0.2)[0] == pytest.approx(
        2 / 50 * (1 / 16 + 15 / 16 * 0.2)
    )
    assert batch_step([linear], 0.2, 50, 1, 1.0)[0] == pytest.approx(
        (4 / 4 + 2 / 16) / (1.25**2 * 50)
    )
    orthogonal = BackwardMap(1.0, 1.0, 1.0, orthogonal=1.0)
    assert batch_step([orthogonal], 1.0, 50, 16, 0.2) == pytest.approx((0.0, 0.2))


WIDTH, DEPTH, SEEDS = 64, 30, 200


def simulate(activation, batch, sigma_w2, sigma_b2, residual, scale, upstream):
    """log10 norms (SEEDS, DEPTH) of every quantity, and the mean cosine of the inputs."""
    act, rng = theory.get_activation(activation), np.random.default_rng(7)
    x = 0.55 * rng.standard_normal(WIDTH) + 0.84 * rng.standard_normal((batch, WIDTH))
    x *= np.sqrt(WIDTH) / np.linalg.norm(x, axis=1, keepdims=True)
    cosine = (np.sum(x @ x.T) / WIDTH - batch) / max(batch * (batch - 1), 1)
    names = ("activation", "delta", "dX", "dW", "db")
    out = {name: np.empty((SEEDS, DEPTH)) for name in names}
    for seed in range(SEEDS):
        weights = rng.standard_normal((DEPTH, WIDTH, WIDTH)) * np.sqrt(sigma_w2 / WIDTH)
        biases = rng.standard_normal((DEPTH, WIDTH)) * np.sqrt(sigma_b2)
        z = [x @ weights[0] + biases[0]]
        for w, b in zip(weights[1:], biases[1:], strict=True):
            z.append(scale * (residual * z[-1] + act.phi(z[-1]) @ w + b))
        ones = np.ones((batch, WIDTH))
        delta = (rng.standard_normal(ones.shape) if upstream == "gaussian" else ones) / batch
        for layer in reversed(range(DEPTH)):
            plain_hidden = not residual and layer < DEPTH - 1
            h = act.phi(z[layer - 1]) if layer else x
            d = delta * (scale if layer else 1)
            values = (
                act.phi(z[layer]) if plain_hidden else z[layer],
                delta,
                d @ weights[layer].T,
                h.T @ d,
                d.sum(0),
            )
            for name, value in zip(names, values, strict=True):
                out[name][seed, layer] = np.log10(np.linalg.norm(value))
            if layer:
                branch = (d @ weights[layer].T) * act.derivative(z[layer - 1])
                delta = scale * residual * delta + branch
    return out, cosine


def rows(activation="relu", depth=DEPTH, width=WIDTH, sigma_w2=2.0, sigma_b2=0.0, **options):
    settings = dict(batch_size=1, upstream="gaussian", input_log_q=0.0, input_c=0.0) | options
    return theory.norms_by_layer(
        fan_in=[width] * depth,
        fan_out=[width] * depth,
        sigma_w2=[sigma_w2] * depth,
        sigma_b2=[sigma_b2] * depth,
        activation=activation,
        **settings,
    )


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize(
    "activation, sigma_w2, sigma_b2, skip",
    [
        ("relu", 2.0, 0.0, "none"),
        ("identity", 1.0, 0.0, "none"),
        ("tanh", 1.5, 0.05, "none"),
        ("relu", 2.0, 0.0, "identity"),
        ("relu", 2.0, 0.0, "mix"),
        ("tanh", 1.5, 0.05, "mix"),
    ],
)
def test_prediction_matches_simulation(activation, sigma_w2, sigma_b2, skip, batch):
    """Mean within 4 SE + 0.3 kappa L/N (of the log squared norm), one-seed sd within 25 %.

    Across a skip ReLU's sd is under-estimated by up to 36 %: masks persist from block to block.
    """
    scale = np.sqrt(0.5) if skip == "mix" else 1.0
    measured, cosine = simulate(
        activation, batch, sigma_w2, sigma_b2, skip != "none", scale, "gaussian"
    )
    predicted = rows(
        activation,
        sigma_w2=sigma_w2,
        sigma_b2=sigma_b2,
        skip=skip,
        batch_size=batch,
        input_c=cosine,
    )
    rel = 0.45 if skip != "none" and activation == "relu" else 0.25
    kappa = theory.kappa(activation, predicted.q.iloc[-1] if activation == "tanh" else 1.0)
    for name, values in measured.items():
        column = predicted[f"{name}_log10_norm"], predicted[f"{name}_log10_norm_sd"]
        for layer in (0, DEPTH // 2, DEPTH - 1):
            mean, sd = (c[layer] for c in column)
            error = abs(values[:, layer].mean() - mean)
            slack = 0.3 * kappa * (DEPTH / WIDTH) * 0.5 / np.log(10)
            # The rigorous part: plain nets are an exact random walk for one example.
            slack *= 0.2 if batch == 1 and skip == "none" and activation != "tanh" else 1.0
            assert error < 4 * sd / np.sqrt(SEEDS) + slack, (name, layer)
            assert values[:, layer].std() == pytest.approx(sd, rel=rel, abs=1e-12), (name, layer)


@pytest.mark.parametrize(
    "activation, sigma_w2, sigma_b2", [("relu", 2.0, 0.0), ("tanh", 1.5, 0.05)]
)
def test_common_upstream_adds_up_in_the_bias(activation, sigma_w2, sigma_b2):
    """db within 4 SE + 0.3 kappa L/N: examples add coherently, less so deeper down."""
    measured, cosine = simulate(activation, 16, sigma_w2, sigma_b2, False, 1.0, "ones")
    predicted = rows(
        activation,
        sigma_w2=sigma_w2,
        sigma_b2=sigma_b2,
        batch_size=16,
        upstream="ones",
        input_c=cosine,
    )
    for name in ("delta", "dW", "db"):
        error = np.abs(measured[name].mean(0) - predicted[f"{name}_log10_norm"])
        sd = measured[name].std(0)
        assert np.all(error < 4 * sd / np.sqrt(SEEDS) + 0.3 * 5 * DEPTH / WIDTH * 0.5 / np.log(10))
    assert predicted.db_log10_norm.iloc[-1] == pytest.approx(np.log10(np.sqrt(WIDTH)), abs=1e-9)


def test_infinite_width_curve_is_the_product_of_chi():
    frame = rows("gelu", sigma_w2=2.0, sigma_b2=0.1, depth=12)
    q = theory.q_trajectory("gelu", 2.1, 2.0, 0.1, 12)
    np.testing.assert_allclose(frame.q, q, rtol=1e-9)
    np.testing.assert_allclose(
        frame.chi[:-1], [theory.chi("gelu", x, 2.0) for x in q[:-1]], rtol=1e-9
    )
    steps = -np.diff(frame.delta_log10_norm_infinite)
    np.testing.assert_allclose(steps, np.log10(frame.chi[:-1]) / 2, rtol=1e-9)


@pytest.mark.parametrize(
    "skip, options, rate",
    [
        ("identity", {}, 2.0),
        ("scaled", {"branch_scale": 0.5}, 1.25),
        ("mix", {}, 1.0),
        ("rezero", {}, 1.0),
        ("fixup", {}, 1.0),
        ("scaled", {"branch_scale": 0.5, "branch_maps": 2, "output_scale": 0.8}, 0.8),
    ],
)
def test_residual_rates(skip, options, rate):
    frame = rows(skip=skip, **options)
    np.testing.assert_allclose(frame.chi[:-1], rate, rtol=1e-12)
    np.testing.assert_allclose(frame.q[1:] / frame.q[:-1].to_numpy(), rate, rtol=1e-12)


def test_closed_branches_have_exact_zeros():
    rezero, fixup = rows(skip="rezero").iloc[1:], rows(skip="fixup").iloc[1:]
    for name in ("dX", "dW", "db"):
        assert np.all(rezero[f"{name}_log10_norm"] == -np.inf)
    assert np.all(fixup.dX_log10_norm == -np.inf)
    assert np.all(np.isfinite(fixup.dW_log10_norm))
    assert rezero.delta_log10_norm.nunique() == 1


def test_loss_cotangent_at_uniform_softmax_and_at_large_logits():
    small = theory.norms_by_layer(
        fan_in=[64],
        fan_out=[10],
        sigma_w2=[1e-8],
        sigma_b2=[0],
        activation="relu",
        batch_size=32,
        upstream="loss",
        reduction="sum",
        input_log_q=0.0,
        input_c=0.0,
    )
    assert small.delta_log10_norm_infinite[0] == pytest.approx(np.log10(32 * 0.9) / 2, abs=1e-4)
    assert np.isnan(small.dW_log10_norm[0]) and np.isnan(small.db_log10_norm[0])
    large = rows(depth=1, width=10, sigma_w2=1e12, upstream="loss")
    assert large.delta_log10_norm_infinite[0] == pytest.approx(np.log10(1.8) / 2, abs=0.01)


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid", "gelu", "selu", "softplus"])
@pytest.mark.parametrize("sigma_w2", [1e-3, 30.0])
def test_extreme_depth_stays_finite(activation, sigma_w2):
    frame = rows(activation, depth=2000, sigma_w2=sigma_w2, batch_size=8, input_c=0.3)
    columns = [c for c in frame if "log10" in c and not c.endswith("sd")]
    assert np.all(np.isfinite(frame[columns]))


def test_unequal_widths_use_the_fan_in_backward_and_the_fan_out_in_the_norm():
    frame = theory.norms_by_layer(
        fan_in=[8, 100],
        fan_out=[100, 400],
        sigma_w2=[1, 3],
        sigma_b2=[0, 0],
        activation="identity",
        batch_size=1,
        upstream="ones",
        input_log_q=0.0,
        input_c=0.0,
    )
    assert 2 * frame.delta_log10_norm_infinite[0] == pytest.approx(np.log10(3 * 400))
    assert 2 * frame.activation_log10_norm[1] == pytest.approx(np.log10(3 * 400), abs=0.01)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"skip": "identty"}, "did you mean identity"),
        ({"activation": "rellu"}, "did you mean relu"),
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"sigma_w2": -1.0}, "sigma_w2 must be at least 0"),
        ({"depth": 0}, "one entry per layer"),
    ],
)
def test_bad_input_is_refused_by_name(options, message):
    with pytest.raises(InputError, match=message):
        rows(**options)
