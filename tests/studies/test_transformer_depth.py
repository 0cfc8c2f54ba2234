"""Transformers block by block."""

import numpy as np
import pandas as pd
import pytest

from flowlab.errors import InputError
from flowlab.studies import Reading
from flowlab.studies.transformer_depth import (
    attention_shares,
    attention_shares_caption,
    attention_shares_finding,
    blocks_delta,
    blocks_delta_caption,
    blocks_delta_finding,
    rank_collapse,
    rank_collapse_caption,
    rank_collapse_finding,
)
from tests.support.drawing import assert_readable, labelled
from tests.support.tables import DELTA, net, together


def attention_net(run, slope, shares, cosine, entropy, **axes):
    """A transformer whose blocks hold Q, K, V, O with squared norms as ``shares``."""
    axes = {"network": "transformer", "placement": "pre", "steps": 8, **axes}
    table, prediction = net(run, slope, depth=5, **axes)
    table["token_cosine"] = np.where(table["layer"] < 5, cosine * table["layer"], np.nan)
    table["attention_entropy"] = np.nan
    inner = table[table["layer"].between(2, 4)]
    more = [inner.assign(op="attention", attention_entropy=entropy, token_cosine=np.nan)]
    for name, share in zip("QKVO", shares, strict=True):
        norm = -200 + 0.5 * np.log10(share)
        more.append(inner.assign(op=name, dW_log10_norm=norm, token_cosine=np.nan))
    for frame in more:
        frame[DELTA] = np.nan
    return pd.concat([*more, table], ignore_index=True), prediction


@pytest.fixture
def blocks():
    return together(
        attention_net("a", 0.1, (1, 1, 4, 4), 0.1, np.log(8)),
        attention_net("b", -0.2, (1, 1e-9, 1e-9, 1e-9), 0.2, 0.0, skip="identity"),
        attention_net("c", 0.0, (1, 1, 1, 1), 0.05, 1.0, placement="post"),
    )


def test_blocks_are_panels_by_placement(blocks):
    figure = blocks_delta(Reading(*blocks))
    assert_readable(figure)
    assert [ax.get_title("left") for ax in figure.axes] == ["pre-norm", "post-norm"]
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    assert {text.get_text() for text in figure.axes[0].texts} == {"no skip", "identity"}
    assert blocks_delta_finding(Reading(*blocks)) == (
        "Over 4 layers back ‖δ‖ changes by −0.8 decades (identity) and 0.4 (no skip) with "
        "pre-norm, by 0.0 (no skip) with post-norm"
    )
    (mean,) = labelled(figure, "mean: identity")
    assert mean.get_ydata() == pytest.approx(-0.2 * np.arange(4, -1, -1), abs=1e-9)
    (theory,) = labelled(figure, "theory: identity")
    assert theory.get_ydata() == pytest.approx(mean.get_ydata(), abs=1e-9)
    text = blocks_delta_caption(Reading(*blocks))
    assert "pre-norm: skip=identity -0.80 [" in text and "kept, theory -0.80 (agrees)" in text
    lost = blocks[0].assign(
        **{DELTA: blocks[0][DELTA].where(blocks[0]["skip"] != "identity")}, status="lost"
    )
    assert "; it is not known for identity with pre-norm" in blocks_delta_finding(Reading(lost))
    silent = blocks[1].assign(**{DELTA: np.nan})
    assert "theory" not in blocks_delta_caption(Reading(blocks[0], silent))


def test_entropy_is_in_units_of_its_largest_value(blocks):
    figure = rank_collapse(Reading(*blocks))
    assert_readable(figure)
    cosine, _, entropy, _ = labelled(figure, "no skip")
    assert cosine.get_ydata() == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert list(entropy.get_xdata()) == [2, 3, 4]
    assert entropy.get_ydata() == pytest.approx([1, 1, 1])
    assert rank_collapse_finding(Reading(*blocks)) == (
        "Behind the last block two tokens have cosine 0.80 (identity), 0.40 (no skip) with "
        "pre-norm; 0.20 (no skip) with post-norm"
    )
    text = rank_collapse_caption(Reading(*blocks))
    assert "skip=identity cosine 0.200 to 0.800, entropy 0.000 to 0.000" in text
    assert f"{1 / np.log(8):.3f}" in text


def test_shares_of_attention_add_up(blocks):
    figure = attention_shares(Reading(*blocks))
    assert_readable(figure)
    panels = {ax.get_title("left"): ax for ax in figure.axes if ax.get_visible()}
    assert set(panels) == {
        "pre-norm, skip=none", "pre-norm, skip=identity", "post-norm, skip=none"
    }  # fmt: skip
    tops = [band.get_paths()[0].vertices[:, 1].max() for band in
            panels["pre-norm, skip=none"].collections]  # fmt: skip
    assert tops == pytest.approx([0.1, 0.2, 0.6, 1.0])
    assert attention_shares_finding(Reading(*blocks)) == (
        "Queries and keys have a share of attention's ‖dW‖² of 1 in the first block and 1 in the "
        "last (identity), 0.2–0.5 and 0.2–0.5 (no skip)"
    )
    text = attention_shares_caption(Reading(*blocks))
    assert "pre-norm, skip=identity: 1 in layer 2, 1 in layer 4" in text
    assert "pre-norm, skip=none: 0.2 in layer 2" in text
    with pytest.raises(InputError, match="Q, K, V and O; got none"):
        attention_shares(Reading(blocks[0][blocks[0]["op"] == "linear"]))


def test_transformers_alone_have_placements():
    with pytest.raises(InputError, match="got no placement"):
        blocks_delta(Reading(net("plain", 0.1, network="mlp")[0]))
