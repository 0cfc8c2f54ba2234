"""Tables of users' models are kept, read, drawn and reported beside the laboratory's own."""

import numpy as np
import pandas as pd
import pytest

import flowlab
from experiments import ask, compact, plots, report, results
from flowlab import figures
from flowlab.analysis.summary import summarise
from flowlab.errors import InputError
from flowlab.modules.keeping import SILENT, keep
from flowlab.modules.table import joined, of_rows, silent
from flowlab.schema import DELTA, NORMS
from flowlab.storage.experiment import Experiment

SLOPE = -0.2  # decades a layer


def rows(depth, seed, step=0):
    """A chain of ``depth`` linear modules and activations, of one slope, and one without use."""
    noise = np.random.default_rng([depth, seed]).normal(0, 0.002)
    found, last = [], 2 * depth
    for layer in range(1, last + 1):
        linear = bool(layer % 2)
        place = {"layer": layer, "op": "Linear" if linear else "ReLU", "status": "ok"}
        place |= {"module": f"layers.{layer - 1}", "use": 1}
        delta = (SLOPE + noise) * (last - layer) + 0.1 * step
        found.append({**place, DELTA: delta, "activation_log10_norm": 1.0, "delta_zeros": 0.5})
        for parameter, norm in (("weight", "dW_log10_norm"), ("bias", "db_log10_norm")):
            if linear:
                found.append({**place, "parameter": parameter, norm: delta + 1.0, "use": None})
    place = {"layer": last + 1, "op": "Linear", "module": "spare", "status": "unused"}
    return [*found, {**place, "parameter": "weight"}]


def table(depth=6, seeds=4, steps=(None,), name="Chain", **axes):
    axes = {"network": name, "depth": depth, **axes}
    return joined(
        of_rows(rows(depth, seed, step or 0), seed=seed, step=step, axes=axes)
        for step in steps
        for seed in range(seeds)
    )


