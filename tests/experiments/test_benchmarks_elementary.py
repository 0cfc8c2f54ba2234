"""The comparison of elementary functions: true values, errors in ulps, what the table means."""

import numpy as np
import pandas as pd
import pytest

from experiments.benchmarks import elementary, svml
from experiments.benchmarks.elementary import LIBM, OURS, SVML
from flowlab.errors import InputError


def test_errors_are_in_spacings_of_the_type():
    x = np.linspace(1, 1.9, 7, dtype=np.float32)
    true = x.astype(np.float64)

    def off(x, y):
        y[:] = x
        y[3] += 3 * np.spacing(np.float32(1))

    assert elementary.ulps(off, x, true) == pytest.approx(3)
    assert elementary.ulps(lambda x, y: np.copyto(y, x), x, true) == 0
    exact, half = x.astype(np.float64), 0.25 * np.spacing(np.float32(1))
    assert elementary.ulps(lambda x, y: np.copyto(y, x), x, exact + half) == pytest.approx(0.25)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", elementary.KERNELS)
def test_every_form_is_the_function(name, dtype):
    x, true = elementary.points(name, dtype)
    assert np.isfinite(true).all() and x.dtype == dtype
    for form, run in elementary.forms_of(name, dtype).items():
        # 0.5 x erfc(-x/√2) and the like lose the digits that x² times epsilon says.
        most = 6.0 if form == OURS else 200.0
        assert 0 < elementary.ulps(run, x, true) < most, form


def test_true_values_are_wider_than_float64():
    x = np.array([0.5, -3.0])
    found = elementary._by_mpmath("tanh", x)
    assert found.dtype == np.longdouble
    assert np.abs(found - np.tanh(x.astype(np.longdouble))).max() < 1e-18


def test_svml_takes_part_where_it_is_installed():
    forms = elementary.forms_of("exp", "float32")
    assert (SVML in forms) == svml.installed()


def table(*rows):
    columns = ["function", "dtype", "form", "ratio", "ulp"]
    return pd.DataFrame(rows, columns=columns)


def test_report_says_whether_to_write_by_hand():
    ours = [(name, "float32", OURS, 1.0, 2.0) for name in ("exp", "tanh")]
    others = [("exp", "float32", LIBM, 4.0, 0.5), ("exp", "float32", SVML, 1.5, 2.5)]
    others += [("tanh", "float32", LIBM, 9.0, 0.5)]
    assert elementary.report(table(*ours, *others)) == (
        "flowlab's functions are within 2.0 ulp and the fastest in all cases. The fastest of the "
        "others takes 1.5 to 9.0 times as long. To write them by hand is justified."
    )
    faster = ("tanh", "float32", SVML, 0.5, 2.5)
    text = elementary.report(table(*ours, *others, faster))
    assert "slower in 1 of 2 cases: tanh in float32 (0.50 of its time by SVML, 2.5 ulp)" in text
    assert text.endswith("is justified for most.")
    both = elementary.report(table(*ours, faster, ("exp", "float32", SVML, 0.9, 1.0)))
    assert both.endswith("no longer justified by speed.")
    assert elementary.report(table(*ours, others[0])).endswith(f"SVML is not installed: {svml.HOW}")


def test_rows_of_every_form(said, monkeypatch):
    monkeypatch.setattr(elementary, "_LONG_ENOUGH", 1e-5)
    found = pd.DataFrame(elementary.rows(said.append, ("exp",), ("float32",), rounds=2))
    assert list(found["form"])[:3] == [OURS, LIBM, elementary.NUMPY]
    assert (found["ns"] > 0).all() and (found["rounds"] == 2).all()
    assert found["ulp"].between(0.4, 6).all()


@pytest.mark.parametrize("given", [{"functions": ("exq",)}, {"dtypes": ("float16",)}])
def test_unknown_names(given, said):
    with pytest.raises(InputError, match="must be one of"):
        next(elementary.rows(said.append, **given))
