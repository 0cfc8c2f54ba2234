"""The main verbs: keywords or settings, never both; a run is kept and prints in plain words."""

import pandas as pd
import pytest

import flowlab
from flowlab.storage.experiment import Experiment

TINY = {"depth": 4, "width": 8, "batch_size": 4, "seeds": 2, "upstream": "gaussian"}


def test_keywords_stand_for_settings():
    settings = flowlab.make(**TINY)
    for verb in (flowlab.measure, flowlab.predict):
        pd.testing.assert_frame_equal(verb(**TINY), verb(settings))
    assert (flowlab.measure(**TINY | {"width": 9}, network="cnn")["network"] == "cnn").all()
    with pytest.raises(flowlab.InputError, match=r"setting must be .*dpeth"):
        flowlab.predict(dpeth=4)


@pytest.mark.parametrize("verb", [flowlab.measure, flowlab.predict, flowlab.run])
def test_a_mixture_is_refused(verb):
    with pytest.raises(flowlab.InputError, match=r"whole or by keywords, not both; .* with depth"):
        verb(flowlab.make(**TINY), width=3, depth=9)
    with pytest.raises(flowlab.InputError, match=r"settings must be what flowlab.make returns"):
        verb("he")


def test_a_run_is_kept_and_prints_in_plain_words(tmp_path):
    folder = {"experiment": "mine", "results_dir": str(tmp_path)}
    done = flowlab.run(**TINY, **folder)
    settings = flowlab.make(**TINY, **folder)
    assert done.path == tmp_path / "mine" / "runs" / f"{settings.run()}.parquet"
    pd.testing.assert_frame_equal(done.table, flowlab.measure(settings))
    pd.testing.assert_frame_equal(flowlab.load(tmp_path / "mine"), done.table)
    pd.testing.assert_frame_equal(flowlab.load(tmp_path / "mine" / "theory"), done.prediction)
    assert done.verdict == flowlab.judge(done.table, done.prediction)
    assert str(done).startswith(done.verdict.sentence) and "log10‖δ‖" in repr(done)
    ((_, metadata),) = Experiment(tmp_path / "mine").all_metadata().items()
    assert metadata["command"].startswith("flowlab.run(depth=4, width=8, batch_size=4")
    assert metadata["settings"] == settings.resolved()


def test_a_folder_that_cannot_be_written_is_refused_before_measuring(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(flowlab.runs.passes, "measure", None)
    with pytest.raises(flowlab.InputError, match="results_dir must be a folder"):
        flowlab.run(**TINY, results_dir=str(tmp_path / "file"))