def together(*tables):
    return pd.concat(tables, ignore_index=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Own tables alone, of a training loop, and among runs of the laboratory, trained ones too."""
    root = tmp_path_factory.mktemp("results")
    keep(together(*map(table, (4, 6, 8))), results_dir=root, experiment="depths", command="probed")
    keep(table(steps=(1, 11, 21)), results_dir=root, experiment="loop")
    small = {"results_dir": str(root), "depth": 4, "width": 8, "batch_size": 8, "seeds": 2}
    for experiment in ("mixed", "depth"):
        flowlab.run(experiment=experiment, **small)
        flowlab.run(experiment=experiment, **small, training={"name": "sgd", "steps": 2})
        keep(table(), results_dir=root, experiment=experiment)
        keep(table(steps=(1, 11)), results_dir=root, experiment=experiment)
    return root


def test_what_is_kept_is_what_is_loaded(tmp_path):
    made = together(table(4), table(6, name="Other"))
    folder = keep(made, results_dir=tmp_path)
    assert folder == tmp_path / "own"
    loaded = flowlab.load(folder)
    assert set(loaded["experiment"]) == {"own"}
    for run, own in made.groupby("run"):
        one = Experiment(folder).read(run).drop(columns="experiment")
        expected = own.drop(columns="experiment").reset_index(drop=True)
        pd.testing.assert_frame_equal(one, expected, check_exact=True)
    assert set(loaded["run"]) == set(made["run"]) == set(Experiment(folder).index())


def test_the_same_table_is_one_file_and_another_is_another(tmp_path):
    def kept(made, **more):
        keep(made, results_dir=tmp_path, **more)
        return len(list((tmp_path / "own/runs").iterdir()))

    assert kept(table()) == kept(table()) == kept(flowlab.load(tmp_path / "own")) == 1
    assert kept(table().assign(**{DELTA: 1.0})) == 2
    assert kept(table(), settings={"width": 7}) == kept(table(width=7)) == 3
    assert kept(table(steps=(1,))) == 4
    # Settings that differ within what one name holds are runs of their own.
    assert kept(together(table(3), table(5)).assign(run=pd.NA)) == 6


def test_settings_are_columns_and_metadata(tmp_path):
    folder = keep(table(), results_dir=tmp_path, settings={"learning_rate": 0.1, "init": "kaiming"})
    loaded = flowlab.load(folder, columns=["learning_rate", "init"]).drop_duplicates()
    assert loaded.to_dict("records") == [{"learning_rate": 0.1, "init": "kaiming"}]
    ((_, stored),) = Experiment(folder).all_metadata().items()
    columns = {"network": "Chain", "depth": 6, "init": "kaiming", "learning_rate": 0.1}
    network = {"name": "Chain", "modules": 13}
    assert stored["settings"] == {"network": network, "columns": columns, "seed": 0, "seeds": 4}
    assert "flowlab" in stored["versions"]


def test_a_prediction_follows_its_run_and_silence_says_why(tmp_path):
    known, unknown = table(4), table(6)
    prediction = silent(known, "none").assign(silent_because=pd.NA)
    prediction[DELTA] = SLOPE * (8 - prediction["layer"])
    made = together(known, unknown).assign(run=lambda t: "mine-" + t["depth"].astype("string"))
    folder = keep(made, prediction.assign(run="mine-4"), results_dir=tmp_path)
    kept = {run: Experiment(folder).prediction(run) for run in Experiment(folder).index()}
    assert set(kept) == {*known["run"], *unknown["run"]}
    assert set(kept[unknown["run"].iloc[0]]["silent_because"]) == {SILENT}
    compared = flowlab.compare(folder).set_index("depth")
    assert list(compared.loc[[4, 6], "agreement"]) == ["agrees", "no theory"]
    assert compared.loc[4, "theory"] == pytest.approx(7 * SLOPE)


def test_silence_has_the_rows_of_one_network():
    made = table(steps=(1, 2))
    rows_of = silent(made, "theory is silent")
    assert len(rows_of) == len(made) / 4 / 2
    assert rows_of[list(NORMS)].isna().all(axis=None)
    verdict = flowlab.judge(made, rows_of)
    assert verdict.agreement == "no theory" and "theory is silent" in verdict.sentence


def test_a_table_of_modules_is_judged_by_its_modules():
    verdict = flowlab.judge(table())
    assert verdict.readout is None and (verdict.first, verdict.last) == (1, 12)
    assert verdict.slope.mean == pytest.approx(SLOPE, abs=3 * verdict.slope.se)
    text = summarise(table(), verdict)
    assert "4 of 100 rows belong to modules that did not run" in text
    assert "upstream" not in text


def test_runs_are_ranked_beside_the_laboratorys(root):
    ranked = flowlab.compare(root / "mixed").set_index("network")
    assert list(ranked.loc["Chain", "decades"]) == pytest.approx([11 * SLOPE] * 2, abs=0.2)
    assert ranked.loc["mlp", "agreement"].isin(["agrees", "undecided", "differs"]).all()


def test_plain_readers_take_a_mixed_folder(root):
    frame = pd.read_parquet(root / "mixed/runs")
    assert len(frame) == len(flowlab.load(root / "mixed"))
    assert frame.groupby("network")["run"].nunique().to_dict() == {"Chain": 2, "mlp": 2}


@pytest.mark.parametrize(
    "made, words",
    [
        (lambda: table(), "loses 2.19"),
        (lambda: together(*map(table, (4, 6, 8))), "by depth 8"),
        (lambda: together(table(name="A"), table(name="B")), "None of 2 keeps"),
        (lambda: table(steps=(1, 11, 21)), "at step 21"),
    ],
)
def test_figures_name_what_sets_own_runs_apart(made, words):
    figure = figures.draw(made())
    assert words in " ".join(text.get_text() for text in figure.texts)


def test_models_of_one_name_and_seed_are_not_taken_for_one_run():
    """Of a model the settings do not say all, so equal ones are named by their digests."""
    first, second = table(), table().assign(**{DELTA: 0.0})
    second = joined([second])
    text = figures.caption(together(first, second))
    assert all(of["run"].iloc[0][:8] in text for of in (first, second))
    halves = [joined([table().query(f"seed {where}")]) for where in ("< 2", ">= 2")]
    assert "4 seeds each" in figures.caption(together(*halves))


@pytest.mark.parametrize(
    "start",
    [
        lambda root: plots.main([f"results_dir={root}"]),
        lambda root: results.main([f"results_dir={root}"]),
        lambda root: results.main([f"results_dir={root}", "experiment=mixed"]),
        lambda root: ask.main([f"results_dir={root}", "init=he", "depth=4", "width=8"]),
        lambda root: report.main([f"results_dir={root}"]),
    ],
)
def test_every_command_copes(root, capsys, start):
    assert start(root) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note")]
    # The study of the experiment "depth" asks for one kind of network.
    foreseen = ("no claims yet", "no benchmark yet", "depth_by_init is not drawn: table must vary")
    assert all(any(text in line for text in foreseen) for line in notes), notes


def test_a_report_shows_own_runs_with_their_figures_and_silence(root, capsys):
    plots.plots(str(root), "depths")
    report.report(str(root), "Mine")
    page = (root / "report.html").read_text()
    for text in (
        "depths",
        "Chain",
        "by depth 8",
        SILENT.split("'")[1][2:],
        "A user&#x27;s model is",
    ):
        assert text in page, text
    assert "probed" in (root / "report.md").read_text()


def test_own_runs_are_compacted(root, tmp_path, capsys):
    folder = keep(together(*map(table, (4, 6, 8))), results_dir=tmp_path)
    before = flowlab.load(folder)
    assert compact.main([f"results_dir={tmp_path}"]) == 0
    after = flowlab.load(folder)
    keys = ["run", "seed", "layer", "module", "parameter"]
    pd.testing.assert_frame_equal(
        *(of.sort_values(keys).reset_index(drop=True) for of in (before, after))
    )
    keep(table(4), results_dir=tmp_path)
    assert len(flowlab.load(folder)) == len(before)
    assert results.main([f"results_dir={tmp_path}", "experiment=own"]) == 0
    assert "depth: " in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"table": [1]}, "table must be a DataFrame; got list"),
        ({"table": pd.DataFrame({"run": ["a"]})}, "table must be of modules.*; no column experim"),
        ({"table": table().iloc[:0]}, "table must hold at least one row; got none"),
        ({"table": table().assign(module=pd.NA)}, "table must hold rows of modules alone"),
        ({"table": table().assign(layer="first")}, "column layer must be as the schema has it"),
        ({"table": table().assign(mine=[[1]] * 100)}, "column mine must hold numbers or text"),
        ({"table": table().rename(columns={"note": 3})}, "table must have names of columns; got 3"),
        ({"experiment": "a/b"}, "experiment must be a plain folder name; got 'a/b'"),
        ({"experiment": 3}, "experiment must be text; got 3"),
        ({"prediction": table()[["run"]]}, "prediction must be of modules.*; no column layer"),
        ({"settings": {"layer": 3}}, "settings must have names of their own; got 'layer'"),
        ({"settings": {"mine": [3]}}, "settings must be numbers or text; got mine="),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, arguments, message):
    given = {"table": table(), "results_dir": tmp_path / "new", **arguments}
    with pytest.raises(InputError, match=f"^{message}") as caught:
        keep(**given)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match=r"results_dir must be a folder; .*taken is a file"):
        keep(table(), results_dir=tmp_path / "taken")


def test_tables_of_one_seed_and_step_are_not_joined():
    with pytest.raises(InputError, match="tables must differ in seed or step; got seed 0 twice"):
        joined([table(seeds=2), table(seeds=1)])
    with pytest.raises(InputError, match="got seed 1, step 3 twice"):
        joined([of_rows(rows(2, 1), seed=1, step=step) for step in (2, 3, 3)])
    with pytest.raises(InputError, match="tables must hold at least one table; got none"):
        joined([])
