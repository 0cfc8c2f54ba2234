"""Layer by step: each cell's mean over seeds, and a colour of their own for cells without one."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from flowlab.errors import InputError
from flowlab.figures import choice, draw, steps, sweep
from tests.support.drawing import assert_readable
from tests.support.tables import net

STEPS = (1, 2, 3, 5, 8, 13, 21)
DW = steps.WEIGHTS


def trained(run, depth=6, **axes):
    """A run whose log10 ‖dW‖ in layer l at step t is −(depth − l)/t, the same in five seeds."""
    frames = []
    for step in STEPS:
        table, _ = net(run, -0.1, depth=depth, **axes)
        frames.append(table.assign(step=step, **{DW: -(depth - table["layer"]) / step}))
    return pd.concat(frames, ignore_index=True).astype({"step": "Int64"})


def panels(figure):
    return [ax for ax in figure.axes if ax.get_xlabel() == "step" or ax.get_title("left")]


def head_of(figure):
    return " ".join(text.get_text() for text in figure.texts)


def shown(ax):
    """The means (layers, steps), and the cells of each colour that stands for none."""
    means, *others = (mesh.get_array() for mesh in ax.collections[:4])
    marked = {
        to_hex(mesh.get_cmap().colors[0]): ~np.ma.getmaskarray(cells)
        for mesh, cells in zip(ax.collections[1:4], others, strict=True)
    }
    return means.filled(np.nan), marked


def test_cells_hold_means_over_seeds_on_a_log_axis():
    table = trained("a")
    table[DW] += 0.1 * (table["seed"] - 2)
    figure = draw(table)
    assert_readable(figure)
    (ax,) = panels(figure)
    assert ax.get_xscale() == "log" and ax.get_ylabel() == "layer"
    layer = np.arange(1, 7)
    means, marked = shown(ax)
    assert means == pytest.approx(-(6 - layer[:, None]) / np.array(STEPS), abs=1e-12)
    assert not any(cells.any() for cells in marked.values())
    # A step's cell is a rectangle around it, which the log axis shows in the middle.
    edges = np.asarray(ax.collections[0].get_coordinates())[0, :, 0]
    assert edges[1:-1] ** 2 == pytest.approx(np.multiply(STEPS[1:], STEPS[:-1]))
    assert head_of(figure).startswith(
        "Between layers ‖dW‖ differs by 5.0 decades (least in layer 1) at step 1 and by "
        "0.24 decades (least in layer 1) at step 21"
    )


def test_diverged_and_zero_cells_have_colours_of_their_own():
    table = trained("a")
    late, first = table["step"] >= 8, table["layer"] == 1
    table.loc[late, DW], table.loc[late, "status"] = np.nan, "nonfinite"
    table.loc[first & (table["step"] == 2), DW] = -np.inf
    figure = draw(table)
    assert_readable(figure)
    means, marked = shown(panels(figure)[0])
    gone, zero = marked[steps.NONFINITE.lower()], marked["#cccccc"]
    assert gone[:, 4:].all() and gone.sum() == 6 * 3
    assert zero[0, 1] and zero.sum() == 1
    assert np.isnan(means).sum() == 6 * 3 + 1
    names = {text.get_text() for text in figure.legends[0].get_texts()}
    assert names == {"no seed has a finite norm", "exactly zero in every seed"}
    assert "; seeds are not finite from step 8 on " in head_of(figure)


def test_norms_that_exponents_alone_know_do_not_stretch_the_scale():
    table = trained("a")
    table.loc[table["step"] == 21, DW] = 2000.0
    figure = draw(table)
    _, marked = shown(panels(figure)[0])
    assert marked[steps.BEYOND.lower()][:, 6].all() and marked[steps.BEYOND.lower()].sum() == 6
    norm = panels(figure)[0].collections[0].norm
    assert (norm.vmin, norm.vmax) == (-5, 0)
    (text,) = figure.legends[0].get_texts()
    assert text.get_text() == "beyond the range of float32"


def test_cells_that_lack_some_seeds_are_hatched():
    table = trained("a")
    some = (table["seed"] > 2) & (table["step"] > 8)
    table.loc[some, DW], table.loc[some, "status"] = np.nan, "nonfinite"
    table = table[~((table["seed"] == 4) & (table["step"] == 21))]  # a row that is absent
    figure = draw(table)
    means, marked = shown(panels(figure)[0])
    assert not np.isnan(means).any() and not any(cells.any() for cells in marked.values())
    hatched = panels(figure)[0].collections[4]
    assert hatched.get_hatch() and len(hatched.get_paths()) == 6 * 2
    (text,) = figure.legends[0].get_texts()
    assert text.get_text().startswith("some seeds zero or not finite")


def test_each_condition_has_a_panel_and_all_of_them_one_scale():
    runs = [trained(f"r{n}{w}", n, width=w) for n, w in ((6, 8), (11, 8), (6, 9))]
    table = pd.concat(runs, ignore_index=True)
    table.loc[table["run"] == "r118", DW] *= 2
    figure = draw(table)
    assert_readable(figure)
    assert len({mesh.norm for ax in panels(figure) for mesh in ax.collections[:1]}) == 1
    assert panels(figure)[0].collections[0].norm.vmin == -20
    assert "by 5.0 (depth=6, width=8) to 20 decades (depth=11, width=8) at" in head_of(figure)


def test_rows_of_the_first_step_are_what_other_figures_read():
    table = pd.concat([trained(f"r{k}", init=f"i{k}") for k in range(9)], ignore_index=True)
    conditions = sweep(table)
    assert not steps.fits(conditions) and set(conditions.table["step"]) == {1}
    assert set(conditions.every["step"]) == set(STEPS)
    assert choice.choose(sweep(table[table["run"] < "r2"])).figure.func is steps.layer_by_step
    with pytest.raises(InputError, match="at most 8 runs; got 9"):
        steps.layer_by_step(conditions)
    with pytest.raises(InputError, match="must hold steps of training; got none"):
        steps.layer_by_step(sweep(net("plain", 0.1)[0]))
