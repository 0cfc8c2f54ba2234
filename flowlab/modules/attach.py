"""A user's own model, measured: ``flowlab.attach(model)``."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from flowlab.analysis.verdicts import Verdict, judge
from flowlab.errors import InputError, check_count, check_positive, unknown
from flowlab.modules.keeping import keep
from flowlab.modules.table import named, of_rows
from flowlab.modules.torch_needed import torch_needed
from flowlab.schema import columns

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn

    from flowlab.modules.choosing import Choice

_ROWS = 5000  # that wait to become a table: tables cost more to make than rows


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
    """Watch a PyTorch model; forward and backward passes stay the user's.

    ::

        with flowlab.attach(model) as flow:
            criterion(model(x), y).backward()
        flow.table

    ``modules`` are those that have rows: patterns of paths, classes, or both (by default those that
    own parameters, and activations). In a loop every ``every``-th call of :meth:`Flow.step` is
    measured, from the first on. All calls of the model since the step before are parts of one
    batch; those that no gradient came back through are left out. ``scale`` is the factor of a
    scaled loss, which norms are rid of.
    With ``exponents`` cotangents are multiplied by powers of two on their way where the graph
    allows it, so that norms below the type's range are true; parameters get their gradients in true
    size. ``seed``, ``name`` (by default that of the model's class) and ``settings``, such as
    ``{"init": "he", "depth": 12}``, stand in the columns of the table.

    Raises InputError without PyTorch, for a model that hooks cannot see (compiled, sharded,
    DataParallel, TorchScript), one that is attached already, and an unknown setting.
    """
    torch_needed()
    if settings is not None and not isinstance(settings, Mapping):
        raise InputError(f"settings must be a dictionary; got {type(settings).__name__}")
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

        for what, value in (("every", every), ("seed", seed)):
            if not isinstance(value, int):
                raise InputError(f"{what} must be a whole number; got {value!r}")
        check_count("every", every)
        _check_scale(scale)
        _check_settings(axes)
        self._watch = ModelWatch(model, modules, exponents)
        self._every, self._scale, self._seed, self._axes = every, scale, seed, axes
        self._steps = 0
        self._rows: list[dict[str, Any]] = []  # of steps that no table has yet
        self._tables: list[pd.DataFrame] = []
        self._table: pd.DataFrame | None = None  # all of them as one
        self._losses: list[tuple[int, float]] = []

    def step(
        self, loss: float | None = None, *, scale: float | None = None, unscaled: bool = False
    ) -> None:
        """Measure what came back since the last step; call it behind ``backward``.

        Gradients of parameters are read as they are now, so before clipping where this is called
        before clipping. ``scale`` replaces that of :func:`attach` for this step; ``unscaled`` says
        that the gradients of parameters are rid of it already, as behind ``scaler.unscale_``.
        ``loss`` stands in :attr:`losses`, and beside the rows in ``step_loss``. Raises InputError
        where no gradient came back.
        """
        self._steps += 1
        scale = self._scale if scale is None else scale
        _check_scale(scale)
        if loss is not None:
            self._losses.append((self._steps, _number(loss)))
        listened, self._watch.listening = self._watch.listening, self._steps % self._every == 0
        if listened:
            own = {"step": self._steps, "step_loss": None if loss is None else _number(loss)}
            self._measure(own, scale, unscaled)

    def _measure(self, own: Mapping[str, Any], scale: float, unscaled: bool) -> None:
        self._rows += [{**row, **own} for row in self._watch.rows(scale, unscaled)]
        if len(self._rows) > _ROWS:
            self._fold()

    def _fold(self) -> None:
        """Make a table of the rows that are in none."""
        if self._rows:
            self._tables.append(of_rows(self._rows, seed=self._seed, axes=self._axes))
            self._rows, self._table = [], None

    @property
    def table(self) -> pd.DataFrame:
        """One row for each call of a module and each parameter, and measured step.

        The columns are those of ``flowlab.measure`` and the part "module" of the schema. Raises
        InputError before anything was measured.
        """
        self._fold()
        if not self._tables:
            raise InputError(
                "a step must be measured before there is a table; got none: call flow.step() "
                "behind backward, or leave the block"
            )
        if self._table is None:
            self._table = named(pd.concat(self._tables, ignore_index=True))
            self._tables = [self._table]
        return self._table

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
        return keep(
            self.table,
            results_dir=results_dir,
            experiment=experiment,
            command=f"flowlab.attach(model)  # {self._axes['network']}",
        )

    def detach(self) -> None:
        """Remove every hook; what was measured stays. Once more does nothing."""
        self._watch.stop()

    def __enter__(self) -> "Flow":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        try:
            if kind is None and self._steps == 0:
                self._measure({"step": None}, self._scale, False)
        finally:
            self.detach()

    def _repr_html_(self) -> str:
        return self.verdict._repr_html_()


def _check_scale(scale: float) -> None:
    if not isinstance(scale, int | float):
        raise InputError(f"scale must be a number; got {type(scale).__name__}")
    check_positive("scale", scale)


def _check_settings(axes: Mapping[str, Any]) -> None:
    known = columns("setting")
    for name, value in axes.items():
        if name not in known:
            raise unknown("setting", name, known)
        try:
            pd.array([value], dtype=known[name].dtype)
        except (TypeError, ValueError):
            raise InputError(f"{name} must be of type {known[name].dtype}; got {value!r}") from None


def _number(loss: Any) -> float:
    try:
        return float(loss.detach() if hasattr(loss, "detach") else loss)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"loss must be a number; got {type(loss).__name__}") from None
