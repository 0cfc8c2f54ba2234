"""Registered activations and initializers: measured and predicted like the library's own."""

import math
import re

import numpy as np
import pytest
from scipy.special import expit

import flowlab
from flowlab import laws, registration
from flowlab.initializers import REGISTERED_SCHEMES, SCHEMES, Scheme
from flowlab.layers import ACTIVATIONS, Activation
from flowlab.layers.activation import REGISTERED_ACTIVATIONS
from flowlab.theory import activations as theory
from tests.support.scripts import printed

SMALL = {"depth": 6, "width": 48, "batch_size": 16, "seeds": 16, "upstream": "gaussian"}
NAMES = (ACTIVATIONS, REGISTERED_ACTIVATIONS, theory.ACTIVATIONS, SCHEMES, REGISTERED_SCHEMES)


@pytest.fixture(autouse=True)
def forgotten():
    """Whatever a test registers is forgotten."""
    before = [dict(names) for names in NAMES]
    yield
    for names, known in zip(NAMES, before, strict=True):
        names.clear()
        names.update(known)


def sigma(z):
    return 1 / (1 + np.exp(-z))


def swish(beta):
    """Swish and its derivative, as a factory makes them, with a plain function of their own."""
    return (
        lambda z: z * sigma(beta * z),
        lambda z: sigma(beta * z) * (1 + beta * z * sigma(-beta * z)),
    )


