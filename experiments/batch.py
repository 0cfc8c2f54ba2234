"""How dW and db grow with the batch, and do biases differ? ``python -m experiments.batch depth=6``.

Settings are those of ``experiments.run`` (by default depth 6, width 64, 256 examples, sum). Prints
the exact law of every layer, the estimators that people use beside it, and three sentences on
weights and biases; writes the estimators' table and the figure that the sentences rest on.
"""

import shlex
import sys
from pathlib import Path

from experiments.command import main
from experiments.plots import describe
from flowlab import batch_demos, batch_examples, batch_law, tables
from flowlab.files import writable
from flowlab.measure import measure
from flowlab.settings import Settings
from flowlab.versions import versions

DEFAULTS = ("depth=6", "width=64", "batch_size=256", "reduction=sum", "experiment=batch_size")


def batch(settings: Settings) -> None:
    """The law, the estimators and the verdict for one configuration."""
    from flowlab.figures import save
    from flowlab.figures.batch_size import weights_and_biases

    folder = Path(settings.results_dir) / settings.experiment
    writable(folder)
    law = batch_law.law(measure(settings))
    n = settings.batch_size
    print(f"E‖g_B‖² = B²|G|² + B trΣ over all subsets of {n} examples; B_s = trΣ/|G|² is the noise")
    print("scale, slope that of log‖g_B‖ at the full batch (medians over seeds):\n")
    shown = law.groupby(["layer", "parameter"])[["noise_scale", "slope"]].median().unstack()
    print(shown.to_string(float_format=lambda v: f"{v:.3g}"))

    one = batch_examples.estimators(settings, small=max(n // 16, 1), big=n // 2)
    columns = [c for c in one.columns if c not in ("run", "seed", "layer", "op")]
    means = one[columns].groupby(["parameter", "estimator", "draws"]).mean(numeric_only=True)
    print("\nEstimators of the noise scale, means over seeds and layers (errors relative):\n")
    print(means.to_string(float_format=lambda v: f"{v:.3g}"))
    metadata = {
        "settings": settings.resolved(),
        "command": shlex.join(["python", "-m", "experiments.batch", *sys.argv[1:]]),
        "versions": versions(),
    }
    path = tables.write(one, folder / "estimators" / f"{settings.run()}.parquet", metadata)

    seeds = settings.seeds
    frames = (
        batch_demos.constant_upstream(seeds),
        batch_demos.uniform_softmax(max(seeds, 64)),
        batch_demos.same_batch(seeds),
    )
    sentences = batch_demos.verdict(seeds)
    stem = folder / "figures" / "weights_and_biases"
    figure, _ = save(weights_and_biases(*frames), stem)
    caption = " ".join(sentences)
    description = {"title": "Weights and biases", "caption": caption}
    describe(stem, {**description, "experiment": settings.experiment, "runs": []})
    print("\n" + "\n".join(sentences))
    print(f"\nTable:   {path}\nFigure:  {figure}\n")


if __name__ == "__main__":
    given = {text.partition("=")[0] for text in sys.argv[1:]}
    sys.argv += [text for text in DEFAULTS if text.partition("=")[0] not in given]
    sys.exit(main(batch))
