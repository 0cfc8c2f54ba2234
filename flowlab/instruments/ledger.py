"""Which operations make a gradient grow or shrink? The log-gain of each, adding up to the whole.

A *gain* is log10 of the norm of the cotangent that leaves an operation over that of the one which
enters it, both measured. In a chain each operation enters what the one after it left, so gains add
up to log10‖dL/dx‖ − log10‖upstream‖ exactly.

A residual block y = s(x + a f(x)) sums two paths, dx = s dy + b with b = Jᵀ(s a dy), and
‖dx‖² = s²‖dy‖² + ‖b‖² + 2s⟨dy, b⟩. With r = ‖b‖/(s‖dy‖) and c the cosine between dy and b its
log-gain splits exactly into

- *skip* log s: the block's gain without its branch;
- *branch* ½ log(1 + r²): what the branch adds by its size, as if at right angles to the skip, which
  in the mean it is where the branch ends in a zero-mean map (THEORY's rate s²(1 + a²χ));
- *interference* ½ log(1 + 2rc/(1 + r²)): what the angle between the two paths adds.

A branch's own operations, its factor a among them, add up to log r. They stand in the ledger
beneath their block with ``counted`` false, because log r is not a share of the sum.

:func:`replace_jacobian` tests an entry: it makes the pullback of one operation the identity and
leaves the forward pass alone, so everything above the operation keeps its cotangents to the bit,
its own gain is 0, and the end-to-end norm loses that gain. What is *not* implied: the operations
below receive a cotangent in another direction, so their gains change a little; in a random net
they keep their mean, and the prediction holds over seeds rather than for one. In a branch the
entry becomes 0 too, but its gain is not what the block loses.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from flowlab import schema
from flowlab.errors import InputError, unknown
from flowlab.layer import Layer, Primitive
from flowlab.layers import Activation, Fork, Residual
from flowlab.layers.activation import identity_forward
from flowlab.measurement.ensemble import Progress, measure
from flowlab.measurement.setup import prepare
from flowlab.networks import Network
from flowlab.networks.rewrite import Place, operations, rewrite
from flowlab.numerics.scale import LOG10_2, log2_norm
from flowlab.settings import Settings

COLUMNS = ("run", "seed", "layer", "position", "op", "kind", "counted", "log10_gain")
COLUMNS += ("log10_cumulative", "log10_end_to_end", "status")


@dataclass(frozen=True)
class Line:
    """One line of a block's account: log2 gains (seeds,) of an operation."""

    op: str
    kind: str
    counted: bool
    gain: np.ndarray


def gains(
    settings: Settings, replace: str | None = None, progress: Progress | None = None
) -> pd.DataFrame:
    """One row per (seed, layer, operation), in the order of the backward pass (``position``).

    ``log10_gain`` is the operation's; those with ``counted`` add up, along the pass, to
    ``log10_cumulative`` and in the end to ``log10_end_to_end``, which :func:`measure` gave.
    An operation that meets an exact zero has gain -inf, those after it none (null), with status
    ``zero``; ``nonfinite`` means what it does in :func:`measure`, ``lost`` that the gain of a
    cotangent whose digits are lost is not known (null). ``replace`` names one operation,
    ``"3.relu"``, whose Jacobian is replaced by the identity; ``run`` then ends in ``-without-`` and
    that name. Raises InputError for settings or a name that break a rule.
    """
    setup = prepare(settings)
    network = setup.network
    if network.steps:
        raise InputError(
            "the ledger follows the gradient through layers, not through time: network must not be "
            f"recurrent; got {settings.network.name}"
        )
    if replace is not None:
        network = replace_jacobian(network, *operation(replace))
    books, run = _Books(settings, network), settings.run()
    name = f"{run}-without-{replace}" if replace else run
    table = measure(
        settings, progress, setup.batches, network=network, watch=books.watch, rewritten=name
    )
    return _tidy(settings, books, table)


def imbalance(table: pd.DataFrame) -> pd.Series:
    """Counted gains minus the measured ``log10_end_to_end``, by run and seed: 0 to rounding.

    Seeds with a gain that is not finite are left out.
    """
    rows = table[table["counted"]]
    groups = rows.assign(finite=np.isfinite(rows["log10_gain"])).groupby(["run", "seed"])
    difference = groups["log10_gain"].sum() - groups["log10_end_to_end"].first()
    return difference[groups["finite"].all()].rename("imbalance")


def operation(text: str) -> tuple[int, str]:
    """(layer, op) of ``"3.relu"``; raises InputError for anything else."""
    layer, _, op = text.partition(".")
    if not (layer.isdecimal() and op):
        raise InputError(f"replace must be LAYER.OP, such as 3.relu; got {text}")
    return int(layer), op