def message(*arguments, register=flowlab.register_activation, **options):
    with pytest.raises(flowlab.InputError) as caught:
        register(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_registered_activation_is_measured_as_the_librarys_own():
    """SiLU under another name: the same numbers, to rounding, and the same theory."""
    flowlab.register_activation("mine", *swish(1.0))
    own, silu = (flowlab.make(activation=name, **SMALL) for name in ("mine", "silu"))
    ours, theirs = flowlab.measure(own), flowlab.measure(silu)
    norms = flowlab.schema.names("measured")
    np.testing.assert_allclose(ours[norms], theirs[norms], atol=1e-5)
    assert ours["status"].eq("ok").all() and set(ours["activation"]) == {"mine"}
    predicted = [flowlab.predict(run)["delta_log10_norm"] for run in (own, silu)]
    np.testing.assert_allclose(*predicted, atol=1e-9)
    assert flowlab.judge(ours, flowlab.predict(own)).agreement == "agrees"
    assert flowlab.measure(own).equals(ours)


def test_a_registered_activation_keeps_the_laws():
    flowlab.register_activation("mine", *swish(2.0))
    assert len(laws.check(Activation("mine"), (3, 2))) == len(laws.LAWS)


def test_theory_reads_the_registered_function():
    flowlab.register_activation("mine", *swish(2.0))
    flowlab.register_activation("clipped", lambda z: min(max(z, -1.0), 1.0), lambda z: abs(z) < 1)
    known, u = theory.get_activation("mine"), np.linspace(-5, 5, 12).reshape(3, 4)
    np.testing.assert_allclose(known.phi(u), u * expit(2 * u), rtol=1e-14)
    slope = expit(2 * u) * (1 + 2 * u * expit(-2 * u))
    np.testing.assert_allclose(known.derivative(u), slope, rtol=1e-12)
    assert known.vanishes_at_zero and not known.bounded
    assert theory.get_activation("clipped").bounded


def test_two_functions_of_one_name_are_two_runs():
    flowlab.register_activation("mine", *swish(2.0))
    settings = flowlab.make(activation="mine", **SMALL)
    stored = settings.resolved()
    REGISTERED_ACTIVATIONS.clear(), ACTIVATIONS.pop("mine")
    with pytest.raises(flowlab.InputError, match="got mine"):
        settings.validate()
    assert flowlab.settings.from_plain(stored).axes()["registered"] == stored["registered"]
    flowlab.register_activation("mine", *swish(2.1))
    other = flowlab.make(activation="mine", **SMALL)
    assert other.run() != settings.run() and other.registered != settings.registered
    with pytest.raises(flowlab.InputError, match=r"must be registered as these settings have them"):
        flowlab.measure(flowlab.settings.from_plain(stored))
    assert flowlab.make(**SMALL).registered is None
    assert "registered" not in flowlab.make(**SMALL).resolved()
    with pytest.raises(flowlab.InputError, match="setting must be"):
        flowlab.make(registered="x")


def test_the_digest_of_a_function_is_that_of_every_process_and_way_of_writing(tmp_path):
    program = (
        "import math, flowlab;"
        "f = lambda x: x / (1.0 + math.exp(-2 * x));"
        "s = lambda x: 1.0 / (1.0 + math.exp(-2 * x));"
        "df = lambda x: s(x) + 2 * x * s(x) * (1 - s(x));"
        "flowlab.register_activation('mine', f, df); print(flowlab.make(activation='mine').run())"
    )
    flowlab.register_activation("mine", *swish(2.0))
    assert printed(tmp_path, "-c", program).strip() == flowlab.make(activation="mine").run()


def test_a_name_keeps_its_meaning():
    flowlab.register_activation("mine", *swish(2.0))
    flowlab.register_activation("mine", *swish(2.0))
    assert message("mine", *swish(3.0)) == (
        "name of an activation must keep its meaning in a process; got another mine"
    )


def test_a_wrong_derivative_is_refused_with_its_point():
    f, df = swish(1.0)
    text = message("mine", f, lambda z: 1.001 * sigma(z))
    assert text.startswith("df of activation mine must be the derivative of f, ")
    expected, z, got = map(float, re.fullmatch(r".*, (\S+) at z=(\S+); got (\S+)", text).groups())
    assert expected == pytest.approx(df(z), abs=1e-4)
    assert got == pytest.approx(1.001 * sigma(z), abs=1e-4)
    assert "mine" not in ACTIVATIONS


@pytest.mark.parametrize("factor", [1 + 1e-5, 1 - 1e-5])
def test_an_error_of_a_hundred_thousandth_is_seen(factor):
    assert "must be the derivative" in message(
        "mine", math.tanh, lambda z: factor / np.cosh(z) ** 2
    )


BAD = [
    (("relu", *swish(1.0)), "name of an activation must be new; got relu, which flowlab has"),
    (("", *swish(1.0)), "name of an activation must be a word of letters, digits and _; got ''"),
    ((3, *swish(1.0)), "name of an activation must be a word of letters, digits and _; got 3"),
    (
        ("a b", *swish(1.0)),
        "name of an activation must be a word of letters, digits and _; got 'a b'",
    ),
    (("mine", 3, math.tanh), "f of activation mine must be a function; got 3"),
    (("mine", math.tanh, None), "df of activation mine must be a function; got None"),
    (
        ("mine", lambda z: math.log(z), lambda z: 1 / z),
        "f of activation mine must be finite from -30 to 30 in float64; got nan at -29.71",
    ),
]


@pytest.mark.parametrize("arguments, expected", BAD)
def test_bad_activations_are_one_line(arguments, expected):
    assert message(*arguments) == expected
    assert "mine" not in ACTIVATIONS


def test_what_does_not_compile_is_one_line():
    assert message("mine", expit, math.tanh).startswith("f of activation mine must compile under")


def test_choices_name_what_is_registered():
    flowlab.register_activation("mine", *swish(2.0))
    with pytest.raises(flowlab.InputError, match=r"softplus, mine; got mien; did you mean mine\?"):
        flowlab.make(activation="mien")
    with pytest.raises(flowlab.InputError, match="activation of network=lstm must be one of tanh"):
        flowlab.make(network="lstm", activation="mine")


# Initializers


def test_a_registered_initializer_is_drawn_and_predicted():
    flowlab.register_initializer("mine", 1.5, "fan_out", "uniform")
    settings = flowlab.make(init="mine", **SMALL)
    table, prediction = flowlab.measure(settings), flowlab.predict(settings)
    assert flowlab.judge(table, prediction).agreement == "agrees"
    assert set(table["init"]) == {"mine"} and table["registered"].notna().all()
    initializer = flowlab.initializers.Initializer(settings.init)
    assert initializer.weight_variance(100, 30) == pytest.approx(1.5 / 30)


def test_a_registered_he_gives_the_bits_of_he():
    flowlab.register_initializer("mine", 2.0)
    one, other = (flowlab.measure(init=name, **SMALL) for name in ("mine", "he"))
    norms = flowlab.schema.names("measured")
    assert one[norms].equals(other[norms]) and one["run"].iat[0] != other["run"].iat[0]


def test_an_initializer_keeps_its_meaning():
    flowlab.register_initializer("mine", 1.5)
    flowlab.register_initializer("mine", numerator=1.5)
    assert SCHEMES["mine"] == Scheme(1.5, "fan_in")
    assert message("mine", 1.6, register=flowlab.register_initializer) == (
        "name of an initializer must keep its meaning in a process; got another mine"
    )


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"name": "he"}, "name of an initializer must be new; got he, which flowlab has"),
        (
            {"name": "orthogonal_relu"},
            "name of an initializer must be new; got orthogonal_relu, which flowlab has",
        ),
        ({"name": "-"}, "name of an initializer must be a word of letters, digits and _; got '-'"),
        (
            {"numerator": 0},
            "numerator of initializer mine must be a finite number above 0; got 0",
        ),
        ({"numerator": "2"}, "numerator of initializer mine must be a number; got '2'"),
        ({"power": 3}, "power of initializer mine must be from 0 to 2; got 3"),
        ({"power": math.nan}, "power of initializer mine must be from 0 to 2; got nan"),
        (
            {"mode": "fan"},
            "mode of initializer mine must be one of fan_in, fan_out, fan_avg; got fan; "
            "did you mean fan_in?",
        ),
        (
            {"distribution": "cauchy"},
            "distribution of initializer mine must be one of normal, uniform; got cauchy",
        ),
    ],
)
def test_bad_initializers_are_one_line(options, expected):
    options = {"name": "mine"} | options
    assert message(register=flowlab.register_initializer, **options) == expected
    assert "mine" not in SCHEMES


def test_points_keep_away_from_kinks_at_round_numbers():
    quarters = 4 * registration._POINTS
    assert np.abs(quarters - np.round(quarters)).min() / 4 > 4 * 2.0**-19
