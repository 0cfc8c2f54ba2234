"""The first screen: what was measured, answers in order, each with a way to its section."""

import flowlab
from flowlab.analysis.comparison import answer, compare
from flowlab.report import answers, gather
from flowlab.report.document import Fold, Text
from flowlab.storage.experiment import load
from tests.support.reports import FOLDER, section, store


def test_the_top_says_what_was_measured_and_answers(results):
    opening = gather(results).opening
    assert opening.measured.startswith("3 runs in 1 experiment: 9 networks drawn (mlp). The ")
    assert opening.measured.endswith("2 claims: 1 does not hold, 1 holds.")
    (link,) = opening.answers
    assert link.section == FOLDER
    assert link.text == answer(compare(load(results / FOLDER)))
    assert opening.picture.title.startswith("All 2 keep the gradient to depth 4; it changes by ")


def test_answers_stand_in_the_order_of_their_studies(results, runs):
    for name in ("skip", "depth", "mine"):
        store(results / name, "c", *runs["c"])
    document = gather(results)
    asked = [link.section for link in document.opening.answers]
    assert asked == ["depth", "skip", FOLDER, "mine"]
    assert [s.title for s in section(document, "Studies").sections] == asked


def test_no_more_than_seven_answers_stand_on_top(results, runs):
    for k in range(9):
        store(results / f"own{k}", "c", *runs["c"])
    document = gather(results)
    assert len(document.opening.answers) == answers.MOST == 7
    assert len(section(document, "Studies").sections) == 10


def test_another_threshold_gives_other_answers(results):
    (narrow,) = gather(results, kept_within=1e-9).opening.answers
    assert narrow.text.startswith("None of the 3 runs keeps")


def test_time_is_explained_where_there_are_recurrent_nets(results):
    def meaning():
        (fold, *_) = section(gather(results), "Provenance").blocks
        assert isinstance(fold, Fold)
        return fold.blocks

    assert meaning() == (Text(answers.MEANING), Text(answers.STRICT))
    settings = flowlab.make(network="rnn", width=6, batch_size=4, seeds=3, upstream="gaussian")
    made = flowlab.measure(settings), flowlab.predict(settings), settings.resolved()
    store(results / "time", settings.run(), *made)
    assert meaning() == tuple(map(Text, (answers.MEANING, answers.TIME, answers.STRICT)))