def replace_jacobian(network: Network, layer: int, op: str) -> Network:
    """The network with the pullback of one operation made the identity, its forward unchanged.

    ``layer`` counts from 1; ``op`` is the operation's name in the ledger. Raises InputError if
    there is none such, and when the network is declared for a shape that the operation changes.
    """
    if not 1 <= layer <= len(network.blocks):
        raise InputError(f"layer must be from 1 to {len(network.blocks)}; got {layer}")
    names = operations(network.blocks[layer - 1])
    if op not in names:
        raise unknown(f"operation of layer {layer}", op, names)

    def rule(primitive: Primitive, place: Place) -> Layer:
        return IdentityJacobian(primitive, str(place)) if place == (layer, op) else primitive

    return rewrite(network, rule)


class IdentityJacobian(Primitive):
    """A layer's forward pass with the pullback dx = dy; its parameters keep their gradients.

    Not the adjoint of its forward pass: an instrument, after which gradients are no one's.
    """

    def __init__(self, layer: Primitive, label: str = ""):
        self.layer, self.name, self.label = layer, layer.name, label or layer.name
        self.couples_examples = layer.couples_examples
        self.homogeneous, self.trainable = layer.homogeneous, layer.trainable

    def shapes(self, shape):
        declaration = self.layer.declare(shape)
        if declaration.output != shape:
            raise InputError(
                "an operation whose Jacobian is replaced must keep its input's shape; "
                f"{self.label} maps {shape} to {declaration.output}"
            )
        return declaration

    def forward(self, x, parameters, workspace):
        return self.layer.forward(x, parameters, workspace)

    def pullback(self, dy, tape, workspace, watch=None):
        dx, gradients = self.layer.pullback(dy, tape, workspace)
        identity_forward.run(dy, dx)
        if watch is not None:
            watch(self, tape, dy, dx, gradients)
            for gradient in gradients.values():
                workspace.give(gradient)
        return dx, gradients


@dataclass(frozen=True)
class _Event:
    """What a layer reported: log2 norms (seeds,) of the cotangents entering and leaving it."""

    layer: Layer
    dy: np.ndarray
    dx: np.ndarray


class _Books:
    """The accounts of all layers, filled by threads that each pass a part of the ensemble."""

    def __init__(self, settings: Settings, network: Network):
        self.blocks, self.residual = network.blocks, network.residual
        self.dtype = np.dtype(settings.dtype)
        # For each block the events of each part, by its first seed.
        self.events: list[dict[int, list[_Event]]] = [{} for _ in network.blocks]

    def watch(self, seeds, layer: int):
        """A watch of one layer's pullback for a part of the seeds."""
        events = self.events[layer - 1][int(seeds[0])] = []
        return lambda layer, tape, dy, dx, gradients: events.append(
            _Event(layer, log2_norm(dy), log2_norm(dx))
        )

    def entries(self, layer: int) -> list[Line]:
        """The account of a layer, in the order of the backward pass, over all seeds."""
        block = self.blocks[layer - 1]
        parts = [events for _, events in sorted(self.events[layer - 1].items())]
        events = [
            _Event(
                same[0].layer,
                np.concatenate([event.dy for event in same]),
                np.concatenate([event.dx for event in same]),
            )
            for same in zip(*parts, strict=True)
        ]
        with np.errstate(invalid="ignore"):  # 0/0: the gain of a zero cotangent is undefined
            return list(self._account(block, iter(events), operations(block), True))

    def _account(self, layer: Layer, events: Iterator[_Event], names: list[str], counted: bool):
        """Entries of ``layer``, taking its events and, from the end, its operations' names."""
        if isinstance(layer, Residual):
            branch = list(_through(events, layer))
            yield from self._split(layer, branch, names, counted)
        elif isinstance(layer, Fork):  # its branches' cotangents are summed
            *inner, whole = _through(events, layer)
            yield Line(layer.name, "fork", counted, whole.dx - whole.dy)
            branches = iter(inner)
            for child in reversed(layer.children):
                yield from self._account(child, branches, names, False)
        elif layer.children:
            for child in reversed(layer.children):
                yield from self._account(child, events, names, counted)
        else:
            event = next(events)
            yield Line(names.pop(), _kind(layer), counted, event.dx - event.dy)

    def _split(self, block: Residual, events: list[_Event], names: list[str], counted: bool):
        *inner, whole = events
        # The factors as the kernels see them: rounded to the arrays' type.
        s, sa = (np.log2(np.float64(self.dtype.type(v))) for v in (block.s, block.s * block.a))
        skip = whole.dy + s
        entering = inner[0].dy if inner else whole.dy + sa
        leaving = inner[-1].dx if inner else entering
        apart = 0.5 * np.logaddexp2(2 * skip, 2 * leaving)  # both paths at right angles
        yield Line("skip", "skip", counted, skip - whole.dy)
        yield Line("branch", "branch", counted, apart - skip)
        yield Line("interference", "interference", counted, whole.dx - apart)
        yield Line("branch_scale", "scale", False, entering - skip)
        yield from self._account(block.branch, iter(inner), names, False)


