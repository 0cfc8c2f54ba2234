"""Predicted norms of fully-connected nets against simulation in plain NumPy."""

import numpy as np
import pytest

from flowlab import theory
from flowlab.errors import InputError

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
