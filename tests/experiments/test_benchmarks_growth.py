"""The benchmark of growth: exponents that are known, their intervals, the figure."""

import numpy as np
import pandas as pd
import pytest

from experiments.benchmarks import growth, growth_point
from flowlab.figures.files import save

FACTORS = np.array([1, 2, 4, 8])


def table(noise=0.0, rounds=5, seed=0, **exponents):
    """Points whose time is 0.01 at^exponent times noise, memory 3 at^exponent."""
    rng, rows = np.random.default_rng(seed), []
    for axis, exponent in exponents.items():
        for at in 10 * FACTORS:
            seconds = 0.01 * at**exponent * np.exp(noise * rng.standard_normal(rounds))
            point = growth.summary(3e6 * at**exponent, list(seconds))
            rows.append({"along": axis, "at": int(at), **point})
    return pd.DataFrame(rows)


def test_a_known_exponent_is_recovered():
    found = growth.exponents(table(depth=1.0, width=2.0)).set_index("along")
    for name in ("time", "upper_time", "memory", "upper_memory"):
        assert found[name].to_numpy() == pytest.approx([1.0, 2.0], abs=1e-12)
    assert found[["time_half", "upper_time_half"]].to_numpy() == pytest.approx(0.0, abs=1e-9)


def test_the_slope_at_the_upper_end_is_of_the_last_two_points():
    own = table(width=1.0)
    own["seconds"] = 0.5 + 1e-5 * own["at"] ** 2.0  # an offset, then a square
    found = growth.exponents(own).iloc[0]
    first, last = own["seconds"].iloc[-2:]
    assert found["upper_time"] == pytest.approx(np.log2(last / first))
    assert found["time"] < found["upper_time"] < 2


def test_intervals_hold_the_truth_as_often_as_they_say():
    held = [
        abs(row["time"] - 1.3) <= row["time_half"]
        for seed in range(200)
        for row in growth.exponents(table(0.1, seed=seed, depth=1.3)).to_dict("records")
    ]
    # Medians vary more than means, and freedoms of four points are pooled: near 95 %, not at it.
    assert 0.85 <= np.mean(held) <= 1.0
    assert growth.exponents(table(0.1, rounds=1, depth=1.0))["time_half"].isna().all()


def test_report_and_title_name_every_axis():
    own = table(depth=1.0, width=2.0)
    text = growth.report(own)
    assert "Time grows as depth^1.00 ± 0.00 (at the upper end 1.00 ± 0.00), memory" in text
    assert "as width^2.00" in text
    assert growth.title(own).startswith("Time grows as depth$^{1.00}$, width$^{2.00}$;")
    assert growth.report(own.iloc[:1]) == "No axis has two points."
    assert growth.figure(own.iloc[:1]) is None


def test_the_figure_shows_points_and_lines(tmp_path):
    own = table(depth=1.0, width=2.0, batch=1.0, seeds=1.0)
    figure = growth.figure(own)
    assert len(figure.axes) == 8
    line, points = figure.axes[1].lines[:2]
    assert points.get_ydata() == pytest.approx(own.loc[own["along"] == "width", "seconds"])
    assert line.get_ydata() == pytest.approx(points.get_ydata())
    assert figure.axes[1].get_title("left") == "exponent 2.00"
    assert [path.suffix for path in save(figure, tmp_path / "growth")] == [".png", ".svg"]


def test_every_axis_is_swept_alone_from_one_base(said, monkeypatch):
    asked = []

    def point(settings, rounds, name):
        asked.append(settings)
        return growth.summary(1e6 * settings["width"], [0.1, 0.2])

    monkeypatch.setattr(growth, "_point", point)
    found = pd.DataFrame(growth.rows(said.append, 2, 3, 5, 7, factors=(1, 4), threads=1))
    assert list(zip(found["along"], found["at"], strict=True)) == [
        *(("depth", 2), ("depth", 8), ("width", 3), ("width", 12)),
        *(("batch", 5), ("batch", 20), ("seeds", 7), ("seeds", 28)),
    ]
    base = {"depth": 2, "width": 3, "batch_size": 5, "seeds": 7, "threads": 1}
    changed = [{"depth": 8}, {"width": 12}, {"batch_size": 20}, {"seeds": 28}]
    assert asked == [base, *(base | change for change in changed)]


def test_a_point_counts_its_arrays_and_times_its_rounds(capsys):
    settings = {"depth": 3, "width": 8, "batch_size": 64, "seeds": 2, "threads": 1}
    peaks = []
    for batch in (64, 2048):
        growth_point.work({**settings, "batch_size": batch}, rounds=2)
        peak, *seconds = map(float, capsys.readouterr().out.split())
        assert len(seconds) == 2 and min(seconds) > 0
        peaks.append(peak)
    kept = 2 * 3 * 8 * 4  # bytes of an example's activations: seeds, layers, features, float32
    assert peaks[1] - peaks[0] > (2048 - 64) * kept


def test_a_point_that_fails_has_no_row(said, capsys):
    found = list(growth.rows(said.append, 2, 3, 5, 7, factors=(1,), rounds=1, threads=0))
    assert found == [] and "depth 2 ended early" in capsys.readouterr().err
