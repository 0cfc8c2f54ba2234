"""The norm of a user's array in every type, with its share of zeros and its status."""

import math

import mpmath
import numpy as np
import pytest

from flowlab.errors import InputError
from flowlab.modules.norms import LOWEST, log2_norm_of, status_of


def exact(array):
    """log2 of the Frobenius norm, in 50 digits and any range."""
    with mpmath.workdps(50):
        squares = (mpmath.mpf(float(value)) ** 2 for value in np.ravel(array))
        return float(mpmath.log(mpmath.sqrt(mpmath.fsum(squares)), 2))


RANGES = {"float16": (-23, -10, 0, 7), "float32": (-148, -130, -70, 0, 70, 120)}
RANGES["float64"] = (-1073, -700, -500, 0, 500, 1000)


@pytest.mark.parametrize("dtype, power", [(d, p) for d, powers in RANGES.items() for p in powers])
def test_norms_are_true_over_the_whole_range_of_a_type(dtype, power):
    entries = np.ldexp(np.random.default_rng(0).standard_normal((6, 50)), power).astype(dtype)
    norm, zeros = log2_norm_of(entries)
    assert norm == pytest.approx(exact(entries), rel=1e-15, abs=1e-14)
    assert zeros == np.mean(entries == 0)


@pytest.mark.parametrize("dtype, power", [(">f8", -700), (">f8", 900), (">f4", -140)])
def test_the_order_of_bytes_does_not_matter(dtype, power):
    entries = np.ldexp(np.random.default_rng(0).standard_normal(40), power).astype(dtype)
    assert log2_norm_of(entries)[0] == pytest.approx(exact(entries), rel=1e-15)


def test_bfloat16_is_read_as_it_stands():
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    entries = np.random.default_rng(0).standard_normal((4, 5)).astype(bfloat16)
    assert log2_norm_of(entries)[0] == pytest.approx(exact(entries), rel=1e-15)
    assert status_of(-134.0, 1, entries.dtype) == "underflow"


@pytest.mark.parametrize(
    "entries, norm, zeros",
    [
        ([3, -4, 0, 0], math.log2(5), 0.5),
        ([True, False], 0.0, 0.5),
        ([3 + 4j, 0, 0, 0j], math.log2(5), 0.75),
        ([0.0, -0.0], -math.inf, 1.0),
        ([np.inf, 0.0], math.inf, 0.5),
        ([-np.inf, 1e-300], math.inf, 0.0),
        ([np.nan, 0.0, np.inf, 0.0], math.nan, 0.5),
        ([], -math.inf, math.nan),
        (8.0, 3.0, 0.0),
    ],
)
def test_norm_and_zeros(entries, norm, zeros):
    assert log2_norm_of(np.array(entries)) == pytest.approx((norm, zeros), rel=1e-15, nan_ok=True)


def test_the_order_of_memory_does_not_matter():
    entries = np.random.default_rng(0).standard_normal((8, 6, 4))
    for view in (entries, entries.T, np.asfortranarray(entries), entries[::-1], entries[:, ::2]):
        assert log2_norm_of(view) == pytest.approx((exact(view), 0.0), rel=1e-14)
    assert log2_norm_of(np.broadcast_to(1.0, (4, 4))) == (2.0, 0.0)


@pytest.mark.parametrize("below, error", [(0, 3e-7), (2, 4e-6), (6, 9e-4)])
def test_the_norm_of_what_a_type_flushes(below, error):
    """Rounding to multiples of u adds u²/12 to a mean square: at 2^10 u less than 1e-6."""
    entries = np.random.default_rng(0).standard_normal(1_000_000)
    power = LOWEST["float32"] - below
    flushed, zeros = log2_norm_of(np.ldexp(entries, power).astype(np.float32))
    true = math.log2(np.linalg.norm(entries)) + power
    assert abs(flushed - true) * math.log(2) < error
    assert abs(flushed - true) * math.log(2) > error / 20
    # The density of entries at 0 times the width u of what becomes 0.
    assert zeros == pytest.approx(2.0 ** (below - 10) / math.sqrt(2 * math.pi), rel=0.2)


@pytest.mark.parametrize(
    "norm, size, dtype, status",
    [
        (-math.inf, 0, "float32", "zero"),
        (-math.inf, 9, "float32", "zero"),
        (math.inf, 9, "float32", "nonfinite"),
        (math.nan, 9, "float32", "nonfinite"),
        (-139.0, 1, "float32", "ok"),
        (-139.0, 2, "float32", "underflow"),
        (-139.0 + 10, 2**20, np.dtype("float32"), "ok"),
        (-139.1 + 10, 2**20, np.dtype("complex64"), "underflow"),
        (-139.0, 2, "float64", "ok"),
        (-1065.0, 2, "float64", "underflow"),
        (-14.1, 1, np.float16(0).dtype, "underflow"),
        (-123.1, 1, "torch.bfloat16", "underflow"),
        (-1000.0, 1, "int64", "ok"),
    ],
)
def test_status(norm, size, dtype, status):
    assert status_of(norm, size, dtype) == status


def test_status_of_a_type_of_pytorch():
    torch = pytest.importorskip("torch")
    assert status_of(-14.1, 1, torch.float16) == "underflow"
    assert status_of(-14.1, 1, torch.bfloat16) == "ok"


@pytest.mark.parametrize(
    "array",
    [
        np.array(["a"]),
        np.array([None, 1]),
        np.zeros(2, "V3"),
        np.zeros(2, [("a", "f4")]),
        np.zeros(2, "longdouble"),
    ],
)
def test_what_holds_no_numbers_is_refused(array):
    with pytest.raises(InputError, match=r"^an array must hold numbers of at most 64 bits; got "):
        log2_norm_of(array)
