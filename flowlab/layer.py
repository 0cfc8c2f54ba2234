"""The contract of a layer: a map with declared shapes and its adjoint.

A layer holds no arrays. For an input shape it *declares* the shapes of its output, its parameters
and what its forward pass saves; ``forward`` and ``pullback`` run its two kernels over an ensemble.
Shapes in declarations belong to one network, ``(batch, ...)``; arrays carry a leading seed axis.

To add a layer, write its two kernels and subclass :class:`Primitive`: see ``layers/linear.py``.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from flowlab.kernel import Kernel, ShapeError
from flowlab.numerics.scale import log2_norm, log2_norms, renormalise

Shape = tuple[int, ...]
Arrays = dict[str, np.ndarray]
Nest = Any  # arrays, or what stands for them, in dictionaries, tuples and lists
# (x, exponent): true values x 2^exponent, exponent int64 (seeds,). A sequence may have a third,
# int64 (seeds, steps): then step t is x[:, :, t] 2^(that of t), and ``exponent`` is the last step's
# of a state, the largest of a cotangent.
Scaled = tuple[np.ndarray, ...]
WHOLE = 2**24  # whole numbers up to here are held by every float type


@dataclass(frozen=True)
class Parameter:
    """A parameter's shape and what an initializer needs to know of it.

    ``role`` is ``weight``, ``bias``, ``scale`` (drawn as zeros), ``gain`` (drawn as ones) or
    ``target`` (data such as labels, without a gradient). ``factor`` multiplies whatever the
    initializer draws. A weight with a ``scheme`` is drawn by that scheme in place of the run's.
    """

    shape: Shape
    fan_in: int = 1
    fan_out: int = 1
    role: str = "weight"
    factor: float = 1.0
    scheme: str | None = None


@dataclass(frozen=True)
class Declaration:
    """Shapes for one input shape: output, parameters (nested for composites) and saved values."""

    output: Shape
    parameters: Any = field(default_factory=dict)
    saved: dict[str, Shape] = field(default_factory=dict)
    scratch: dict[str, Shape] = field(default_factory=dict)  # buffers for either kernel to work in
    constants: tuple = ()  # numbers that both kernels receive after their arrays
    elements: int = 0  # what a forward pass keeps for the pullback, parameters included


class Workspace:
    """Buffers that are allocated once and handed out again.

    ``take`` gives an uninitialised array, or one filled with ``fill`` where a test must see
    unwritten elements; ``give`` returns it early; ``reset`` returns everything; ``clear`` forgets
    all buffers, whose memory is free once nobody holds them.
    """

    def __init__(self, fill: float | None = None):
        self._fill = fill
        self._all: dict = defaultdict(list)
        self._free: dict = defaultdict(list)

    def take(self, shape: Shape, dtype) -> np.ndarray:
        key = (shape, dtype)
        free = self._free[key]
        if free:
            array = free.pop()
        else:
            array = np.empty(shape, dtype)
            self._all[key].append(array)
        if self._fill is not None:
            array.fill(self._fill)
        return array

    def give(self, array: np.ndarray) -> None:
        self._free[array.shape, array.dtype].append(array)

    def reset(self) -> None:
        self._free = defaultdict(list, {key: list(arrays) for key, arrays in self._all.items()})

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for arrays in self._all.values() for array in arrays)

    def clear(self) -> None:
        self._all.clear()
        self._free.clear()


# A watch that norms are enough for has a method ``measured(layer, tape, dy, dx, measured)``, too.
Watch = Callable[["Layer", Arrays, np.ndarray, np.ndarray, Arrays], None]


class Measured(NamedTuple):
    """What a pullback shows of an operation, as log2 norms in the units of its block's exponents.

    Members are arrays, or () for what there is not: a recorded pass hands on nests of arrays.
    """

    norms: np.ndarray  # (seeds, 2 + gradients): of dy, dx and every gradient
    examples: Any  # (seeds, gradients): √Σ‖g_n‖² over the examples' own gradients
    of_dx: Any  # (seeds,) or (seeds, parts): the terms that dx is a sum of
    of_gradients: Any  # (seeds, gradients): likewise


class Layer:
    """A differentiable map y = f(x; parameters) of one network, run over an ensemble."""

    name: str = "layer"
    couples_examples = False  # does one example's output depend on another's input?
    homogeneous = False  # is f(2^k x; W, 2^k b) = 2^k f(x; W, b) for every integer k?
    trainable = False  # does it have parameters with gradients?
    recorded = True  # is all that it does done by kernels, so that equal layers can be replayed?
    kinked = False  # does its slope jump, so that it hangs on the digits of its input?
    saturates = False  # can its slope fall below any float?
    along_time = False  # does it hand on a power of two for each step of a sequence?
    keeps_x = keeps_y = True  # may its tape hold its input, its output?
    readings: tuple[str, ...] = ()  # columns of the table that it fills beside norms
    children: tuple["Layer", ...] = ()  # the layers that a composite is made of, in forward order

    def declare(self, shape: Shape) -> Declaration:
        """Shapes for the input shape ``(batch, ...)``; raises ShapeError where they cannot fit."""
        raise NotImplementedError

    def forward(self, x: np.ndarray, parameters, workspace: Workspace) -> tuple[np.ndarray, Any]:
        """Output ``(seeds, *declare(...).output)`` and the tape that the pullback reads."""
        raise NotImplementedError

    def pullback(
        self, dy: np.ndarray, tape, workspace: Workspace, watch: Watch | None = None
    ) -> tuple[np.ndarray, Any]:
        """The adjoint of the Jacobian at the tape's point, applied to ``dy``.

        Returns the cotangent of the input and of every parameter. With ``watch``, each primitive
        reports ``watch(layer, tape, dy, dx, gradients)`` and its gradients are recycled at once, or
        never made where the watch takes norms instead; a residual block or a fork reports after its
        branches, without gradients.
        """
        raise NotImplementedError

    @property
    def has_rows(self) -> bool:
        """Does it have rows of its own in the table?"""
        return not self.children and (self.trainable or bool(self.readings))

    def forward_scaled(
        self, scaled: Scaled, parameters, workspace: Workspace, comfort: float | None = None
    ) -> tuple[Scaled, Any, np.ndarray]:
        """(output, tape, log2 norms (seeds,) of the output beside the input's exponent).

        ``parameters`` are true values, biases divided by 2^exponent. Arrays whose root mean square
        left 2^±``comfort`` (by default 16; infinite where the layer is not homogeneous) are brought
        back to about 1.
        """
        x, exponent = scaled
        y, tape = self.forward(x, parameters, workspace)
        norms = log2_norm(y)
        return (y, renormalise(y, norms, exponent, comfort)), tape, norms

    def pullback_scaled(
        self, scaled: Scaled, tape, workspace: Workspace, watch: Watch | None = None
    ) -> tuple[Scaled, Any, np.ndarray]:
        """(cotangent of the input, gradients, log2 norms (seeds,) of it beside dy's exponent).

        The true gradients are 2^(dy's exponent) times those returned, of weights and scales also
        2^(the input's exponent).
        """
        dy, exponent = unfolded(scaled)
        dx, gradients = self.pullback(dy, tape, workspace, watch)
        norms = log2_norm(dx)
        return (dx, renormalise(dx, norms, exponent)), gradients, norms


class Primitive(Layer):
    """A layer given by two kernels.

    ``forward_kernel`` reads x and the parameters and writes y and the saved values.
    ``pullback_kernel`` reads what ``pullback_reads`` names (``x``, ``y``, parameters, saved
    values), then dy, and writes dx and the parameters' cotangents. The declaration's scratch and
    constants follow. The tape holds parameters, saved values, y where it is read and x, which need
    not be kept where an element-wise pullback reads y alone.

    ``example_norms``, where a layer has it, reads what ``example_norms_reads`` names and dy, and
    writes for each parameter log2 √Σ_n ‖g_n‖², with g_n the gradient that example n alone would
    give: its own sum over positions where a weight is shared by several.

    ``readings`` are filled by ``read``.

    ``terms`` says how large the terms are that dx and gradients are sums of, so that measurement
    knows when a sum is below their rounding.
    """

    forward_kernel: Kernel
    pullback_kernel: Kernel
    pullback_reads: tuple[str, ...] = ("x",)
    example_norms: Kernel | None = None
    example_norms_reads: tuple[str, ...] = ("x",)

    def measured(self, tape: Arrays, dy: np.ndarray, dx: np.ndarray, gradients: Arrays) -> Measured:
        """What the pullback shows of this operation, by kernels alone."""
        norms, examples = log2_norms(dy, dx, *gradients.values()), ()
        if self.example_norms is not None and not self.couples_examples:
            examples = np.empty((len(dy), len(gradients)))
            self.example_norms.run(*(tape[k] for k in self.example_norms_reads), dy, examples)
        terms = (() if of is None else of for of in self.terms(tape, dy))
        return Measured(norms, examples, *terms)

    def pull_measured(
        self, dy: np.ndarray, tape: Arrays, dx: np.ndarray, workspace: Workspace
    ) -> Measured | None:
        """Write dx and give what :meth:`measured` would of it, or None and write nothing.

        A layer may do so where it has the norms of gradients sooner than the gradients.
        """
        return None

    def terms(self, tape: Arrays, dy: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
        """log2 root sums of squares of the terms of dx and of each gradient, by kernels alone.

        Of dx (seeds,), or (seeds, k) for each of its parts dx[:, :, k]; None where it is as large
        as its terms, give or take. Of gradients (seeds, gradients); None where examples are the
        terms.
        """
        return None, None

    def read(
        self, tape: Arrays, dx: np.ndarray, terms: np.ndarray | None
    ) -> tuple[np.ndarray, ...]:
        """One (seeds,) array for each of ``readings``, after the pullback, made by kernels alone.

        ``terms`` are those of dx. What the table shows as log10 is log2 here.
        """
        raise NotImplementedError

    def shapes(self, shape: Shape) -> Declaration:
        """The declaration for an input shape, computed once for each shape by ``declare``."""
        raise NotImplementedError

    def declare(self, shape: Shape) -> Declaration:
        cache = self.__dict__.setdefault("_declared", {})
        if shape not in cache:
            expect_elements(self.name, shape)
            shapes = self.shapes(shape)
            kept = [shapes.output, *shapes.saved.values()]
            kept += [parameter.shape for parameter in shapes.parameters.values()]
            cache[shape] = replace(shapes, elements=sum(map(math.prod, kept)))
        return cache[shape]

    def forward(self, x, parameters, workspace):
        declaration = self.declare(x.shape[1:])
        seeds = x.shape[:1]
        if parameters.keys() != declaration.parameters.keys():
            raise ShapeError(
                f"{self.name}: parameters must be {list(declaration.parameters)}; "
                f"got {list(parameters)}"
            )
        for name, parameter in declaration.parameters.items():
            expect_shape(self.name, name, parameters[name].shape, seeds + parameter.shape)
        y = workspace.take(seeds + declaration.output, x.dtype)
        saved = {k: workspace.take(seeds + s, x.dtype) for k, s in declaration.saved.items()}
        values = [parameters[name] for name in declaration.parameters]
        scratch = [workspace.take(seeds + s, x.dtype) for s in declaration.scratch.values()]
        writes = (y, *saved.values(), *scratch)
        self.forward_kernel.run(x, *values, *writes, *declaration.constants)
        for array in scratch:
            workspace.give(array)
        own = {"x": x} if self.keeps_x else {}
        if self.keeps_y:
            own["y"] = y
        return y, {**own, **parameters, **saved}

    @property
    def keeps_x(self) -> bool:
        return self.pullback_reads != ("y",)

    @property
    def keeps_y(self) -> bool:
        return "y" in self.pullback_reads

    def pullback(self, dy, tape, workspace, watch=None):
        x = tape["x" if self.keeps_x else "y"]
        declaration = self.declare(x.shape[1:])
        expect_shape(self.name, "dy", dy.shape, x.shape[:1] + declaration.output)
        dx = workspace.take(x.shape, x.dtype)
        if hasattr(watch, "measured"):
            measured = self.pull_measured(dy, tape, dx, workspace)
            if measured is not None:
                watch.measured(self, tape, dy, dx, measured)
                return dx, {}
        gradients = {
            name: workspace.take(x.shape[:1] + parameter.shape, x.dtype)
            for name, parameter in declaration.parameters.items()
            if parameter.role != "target"
        }
        reads = [tape[name] for name in self.pullback_reads]
        scratch = [workspace.take(x.shape[:1] + s, x.dtype) for s in declaration.scratch.values()]
        writes = (dx, *gradients.values(), *scratch)
        self.pullback_kernel.run(*reads, dy, *writes, *declaration.constants)
        for array in scratch:
            workspace.give(array)
        if watch is not None:
            watch(self, tape, dy, dx, gradients)
            for gradient in gradients.values():
                workspace.give(gradient)
        return dx, gradients


class Chain(Layer):
    """Layers one after another: a network is a chain, and a chain is a layer."""

    def __init__(self, layers, name: str = "chain"):
        self.layers = self.children = tuple(layers)
        self.name = name
        self.couples_examples = any(layer.couples_examples for layer in self.layers)
        self.homogeneous = all(layer.homogeneous for layer in self.layers)
        self.along_time = any(layer.along_time for layer in self.layers)
        self.recorded = all(layer.recorded for layer in self.layers)
        self.keeps_x = all(layer.keeps_x for layer in self.layers[:1])
        self.keeps_y = all(layer.keeps_y for layer in self.layers[-1:])
        self._declared: dict[Shape, Declaration] = {}

    def rebuilt(self, children) -> "Chain":
        """A chain of other layers under the same name."""
        return Chain(children, self.name)

    def passed(self, dy, through):
        """``dy`` behind the whole chain, ``through(layer, dy)`` being it behind one layer.

        It may be anything that stands for a cotangent: its error, say.
        """
        for layer in reversed(self.layers):
            dy = through(layer, dy)
        return dy

    def declare(self, shape):
        if shape not in self._declared:
            at, parameters, elements, kept = shape, [], 0, True
            for index, layer in enumerate(self.layers, 1):
                if not (kept or layer.keeps_x):  # what neither neighbour keeps is released
                    elements -= math.prod(at)
                kept = layer.keeps_y
                try:
                    declaration = layer.declare(at)
                except ShapeError as error:
                    raise ShapeError(f"{self.name}, layer {index}: {error}") from None
                at = declaration.output
                parameters.append(declaration.parameters)
                elements += declaration.elements
            self._declared[shape] = Declaration(at, tuple(parameters), elements=elements)
        return self._declared[shape]

    def forward(self, x, parameters, workspace):
        self.declare(x.shape[1:])
        tape, passed = [], False  # was x made here, and by a layer that does not keep it?
        for layer, own in zip(self.layers, parameters, strict=True):
            y, entry = layer.forward(x, own, workspace)
            if passed and not held(x, (y, entry)):
                workspace.give(x)
            x, passed = y, not held(y, entry)
            tape.append(entry)
        return x, tape

    def pullback(self, dy, tape, workspace, watch=None):
        gradients = []
        received = dy
        for layer, entry in zip(reversed(self.layers), reversed(tape), strict=True):
            dx, own = layer.pullback(dy, entry, workspace, watch)
            if dy is not received and dy is not dx:
                workspace.give(dy)
            dy = dx
            gradients.append(own)
        return dy, tuple(reversed(gradients))

    def forward_scaled(self, scaled, parameters, workspace, comfort=None):
        if not self.along_time:
            return super().forward_scaled(scaled, parameters, workspace, comfort)
        tape, start = [], scaled[1]
        for layer, own in zip(self.layers, parameters, strict=True):
            before = scaled[1]
            if layer.along_time:
                scaled, entry, norms = layer.forward_scaled(scaled, own, workspace, comfort)
            else:
                x, before = unfolded(scaled, layer.homogeneous)
                y, entry = layer.forward(x, own, workspace)
                scaled, norms = (y, before), log2_norm(y)
            norms = norms + (before - start)
            tape.append(entry)
        return scaled, tape, norms

    def pullback_scaled(self, scaled, tape, workspace, watch=None):
        if not self.along_time:
            return super().pullback_scaled(scaled, tape, workspace, watch)
        gradients, start = [], scaled[1]
        for layer, entry in zip(reversed(self.layers), reversed(tape), strict=True):
            before = scaled[1]
            if layer.along_time:
                scaled, own, norms = layer.pullback_scaled(scaled, entry, workspace, watch)
            else:
                dy, _ = unfolded(scaled)
                dx, own = layer.pullback(dy, entry, workspace, watch)
                scaled, norms = (dx, before), log2_norm(dx)
            norms = norms + (before - start)
            gradients.append(own)
        return scaled, tuple(reversed(gradients)), norms


def unfolded(scaled: Scaled, relative: bool = True) -> Scaled:
    """(x, exponent) of what may have an exponent for each step.

    ``relative`` to the one exponent, or as plain numbers with exponent 0; infinite or 0 beyond the
    float range.
    """
    x, exponent, *along = scaled
    if not along:
        return scaled
    (along,) = along
    exponent = exponent if relative else np.zeros_like(exponent)
    with np.errstate(over="ignore", under="ignore"):
        power = (along - exponent[:, None])[:, None, :, None].astype(np.int32)
        return np.ldexp(x, power), exponent


def expect_elements(layer: str, shape: Shape) -> None:
    """Raise ShapeError for an input without elements, which kernels do not expect."""
    if min(shape, default=1) < 1:
        raise ShapeError(f"{layer}: every axis of the input must be at least 1; got shape {shape}")


def expect_shape(layer: str, what: str, received: Shape, expected: Shape) -> None:
    """Raise ShapeError naming layer, axis, expected and received length."""
    if received == expected:
        return
    if len(received) != len(expected):
        raise ShapeError(
            f"{layer}: {what} must have {len(expected)} axes {expected}; "
            f"got {len(received)} axes {received}"
        )
    axis = next(k for k, (a, b) in enumerate(zip(received, expected, strict=True)) if a != b)
    raise ShapeError(
        f"{layer}: axis {axis} of {what} must be {expected[axis]}; got {received[axis]} "
        f"(shape {received}, expected {expected})"
    )


def primitives(layer: Layer) -> Iterator[Primitive]:
    """The primitives that a layer is made of, in forward order."""
    if not layer.children:
        yield layer
    for child in layer.children:
        yield from primitives(child)


def leaves(tree, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, leaf) of nested parameters, in order: ``("1.W", array)`` and so on."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        here = f"{path}.{key}" if path else str(key)
        if isinstance(value, (dict, tuple, list)):
            yield from leaves(value, here)
        else:
            yield here, value


def held(array: np.ndarray, tree: Nest) -> bool:
    """Does a nest hold the array, or a view of it?"""
    return any(np.may_share_memory(leaf, array) for _, leaf in leaves(tree))


def map_leaves(function, tree):
    """The same nest with ``function`` applied to every leaf."""
    if isinstance(tree, dict):
        return {key: map_leaves(function, value) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        return tuple(map_leaves(function, value) for value in tree)
    return function(tree)
