"""What notebooks show: every part of it, escaped, and nothing that does not apply."""

from dataclasses import replace
from html.parser import HTMLParser

import pytest

import flowlab
from flowlab import notebook
from flowlab.analysis.summary import norms

TINY = {"depth": 12, "width": 8, "batch_size": 4, "seeds": 3, "upstream": "gaussian"}
RNN = {**TINY, "network": "rnn", "depth": 2}


class Cells(HTMLParser):
    """The texts of a piece of HTML by tag, and a check that tags are closed in turn."""

    def __init__(self, html):
        super().__init__()
        self.open, self.found = [], {}
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert attrs == []
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.found.setdefault(self.open[-1], []).append(data)


def cells(shown):
    return Cells(shown._repr_html_()).found


@pytest.fixture(scope="module", params=[TINY, RNN], ids=["layers", "steps"])
def done(request, tmp_path_factory):
    return flowlab.run(**request.param, results_dir=str(tmp_path_factory.mktemp("results")))


def test_a_verdict_shows_its_sentence_and_the_numbers_behind_it(done):
    verdict, found = done.verdict, cells(done.verdict)
    assert "".join(found["b"] + found["p"]) == verdict.sentence
    assert found["b"] == [verdict.trend.capitalize()]
    table = dict(zip(found["td"][::2], found["td"][1::2], strict=True))
    change = f"change from {verdict.along} {verdict.last} to {verdict.first}"
    assert table[change] == f"{verdict.change:z.2f}"
    assert table[f"change a {verdict.along}"] == str(verdict.slope)
    assert ("measured minus predicted" in table) == (verdict.difference is not None)
    assert "change across the read-out" not in table


def test_a_verdict_without_a_change_has_no_numbers():
    table = flowlab.measure(**TINY | {"depth": 1})
    verdict = flowlab.judge(table)
    assert verdict.change.n == 0 and set(cells(verdict)) == {"b", "p"}


def test_settings_that_differ_come_first_and_those_that_do_not_apply_are_left_out():
    settings = flowlab.make(init="xavier", depth=9, seed=4)
    first, rest = settings._repr_html_().split("<details>")
    own, others = (Cells(part).found["td"] for part in (first, f"<details>{rest}"))
    assert dict(zip(own[::2], own[1::2], strict=True)) == {
        "seed": "4",
        "init": "xavier",
        "depth": "9",
    }
    applying = {name for name, value in settings.axes().items() if value is not None}
    assert set(others[::2]) == applying - {"init", "depth"} and "heads" not in applying
    assert cells(flowlab.make())["p"] == ["All settings have their defaults."]


def test_a_finished_run_shows_verdict_norms_and_path(done):
    found = cells(done)
    assert done._repr_html_().startswith(done.verdict._repr_html_())
    assert found["code"] == [str(done.path)]
    means = norms(done.table)
    head = [means.index.name, *means.columns]
    assert found["th"][-len(head) :] == head and len(means) == 8
    row = [f"{value:z.2f}" for value in means.iloc[0]]
    assert found["td"][-8 * len(head) :][1 : len(head)] == row


def test_text_is_escaped(done):
    settings = replace(flowlab.make(), experiment="<b>&")
    assert "<td>&lt;b&gt;&amp;</td>" in settings._repr_html_()
    html = notebook.of_run(replace(done.verdict, because="<i>"), norms(done.table), "<a>&")
    assert "<code>&lt;a&gt;&amp;</code>" in html and "<i>" not in html
