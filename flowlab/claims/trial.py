"""The means of measurement that every check is given: seeds, networks, single layers.

Checks obtain every number under test from here (or from the layers themselves), so that an error
planted here must turn their verdicts.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from flowlab.analysis.statistics import seed_ratios
from flowlab.initializers import Initializer, InitSettings
from flowlab.laws import Pass
from flowlab.layer import Chain, Layer, Shape, Workspace, leaves, map_leaves
from flowlab.measurement.ensemble import measure
from flowlab.schema import DELTA
from flowlab.settings import make
from flowlab.training.loop import Trained, train

_SQUARED_NATURAL = 2 * np.log(10)  # log10 of a norm to ln of its square


@dataclass(frozen=True)
class Trial:
    """Networks are drawn with the seeds ``seed``, ``seed + 1``, ...: ``seeds`` of them.

    A check that needs a larger ensemble takes a multiple of ``seeds``.
    """

    seed: int = 0
    seeds: int = 64

    def random(self) -> np.random.Generator:
        """Random numbers for inputs and cotangents."""
        return np.random.default_rng(self.seed)

    def measure(self, times: float = 1, **axes) -> pd.DataFrame:
        """The table of ``times * seeds`` networks, by default with one Gaussian example each and
        an independent Gaussian cotangent, for which the theory is sharpest."""
        axes = {"data": "gaussian", "batch_size": 1, "upstream": "gaussian", **axes}
        return measure(make(seed=self.seed, seeds=self._count(times), **axes))

    def train(self, times: float = 1, **axes) -> Trained:
        """The table and the curve of ``times * seeds`` trained networks, by default on digits."""
        return train(make(seed=self.seed, seeds=self._count(times), **axes))

    def sweep(
        self, runs: Iterable[dict], times: float = 1
    ) -> tuple[pd.DataFrame, pd.DataFrame | None]:
        """The tables of several settings as one, and the curves of those that name an optimizer.

        The curve is None where none does.
        """
        tables, curves = [], []
        for axes in runs:
            if "training" in axes:
                trained = self.train(times, **axes)
                tables.append(trained.table)
                curves.append(trained.curve)
            else:
                tables.append(self.measure(times, **axes))
        curve = pd.concat(curves, ignore_index=True) if curves else None
        return pd.concat(tables, ignore_index=True), curve

    def _count(self, times: float) -> int:
        return max(2, int(times * self.seeds))

    def parameters(self, layer: Layer, shape: Shape, init: str = "he", times: int = 1, **options):
        """``layer``'s parameters in float64, nested, with a leading axis of ``times * seeds``."""
        declared = layer.declare(shape).parameters
        initializer = Initializer(InitSettings(init, **options))
        seeds = self.seed + np.arange(times * self.seeds)
        drawn = []
        for role, (_, parameter) in enumerate(leaves(declared)):
            drawn.append(np.empty((len(seeds), *parameter.shape)))
            initializer.draw(parameter, seeds, 1, role, drawn[-1])
        values = iter(drawn)
        return map_leaves(lambda _: next(values), declared)

    def run(self, layer: Layer, x: np.ndarray, parameters, dy: np.ndarray) -> Pass:
        """Output, cotangent of the input and of each parameter by path, all with a seed axis."""
        workspace = Workspace(np.nan)
        y, tape = layer.forward(x, parameters, workspace)
        y = y.copy()
        dx, gradients = layer.pullback(dy, tape, workspace)
        return Pass(y, dx, dict(leaves(gradients)))

    def draw(self, layers: Sequence[Layer], shape: Shape, init: str = "he", **options):
        """A chain of ``layers``, and the arguments of :meth:`run`: x, parameters, dy."""
        chain, random = Chain(layers), self.random()
        parameters = self.parameters(chain, shape, init, **options)
        count = options.get("times", 1) * self.seeds
        x = random.standard_normal((count, *shape))
        dy = random.standard_normal((count, *chain.declare(shape).output))
        return chain, x, parameters, dy


def log_growth(table: pd.DataFrame, first: int = 1, column: str = DELTA) -> np.ndarray:
    """Each seed's ln‖δ_first‖² − ln‖δ_L‖²; NaN where either is not finite."""
    rows = table[table["layer"] >= first]
    return _SQUARED_NATURAL * seed_ratios(rows, column).to_numpy()


def inner(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """⟨a, b⟩ of each seed, (seeds,)."""
    return np.sum((a * b).reshape(len(a), -1), axis=1)


def square(a: np.ndarray) -> np.ndarray:
    """‖a‖² of each seed, (seeds,)."""
    return inner(a, a)
