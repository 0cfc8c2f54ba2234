"""Measure how dW and db grow with the batch, and whether biases differ.

Settings are those of ``experiments.run`` (by default depth 6, width 64, 256 examples, sum). Prints
the exact law of every layer, the estimators that people use beside it, and sentences on weights and
biases of that net; apart from these a demonstration on one linear layer, whatever the settings.
Writes the estimators' table and a figure of each.
"""

import shlex
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.command import at_initialization
from experiments.help import Command
from experiments.plots import describe
from flowlab.analysis import batch_law
from flowlab.analysis.statistics import over_seeds
from flowlab.errors import InputError
from flowlab.instruments import biases, subsets
from flowlab.measurement.ensemble import measure
from flowlab.progress import Progress
from flowlab.settings import Settings
from flowlab.storage import tables
from flowlab.storage.files import writable
from flowlab.storage.versions import versions

DEFAULTS = ("depth=6", "width=64", "batch_size=256", "reduction=sum", "experiment=batch_size")
COMMAND = Command(
    "batch",
    __doc__,
    {"": "the defaults", "depth=6 skip=identity network=mlp": "any settings of a run"},
    composed=True,
    more=f"Here the defaults are {' '.join(DEFAULTS)}.",
)
LEAST = 4  # examples of which two batches can be compared


def run(settings: Settings) -> None:
    """The law, the estimators and the sentences for one configuration, and the demonstration."""
    from flowlab.figures import save
    from flowlab.figures.head import fixed, head
    from flowlab.figures.weights_and_biases import demonstrations, finding, weights_and_biases

    at_initialization(settings, "batch")
    n, seeds = settings.batch_size, settings.seeds
    if n < LEAST:
        raise InputError(
            f"batch_size must be at least {LEAST}: a noise scale is what examples differ by, and "
            f"its estimators compare a batch with half of it; got {n}"
        )
    folder = Path(settings.results_dir) / settings.experiment
    writable(folder)
    with Progress("measuring the law") as progress:
        table = measure(settings, progress)
        law = batch_law.law(table)
        progress.at("measuring the estimators")
        one = subsets.estimators(settings, small=max(n // 16, 1), big=n // 2)
        progress.at("comparing weights and biases")
        sentences = biases.findings(settings, law)
        constant = biases.constant_upstream(seeds, settings.seed)
        softmax = biases.uniform_softmax(max(seeds, 64), settings.seed)

    print(
        f"{seeds} {settings.network.name} nets, activation={settings.activation} "
        f"init={settings.init.name} depth={settings.depth} width={settings.width} "
        f"skip={settings.skip} norm={settings.norm}, batch {n} of {settings.data.name}, "
        f"upstream={settings.upstream}: {progress.took()}\n"
    )
    print(f"E‖g_B‖² = B²|G|² + B trΣ over all subsets of {n} examples; B_s = trΣ/|G|² is the noise")
    print("scale, slope that of log‖g_B‖ at the full batch (means over seeds, 95 % intervals):\n")
    print(_law(law).to_string())
    print("\nEstimators of the noise scale, means over seeds and layers (errors relative):\n")
    print(_means(one).to_string(float_format=lambda v: f"{v:.3g}"))
    lacking = one.drop_duplicates(["seed", "layer", "op", "parameter"])
    lacking, of = int((lacking["note"] != "").sum()), len(lacking)
    if lacking:
        print(f"\n{lacking} of {of} exact scales are null: {batch_law.NO_SIGNAL}.")
    print("\n" + "\n".join(sentences))

    metadata = {
        "settings": settings.resolved(),
        "command": shlex.join(["python", "-m", "experiments.batch", *sys.argv[1:]]),
        "versions": versions(),
    }
    path = tables.write(one, folder / "estimators" / f"{settings.run()}.parquet", metadata)
    print(f"\nTable:   {path}")
    demonstration = biases.demonstration(constant)
    shared = fixed(table)
    for name, found, settings_words, figure, caption in (
        (
            *("weights_and_biases", finding(law), shared),
            *(weights_and_biases(law), " ".join(sentences)),
        ),
        (
            *("demonstrations", _demonstrated(constant), "One linear layer, whatever the settings"),
            *(demonstrations(constant, softmax), f"Whatever the settings. {demonstration}"),
        ),
    ):
        stem = folder / "figures" / name
        drawn, _ = save(head(figure, found, settings_words), stem)
        description = {"finding": found, "fixed": settings_words, "caption": caption}
        source = [f"estimators/{path.name}"] if name == "weights_and_biases" else []
        describe(stem, {**description, "experiment": settings.experiment, "runs": source})
        if name == "demonstrations":
            print("\nApart from the settings, on one linear layer of gaussian inputs:")
            print(demonstration)
        print(f"Figure:  {drawn}")


def _demonstrated(constant: pd.DataFrame) -> str:
    """The slopes of :func:`biases.constant_upstream`, as a title."""
    fit = biases.slopes(constant, "inputs").set_index(["inputs", "parameter"])["slope"]
    return (
        f"Under a constant upstream gradient ‖db‖ grows as B^{fit['zero-mean', 'b']:.2f}; ‖dW‖ as "
        f"B^{fit['zero-mean', 'W']:.2f} where inputs have mean 0 and as "
        f"B^{fit['mean 1', 'W']:.2f} where they have mean 1"
    )


def _law(law: pd.DataFrame) -> pd.DataFrame:
    """Noise scale and slope of each layer and parameter as text, with their intervals."""
    keys = ["layer", "op", "parameter"]
    scales = batch_law.noise_scales(law).set_index(keys)
    slopes = over_seeds(law.set_index([*batch_law.KEYS, "seed"])["slope"]).set_index(keys)
    shown = {"B_s": scales.apply(_scale, axis=1), "slope": slopes.apply(_slope, axis=1)}
    return pd.DataFrame(shown).unstack()


def _scale(row: pd.Series) -> str:
    value, low, high = row[["noise_scale", "low", "high"]]
    if np.isfinite(value):
        upper = f"{high:.3g}" if np.isfinite(high) else "no bound"
        return f"{value:.3g} [{low:.3g}, {upper}]" if np.isfinite(low) else f"{value:.3g}"
    if np.isfinite(low):
        return f"above {low:.3g}"
    return "none: gradients cancel" if value == np.inf else "not known"


def _slope(row: pd.Series) -> str:
    interval = f" [{row['low']:.3f}, {row['high']:.3f}]" if np.isfinite(row["low"]) else ""
    return f"{row['mean']:.3f}{interval}"


def _means(one: pd.DataFrame) -> pd.DataFrame:
    """What estimators cost and how far they are off; scales of their own are in the table."""
    left_out = ("seed", "layer", "noise_scale", "low", "median", "high")
    groups = one.groupby(["parameter", "estimator", "draws"])
    return groups.mean(numeric_only=True).drop(columns=list(left_out))


if __name__ == "__main__":
    given = {text.partition("=")[0] for text in sys.argv[1:]}
    sys.argv += [text for text in DEFAULTS if text.partition("=")[0] not in given]
    sys.exit(COMMAND.compose(run))
