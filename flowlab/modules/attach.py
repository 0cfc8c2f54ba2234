"""A user's own model, measured: ``flowlab.attach(model)``."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from flowlab.analysis.verdicts import Verdict, judge
from flowlab.errors import InputError, check_count, check_positive
from flowlab.modules.keeping import keep
from flowlab.modules.table import named
from flowlab.modules.torch_needed import torch_needed
from flowlab.schema import columns

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn

    from flowlab.modules.choosing import Choice


def attach(
    model: "nn.Module",
    modules: "Choice" = None,
    *,
    every: int = 1,
    scale: float = 1.0,
    exponents: bool = False,
    seed: int = 0,
    name: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> "Flow":
    """ModelWatch a PyTorch model; forward and backward passes stay the user's.

    ::

        with flowlab.attach(model) as flow:
            criterion(model(x), y).backward()
        flow.table

    ``modules`` are those that have rows: patterns of paths, classes, or both (by default those that
    own parameters, and activations). In a loop every ``every``-th call of :meth:`Flow.step` is
    measured, from the first on. ``scale`` is the factor of a scaled loss, which norms are rid of.
    With ``exponents`` cotangents are multiplied by powers of two on their way where the graph
    allows it, so that norms below the type's range are true; parameters get their gradients in true
    size. ``seed``, ``name`` (by default that of the model's class) and ``settings``, such as
    ``{"init": "he", "depth": 12}``, stand in the columns of the table.

    Raises InputError without PyTorch, for a model that hooks cannot see (compiled, sharded,
    DataParallel, TorchScript), one that is attached already, and an unknown setting.
    """
    torch_needed()
    return Flow(
        model,
        modules,
        every=every,
        scale=scale,
        exponents=exponents,
        seed=seed,
        axes={"network": name or type(model).__name__, **(settings or {})},
    )


class Flow:
    """What was measured of a model so far, and the hooks that measure it; see :func:`attach`.

    As a context manager it measures a step at the end of the block, unless :meth:`step` was called
    in it, and detaches.
    """

    def __init__(
        self,
        model: "nn.Module",
        modules: "Choice",
        *,
        every: int,
        scale: float,
        exponents: bool,
        seed: int,
        axes: dict[str, Any],
    ):
        from flowlab.modules.watch import ModelWatch

        check_count("every", every)
        check_positive("scale", scale)
        known = columns("setting")
        for setting in axes:
            if setting not in known:
                raise InputError(f"settings must be columns of settings; got {setting}")
        self._watch = ModelWatch(model, modules, exponents)
        self._every, self._scale, self._seed, self._axes = every, scale, seed, axes
        self._steps = 0
        self._tables: list[pd.DataFrame] = []
        self._joined = pd.DataFrame()
        self._losses: list[tuple[int, float]] = []

    def step(
        self, loss: float | None = None, *, scale: float | None = None, unscaled: bool = False
    ) -> None:
        """Measure what came back since the last step; call it behind ``backward``.

        Gradients of parameters are read as they are now, so before clipping where this is called
        before clipping. ``scale`` replaces that of :func:`attach` for this step; ``unscaled`` says
        that the gradients of parameters are rid of it already, as behind ``scaler.unscale_``.
        ``loss`` stands in :attr:`losses`. Raises InputError where no gradient came back.
        """
        self._steps += 1
        scale = self._scale if scale is None else scale
        check_positive("scale", scale)
        if loss is not None:
            self._losses.append((self._steps, float(loss)))
        if self._watch.observer.listening:
            self._measure(self._steps, scale, unscaled)
        self._watch.observer.listening = self._steps % self._every == 0

    def _measure(self, step: int | None, scale: float, unscaled: bool) -> None:
        axes = dict(seed=self._seed, step=step, axes=self._axes)
        self._tables.append(self._watch.table(scale, unscaled, **axes))

    @property
    def table(self) -> pd.DataFrame:
        """One row for each call of a module and each parameter, and measured step.

        The columns are those of ``flowlab.measure`` and the part "module" of the schema. Raises
        InputError before anything was measured.
        """
        if not self._tables:
            raise InputError(
                "a step must be measured before there is a table; got none: call flow.step() "
                "behind backward, or leave the block"
            )
        if len(self._tables) > 1 or self._joined.empty:
            self._joined = named(pd.concat([self._joined, *self._tables], ignore_index=True))
            self._tables = [self._joined]
        return self._joined

    @property
    def losses(self) -> pd.DataFrame:
        """The losses that :meth:`step` was given: ``step`` and ``loss``."""
        return pd.DataFrame(self._losses, columns=["step", "loss"])

    @property
    def verdict(self) -> Verdict:
        """How far the gradient changes from the last module to the first, at the first step."""
        return judge(self.table)

    def plot(self, path: str | Path | None = None) -> "Figure":
        """Norms against layer, of a loop against layer and step; also written to ``path``."""
        from flowlab import figures

        figure = figures.draw(self.table)
        if path is not None:
            figures.save(figure, path)
        return figure

    def save(self, results_dir: str | Path = "results", experiment: str = "own") -> Path:
        """Keep the table in ``results_dir/experiment``, for ``make report``; its folder."""
        return keep(self.table, results_dir=results_dir, experiment=experiment)

    def detach(self) -> None:
        """Remove every hook; what was measured stays. Once more does nothing."""
        self._watch.stop()

    def __enter__(self) -> "Flow":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        try:
            if kind is None and self._steps == 0:
                self._measure(None, self._scale, False)
        finally:
            self.detach()

    def _repr_html_(self) -> str:
        return self.verdict._repr_html_()
