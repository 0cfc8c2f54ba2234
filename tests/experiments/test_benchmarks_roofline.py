"""The roofline: counts that are right, limits and shares that follow from them."""

import numpy as np
import pandas as pd
import pytest

from experiments.benchmarks import roofline
from experiments.benchmarks.roofline import BYTES, FLOPS, KernelWork, placed


def test_a_kernel_is_limited_by_what_takes_longer_at_its_peak():
    work = KernelWork("k", print, operations=1000, bytes=10)
    row = placed(work, seconds=4.0, flops=500.0, bandwidth=10.0)
    assert (row["limit"], row["share"]) == (FLOPS, 0.5)  # two seconds at least
    row = placed(work, seconds=4.0, flops=500.0, bandwidth=2.5)
    assert (row["limit"], row["share"]) == (BYTES, 1.0)
    assert row["intensity"] == 100 and row["us"] == 4e6
    assert [row["gflops"], row["gbytes"]] == pytest.approx([250e-9, 2.5e-9])


def test_operations_and_bytes_of_products_and_layers():
    n, w = 4, 6
    found = {work.name: work for work in roofline.works(w, n)}
    of = {name: (work.operations, work.bytes // 4) for name, work in found.items()}
    xy, square = n * w, w * w
    assert of["products: three"] == (6 * n * square, 4 * xy + 2 * square)
    assert of["products: two, half Grams"] == (4 * n * square + 4 * n * n * w, 4 * xy + square + 33)
    assert of["linear forward"] == (2 * n * square + xy, 2 * xy + square + w)
    assert of["linear pullback"] == (4 * n * square + xy, 3 * xy + 2 * square + w)
    assert of["relu pullback"] == (xy, 3 * xy)
    assert of["log2 norm"] == (2 * xy, xy)
    assert of["normals drawn"][1] == square
    taps = 32 * 32 * 32 * 16 * 16 * 9
    assert found["conv2d pullback"].operations == 2 * found["conv2d forward"].operations == 4 * taps
    for work in found.values():
        work.run()
        work.run()  # what it takes it gives back


def test_conv2d_has_the_taps_that_are_counted():
    """The layer that is timed is 3 by 3 with as many channels out as in."""
    declared = roofline.twins.timed()["conv2d"][1].layer((32, 16, 32, 32)).declare((32, 16, 32, 32))
    assert declared.output == (32, 16, 32, 32)
    assert declared.parameters["W"].shape == (16, 16, 3, 3)


def test_triad_streams_three_arrays():
    work = roofline._triad(8)
    work.run()
    assert work.bytes == 3 * 8 * 4 and work.operations == 16
    a, b, y = np.arange(3.0)[None], np.ones((1, 3)), np.empty((1, 3))
    roofline.triad(a, b, y, 0.5)
    assert list(y[0]) == [0.5, 1.5, 2.5]


def rows(*given):
    columns = ["kernel", "share", "limit", "gflops", "gbytes"]
    return pd.DataFrame(given, columns=columns)


def test_report_starts_with_what_uses_least():
    peaks = (roofline.PRODUCT, 1.0, FLOPS, 80.0, 1.0), (roofline.TRIAD, 1.0, BYTES, 1.0, 16.0)
    kernels = ("a", 0.8, FLOPS, 1, 1), ("b", 0.4, FLOPS, 1, 1), ("c", 0.5, BYTES, 1, 1)
    assert roofline.report(rows(*peaks, *kernels)) == (
        "One thread reaches 80 GFLOP/s and 16 GB/s from memory. "
        "Limited by operations: b 40%, a 80%. Limited by bytes: c 50%."
    )
    assert "kept the machine busy" in roofline.report(rows(*peaks, ("a", 1.5, FLOPS, 1, 1)))
    assert roofline.report(rows(peaks[0])) == "One thread reaches 80 GFLOP/s."


def test_peaks_come_first(said, monkeypatch):
    monkeypatch.setattr(roofline, "_LARGE", (16, 32))
    monkeypatch.setattr(roofline, "_IN_MEMORY", 2**10)
    monkeypatch.setattr(roofline, "_LONG_ENOUGH", 1e-5)
    found = pd.DataFrame(roofline.rows(said.append, width=8, batch=4, rounds=1))
    assert list(found["kernel"][:2]) == [roofline.PRODUCT, roofline.TRIAD]
    assert found["share"][:2].to_numpy() == pytest.approx(1.0)
    assert (found["us"] > 0).all() and set(found["limit"]) <= {FLOPS, BYTES}