def _through(events: Iterator[_Event], layer: Layer) -> Iterator[_Event]:
    """The events up to and with that of ``layer``."""
    for event in events:
        yield event
        if event.layer is layer:
            return


def _kind(layer: Layer) -> str:
    layer = layer.layer if isinstance(layer, IdentityJacobian) else layer
    return "activation" if isinstance(layer, Activation) else layer.name


def _unknown(table: pd.DataFrame, books: _Books, layers, counted) -> tuple[np.ndarray, np.ndarray]:
    """Where entries (seeds, entries) left the float range, and where their cotangents are lost.

    Within a layer operations may be lost beside the path that is counted. That is lost where the
    cotangent is that enters or leaves the layer: the dX of its first operation, of a residual block
    the delta of the layer before.
    """
    keys = ["seed", "layer"]
    status = table["status"].to_numpy(str)
    lost = status == "lost"
    marked = table[keys].assign(
        left=status == "nonfinite",
        dX=lost & table["dX_log10_norm"].isna(),
        delta=lost & table["delta_log10_norm"].isna(),
    )

    def by_layer(found: pd.DataFrame, column: str) -> np.ndarray:
        return found.pivot(index="seed", columns="layer", values=column).to_numpy().copy()

    left, some = (by_layer(marked.groupby(keys, as_index=False).any(), c) for c in ("left", "dX"))
    leaving = by_layer(marked.drop_duplicates(keys), "dX")
    before = by_layer(marked.drop_duplicates(keys, keep="last"), "delta")
    residual = np.flatnonzero(books.residual)
    leaving[:, residual] = before[:, residual - 1]
    leaving = np.logical_or.accumulate(leaving[:, ::-1], axis=1)[:, ::-1]
    entering = np.hstack([leaving[:, 1:], before[:, -1:] & leaving[:, -1:]])
    place = np.asarray(layers) - 1
    return left[:, place], np.where(counted, (leaving | entering)[:, place], some[:, place])


def _tidy(settings: Settings, books: _Books, table: pd.DataFrame) -> pd.DataFrame:
    """All accounts as one frame, the output's layer first, seed by seed."""
    seeds = settings.seeds
    accounts = [
        (layer, entry)
        for layer in range(len(books.blocks), 0, -1)
        for entry in books.entries(layer)
    ]
    counted = np.array([entry.counted for _, entry in accounts])
    gains = np.stack([entry.gain for _, entry in accounts], axis=1) * LOG10_2
    layers = np.array([layer for layer, _ in accounts])

    left, lost = _unknown(table, books, layers, counted)
    gains[lost | (left & ~np.isfinite(gains))] = np.nan
    status = np.where(np.isfinite(gains), "ok", "zero")
    status = np.select([left, lost], ["nonfinite", "lost"], status)
    cumulative = np.where(counted, np.cumsum(np.where(counted, gains, 0.0), axis=1), np.nan)

    first, last = table["layer"] == 1, table["layer"] == settings.depth
    arrived = table[first].groupby("seed")["dX_log10_norm"].first()
    upstream = table[last].groupby("seed")["delta_log10_norm"].last()

    constant = table[schema.names("run", "setting")].iloc[:1]
    columns = {name: constant[name].array.repeat(seeds * len(accounts)) for name in constant}
    columns["seed"] = np.repeat(np.arange(settings.seed, settings.seed + seeds), len(accounts))
    columns["layer"] = np.tile(layers, seeds)
    columns["position"] = np.tile(np.arange(1, len(accounts) + 1), seeds)
    columns["op"] = np.tile([entry.op for _, entry in accounts], seeds)
    columns["kind"] = np.tile([entry.kind for _, entry in accounts], seeds)
    columns["counted"] = np.tile(counted, seeds)
    columns["log10_gain"] = gains.ravel()
    columns["log10_cumulative"] = cumulative.ravel()
    end_to_end = (arrived - upstream).to_numpy()
    columns["log10_end_to_end"] = np.repeat(end_to_end, len(accounts))
    columns["status"] = status.ravel()
    return pd.DataFrame(columns)
