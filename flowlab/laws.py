"""The laws that every layer obeys, callable on a layer of your own.

``flowlab.laws.check(Linear(5), (4, 3))`` raises :class:`LawBroken`, which names the law and the
layer, or returns the names of the laws that hold. A law is a function that yields complaints;
``LAWS`` holds them in the order in which they are tried, so that what a later law takes for granted
(that a pass can be repeated, say) has been checked by an earlier one.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from flowlab.errors import InputError
from flowlab.kernel import ShapeError
from flowlab.layer import Layer, Primitive, Workspace, leaves, map_leaves
from flowlab.measurement.scan import record

# Relative to ‖dy‖‖Jv‖. The differences below are good to about 1e-12; a relative error of 1e-6 in
# a single entry of a small gradient is still a few 1e-8 of the product of norms.
ADJOINT_TOLERANCE = 1e-9
SINGLE_TOLERANCE = 2.0**-14  # float32 against float64, relative to the norm: 2^9 roundings
COTANGENT_SCALES = (1.0, 1e-15, 1e-200)
POWERS_OF_TWO = (-20, 7)
# Of each array by itself, in float32: squares leave its range from 2^64 on, sums from about 2^120.
SINGLE_POWERS = (-112, -64, 64, 112)
# Central differences of eighth order: Fornberg 1988, "Generation of finite difference formulas on
# arbitrarily spaced grids", table 1.
_STENCIL = {1: 4 / 5, 2: -1 / 5, 3: 4 / 105, 4: -1 / 280}
_STEPS = 2.0 ** -np.arange(5, 21, 2)


class LawBroken(AssertionError):
    """A layer broke a law: ``law`` and ``layer`` are their names."""

    def __init__(self, law: str, layer: str, complaint: str):
        super().__init__(f"{layer} breaks the law '{law}': {complaint}")
        self.law, self.layer = law, layer


@dataclass(frozen=True)
class Point:
    """Where a layer is tried: input, parameters by path, and the cotangent of the output."""

    x: np.ndarray
    parameters: dict[str, np.ndarray]
    dy: np.ndarray

    def map(self, function) -> "Point":
        """The point with ``function`` applied to every array."""
        parameters = {path: function(array) for path, array in self.parameters.items()}
        return Point(function(self.x), parameters, function(self.dy))

    def astype(self, dtype) -> "Point":
        """The point in another float type; integer data stay integers."""
        return self.map(lambda a: a.astype(dtype) if a.dtype.kind == "f" else a)

    def moved(self, path: str | None, function) -> "Point":
        """The point with one array (the input, where ``path`` is None) replaced."""
        if path is None:
            return replace(self, x=function(self.x))
        return replace(self, parameters={**self.parameters, path: function(self.parameters[path])})


@dataclass(frozen=True)
class Pass:
    """What one forward pass and one pullback gave."""

    y: np.ndarray
    dx: np.ndarray
    gradients: dict[str, np.ndarray]

    def named(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every array with a name for messages."""
        yield "y", self.y
        yield "dx", self.dx
        for path, gradient in self.gradients.items():
            yield f"the cotangent of {path}", gradient


class Subject:
    """A layer with points to try it at, the same numbers in every dtype."""

    def __init__(self, layer: Layer, shape, parameters, inputs, seeds: int, seed: int, dtypes):
        self.layer, self.shape, self.seeds = layer, tuple(shape), seeds
        self.dtypes = tuple(np.dtype(dtype).type for dtype in dtypes)
        self.random = np.random.default_rng(seed)
        self.declaration = layer.declare(self.shape)
        self.declared = dict(leaves(self.declaration.parameters))
        self.differentiable = [p for p, d in self.declared.items() if d.role != "target"]
        given = dict(parameters or {})
        if wrong := given.keys() - self.declared.keys():
            raise InputError(f"parameters must be among {list(self.declared)}; got {min(wrong)}")
        x = self.normal(self.shape) if inputs is None else np.asarray(inputs, float)
        values = {}
        for path, declared in self.declared.items():
            if path in given:
                values[path] = np.ascontiguousarray(given[path])
            elif declared.role == "target":
                raise InputError(f"parameters must hold the target {path}; got {list(given)}")
            else:
                values[path] = self.normal(declared.shape) / declared.fan_in**0.5
        for name, array, expected in [("inputs", x, self.shape)] + [
            (path, values[path], declared.shape) for path, declared in self.declared.items()
        ]:
            if array.shape != (seeds, *expected):
                raise InputError(f"{name} must have shape {(seeds, *expected)}; got {array.shape}")
        self._point = Point(x, values, self.normal(self.declaration.output))
        self.point = cache(self._point.astype)
        self.reference = cache(lambda dtype: self.run(self.point(dtype)))

    def normal(self, shape) -> np.ndarray:
        """Standard normals for each seed."""
        return self.random.standard_normal((self.seeds, *shape))

    def nest(self, parameters: dict[str, np.ndarray]):
        """Parameters by path, in the nest that the layer declares."""
        values = iter(parameters.values())
        return map_leaves(lambda _: next(values), self.declaration.parameters)

    def forward(self, point: Point, workspace: Workspace):
        """Output and tape at a point."""
        return self.layer.forward(point.x, self.nest(point.parameters), workspace)

    def run(self, point: Point, fill: float = np.nan) -> Pass:
        """Forward pass and pullback on copies of the point, in buffers full of ``fill``."""
        point, workspace = point.map(np.copy), Workspace(fill)
        y, tape = self.forward(point, workspace)
        y = y.copy()
        dx, gradients = self.layer.pullback(point.dy, tape, workspace)
        return Pass(y, dx, dict(leaves(gradients)))

    def derivative(self, path: str | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A random direction v of one array, J v by central differences, and its rounding error.

        All steps of the stencil are one ensemble. Each element takes the step at which it agrees
        best with the next: a large step where the map is smooth, a small one beside a kink.
        """
        point = self.point(np.float64)
        at = point.x if path is None else point.parameters[path]
        size = np.sqrt(np.mean(at**2))
        v = self.random.standard_normal(at.shape) * (size if size > 0 else 1.0)
        offsets = np.array([[m, -m] for m in _STENCIL], float).ravel()
        shifts = (_STEPS[:, None] * offsets).ravel()
        copies = point.map(lambda a: np.concatenate([a] * len(shifts)))
        moved = copies.moved(path, lambda _: np.concatenate([at + t * v for t in shifts]))
        y = self.forward(moved, Workspace())[0]
        y = y.reshape(len(_STEPS), len(_STENCIL), 2, *self.point(np.float64).dy.shape)
        steps = _STEPS.reshape(-1, *[1] * (y.ndim - 3))
        slopes = np.tensordot(list(_STENCIL.values()), y[:, :, 0] - y[:, :, 1], (0, 1)) / steps
        best = np.abs(np.diff(slopes, axis=0)).argmin(axis=0)[None]
        Jv = np.take_along_axis(slopes, best, 0)[0]
        rounding = np.finfo(float).eps * np.abs(y[0, 0, 0]) / _STEPS[best[0]]
        return v, Jv, rounding


LAWS: dict[str, Callable[[Subject], Iterator[str]]] = {}


def law(function):
    """Add a law to ``LAWS`` under its function's name."""
    LAWS[function.__name__] = function
    return function


def check(
    layer: Layer,
    shape,
    *,
    parameters: dict[str, np.ndarray] | None = None,
    inputs: np.ndarray | None = None,
    seeds: int = 3,
    seed: int = 0,
    dtypes=("float64", "float32"),
) -> list[str]:
    """Try every law on a layer for the input shape ``(batch, ...)``; return the laws' names.

    ``inputs`` (seeds, batch, ...) and every parameter that is not in ``parameters`` are drawn from
    N(0, 1), parameters divided by sqrt(fan_in). ``parameters`` maps paths (``W``, or ``2.W`` in a
    chain) to arrays (seeds, ...); parameters of role ``target`` must be there. Small shapes do:
    derivatives are taken by differences of some sixty copies of the ensemble.

    Where a law makes no sense it is silent: a loss has no batch axis, so of the independence of
    examples only dx is asked; a layer that declares ``couples_examples`` may couple them or not;
    only a layer that declares ``homogeneous`` must be so, and one that declares not to be
    ``recorded`` may work outside kernels; without float64 among ``dtypes`` the
    adjoint is not tried, and without both types they are not compared.

    Raises LawBroken for the first law broken, InputError for parameters that do not fit.
    """
    subject = Subject(layer, shape, parameters, inputs, seeds, seed, dtypes)
    for name, complaints in LAWS.items():
        for complaint in complaints(subject):
            raise LawBroken(name, layer.name, complaint)
    return list(LAWS)


@law
def shapes(subject):
    """Kernels fit the declaration, and arrays have the declared shapes, dtype and order."""
    if isinstance(subject.layer, Primitive):
        try:
            _check_kernels(subject)
        except ShapeError as error:
            yield str(error)
    expected = {"y": subject.declaration.output, "dx": subject.shape}
    for path in subject.differentiable:
        expected[f"the cotangent of {path}"] = subject.declared[path].shape
    for dtype in subject.dtypes:
        received = dict(subject.reference(dtype).named())
        if list(received) != list(expected):
            yield f"a pass must give {list(expected)}; got {list(received)}"
        for name, array in received.items():
            shape = (subject.seeds, *expected[name])
            if array.shape != shape:
                yield f"{name} must have the declared shape {shape}; got {array.shape}"
            if array.dtype != dtype:
                yield f"{name} must be {dtype.__name__} like the input; got {array.dtype}"
            if not array.flags.c_contiguous:
                yield f"{name} must be C-contiguous; got strided data"


@law
def unchanged(subject):
    """Forward leaves x and parameters as they are, pullback also y, dy and the tape."""
    for dtype in subject.dtypes:
        point = subject.point(dtype).map(np.copy)
        workspace = Workspace(np.nan)
        own = {"x": point.x, "dy": point.dy, **point.parameters}
        before = {name: array.tobytes() for name, array in own.items()}
        y, tape = subject.forward(point, workspace)
        for name, array in own.items():
            if array.tobytes() != before[name]:
                yield f"forward changed {name}"
        tape_arrays = dict(_arrays(tape, "the tape's "))
        own |= {"y": y, **tape_arrays}
        before = {name: array.tobytes() for name, array in own.items()}
        subject.layer.pullback(point.dy, tape, workspace)
        for name, array in own.items():
            if array.tobytes() != before[name]:
                yield f"pullback changed {name}"


@law
def repeatable(subject):
    """Every call gives the same bits: a new pass, and a second pullback from one tape."""
    for dtype in subject.dtypes:
        first, second = subject.reference(dtype), subject.run(subject.point(dtype))
        yield from _differences(first, second, "differs between two passes")
        point, workspace = subject.point(dtype).map(np.copy), Workspace(np.nan)
        y, tape = subject.forward(point, workspace)
        for _ in range(2):
            dx, gradients = subject.layer.pullback(point.dy, tape, Workspace(np.nan))
            third = Pass(y, dx, dict(leaves(gradients)))
            yield from _differences(first, third, "differs between two pullbacks of one tape")


@law
def written(subject):
    """Every element is written, whatever the buffers held before."""
    for dtype in subject.dtypes:
        for name, array in subject.reference(dtype).named():
            if np.isnan(array).any():
                where = tuple(int(k) for k in np.argwhere(np.isnan(array))[0])
                yield f"{name} is not written, or not a number, at {where}"
        other = subject.run(subject.point(dtype), fill=1.0)
        yield from _differences(subject.reference(dtype), other, "depends on what its buffer held")


@law
def ensemble(subject):
    """An ensemble gives the same bits as its networks one by one."""
    for dtype in subject.dtypes:
        whole = subject.reference(dtype)
        for s in range(subject.seeds):
            one = slice(s, s + 1)
            part = Pass(
                whole.y[one], whole.dx[one], {k: g[one] for k, g in whole.gradients.items()}
            )
            alone = subject.run(subject.point(dtype).map(lambda a, one=one: a[one]))
            yield from _differences(part, alone, f"of network {s} differs when it runs alone")


@law
def examples(subject):
    """An example's y and dx do not depend on another's input or cotangent, unless declared."""
    batch = subject.shape[0]
    if subject.layer.couples_examples or batch < 2:
        return
    batched = subject.declaration.output[:1] == (batch,)
    k = batch // 2
    others = np.arange(batch) != k

    def perturbed(array):
        array = array.copy()
        array[:, k] = 1 - 3 * array[:, k]
        return array

    for dtype in subject.dtypes:
        point = subject.point(dtype)
        before = subject.reference(dtype)
        after = subject.run(
            replace(point, x=perturbed(point.x), dy=perturbed(point.dy) if batched else point.dy)
        )
        pairs = {"dx": (before.dx, after.dx), "y": (before.y, after.y)}
        if not batched:
            del pairs["y"]
        for name, (a, b) in pairs.items():
            if a[:, others].tobytes() != b[:, others].tobytes():
                yield f"{name} of others changes with example {k}, and couples_examples is False"


@law
def scaling(subject):
    """pullback(2^k dy) is 2^k pullback(dy), bit for bit, for all of the type's range."""
    for dtype in subject.dtypes:
        point, base = subject.point(dtype), subject.reference(dtype)
        for k in _powers(dtype, point.dy):
            expected = Pass(
                base.y,
                np.ldexp(base.dx, k),
                {path: np.ldexp(g, k) for path, g in base.gradients.items()},
            )
            scaled = subject.run(replace(point, dy=np.ldexp(point.dy, k)))
            yield from _normal_differences(
                expected, scaled, f"does not scale exactly with 2^{k} dy"
            )


@law
def homogeneous(subject):
    """If declared, f(2^k x; W, 2^k b) is 2^k f(x; W, b) bit for bit, for all of the type's range.

    Then ∂f/∂x and ∂f/∂b stay as they are, and ∂f/∂W gains the factor 2^k.
    """
    if not subject.layer.homogeneous:
        return
    biases = [path for path in subject.differentiable if subject.declared[path].role == "bias"]
    for dtype in subject.dtypes:
        base = subject.reference(dtype)
        scaled = [
            subject.point(dtype).x,
            *(subject.point(dtype).parameters[path] for path in biases),
        ]
        for k in _powers(dtype, *scaled):
            point = subject.point(dtype)
            for path in (None, *biases):
                point = point.moved(path, lambda a, k=k: np.ldexp(a, k))
            expected = Pass(
                np.ldexp(base.y, k),
                base.dx,
                {p: g if p in biases else np.ldexp(g, k) for p, g in base.gradients.items()},
            )
            complaint = f"is not homogeneous at 2^{k} x"
            yield from _normal_differences(expected, subject.run(point), complaint)


@law
def adjoint(subject):
    """⟨dy, Jv⟩ = ⟨Jᵀdy, v⟩ for the input and each parameter, relative to ‖dy‖‖Jv‖ (float64).

    Cotangents are tried at 1, 1e-15 and 1e-200, and the scale divided out of what comes back.
    """
    if np.float64 not in subject.dtypes:
        return
    point = subject.point(np.float64)
    scaled = {s: subject.run(replace(point, dy=s * point.dy)) for s in COTANGENT_SCALES}
    for path in (None, *subject.differentiable):
        v, Jv, rounding = subject.derivative(path)
        left = _inner(point.dy, Jv)
        size = _norm(point.dy) * _norm(Jv)
        tolerance = ADJOINT_TOLERANCE * size + 4 * _norm(point.dy) * _norm(rounding)
        for scale, result in scaled.items():
            gradient = result.dx if path is None else result.gradients[path]
            right = _inner(gradient / scale, v)
            if not np.all(np.abs(left - right) <= tolerance):
                s = int(np.argmax(np.abs(left - right) - tolerance))
                yield (
                    f"of {path or 'the input'}: <dy, Jv> = {left[s]:.12g} but <J'dy, v> = "
                    f"{right[s]:.12g}, at |dy||Jv| = {size[s]:.3g} and cotangents times {scale:g}"
                )


@law
def precision(subject):
    """float32 agrees with float64 to float32's rounding, in norm."""
    if not {np.float32, np.float64} <= set(subject.dtypes):
        return
    single = subject.reference(np.float32)
    double = subject.run(subject.point(np.float32).astype(np.float64))
    for (name, a), (_, b) in zip(single.named(), double.named(), strict=True):
        error, size = _norm(a - b), _norm(b)
        if not np.all(error <= SINGLE_TOLERANCE * size):
            yield f"{name} in float32 is {error.max():.3g} off, of a norm of {size.min():.3g}"


@law
def scales(subject):
    """float32 agrees with float64 wherever in its range an input, parameter or cotangent lies.

    Each array by itself is multiplied by the ``SINGLE_POWERS`` of two. Numbers that float32 cannot
    hold are left out, and inputs that the layer refuses. A composite is not tried: numbers within
    it may leave the range, and its parts are layers too.
    """
    if not {np.float32, np.float64} <= set(subject.dtypes) or subject.layer.children:
        return
    base = subject.point(np.float32)
    for k in SINGLE_POWERS:

        def scaled(a, k=k):
            return np.ldexp(a, min(k, SINGLE_POWERS[-1] - max(_exponent(a), 3) + 3))

        points = {"dy": replace(base, dy=scaled(base.dy))}
        for path in (None, *subject.differentiable):
            points[path or "x"] = base.moved(path, scaled)
        for what, point in points.items():
            try:
                single = subject.run(point)
            except InputError:
                continue
            double = subject.run(point.astype(np.float64))
            for (name, a), (_, b) in zip(single.named(), double.named(), strict=True):
                if error := _beyond(a, b, SINGLE_TOLERANCE):
                    yield f"{name} in float32 is {error:.3g} of its size off at 2^{k} {what}"


@law
def watched(subject):
    """A watch is shown every gradient, with the bits that an unwatched pullback returns."""
    for dtype in subject.dtypes:
        point, workspace = subject.point(dtype).map(np.copy), Workspace(np.nan)
        _, tape = subject.forward(point, workspace)
        shown = []

        def watch(layer, tape, dy, dx, gradients, shown=shown):
            shown.extend(gradient.tobytes() for gradient in gradients.values())

        dx, _ = subject.layer.pullback(point.dy, tape, workspace, watch)
        base = subject.reference(dtype)
        if dx.tobytes() != base.dx.tobytes():
            yield "dx differs under a watch"
        if sorted(shown) != sorted(gradient.tobytes() for gradient in base.gradients.values()):
            yield "the gradients shown to a watch are not those returned without one"


@law
def replayed(subject):
    """The recorded kernel calls of a pass, replayed, give what the layer gave when it was called.

    Whatever a layer does outside kernels is missing from the recording. A deep net is right all the
    same, as its layers are then passed one by one, but many times slower. A layer that declares
    ``recorded = False`` is not asked.
    """
    if not subject.layer.recorded:
        return
    for dtype in subject.dtypes:
        point = subject.point(dtype).map(np.copy)
        workspace = Workspace(np.nan)

        def forward(carry, parameters, workspace=workspace):
            y, tape = subject.layer.forward(carry[0], parameters, workspace)
            return (y,), tape

        def pullback(carry, tape, workspace=workspace):
            dx, gradients = subject.layer.pullback(carry[0], tape, workspace)
            return (dx,), gradients

        _, tape = subject.forward(point, workspace)
        alien = [path for path, leaf in leaves(tape) if not isinstance(leaf, np.ndarray)]
        if alien:
            yield f"a tape must hold arrays alone; got another value for {alien[0]}"
            return
        calls = {
            "forward": (forward, point.x, subject.nest(point.parameters)),
            "pullback": (pullback, point.dy, tape),
        }
        for name, (step, x, given) in calls.items():
            (called, ys), program = record(step, (x,), given)
            (replayed,), ys_replayed = program.replay((x,), given)
            pairs = [(called[0], replayed)]
            of = zip(leaves(ys), leaves(ys_replayed), strict=True)
            pairs += [(a, b) for (_, a), (_, b) in of]
            if any(a.tobytes() != b.tobytes() for a, b in pairs):
                yield f"{name} does more than its kernels do: replayed, it gives other bits"


def _check_kernels(subject: Subject) -> None:
    """Refuse a primitive's declaration that its kernels' signatures do not fit."""
    layer, declaration = subject.layer, subject.declaration
    parameters = {name: p.shape for name, p in declaration.parameters.items()}
    known = {"x": subject.shape, "y": declaration.output, **parameters, **declaration.saved}
    known |= declaration.scratch
    forward = ["x", *parameters, "y", *declaration.saved, *declaration.scratch]
    pullback = [*layer.pullback_reads, "y", "x", *subject.differentiable, *declaration.scratch]
    for kernel, names in ((layer.forward_kernel, forward), (layer.pullback_kernel, pullback)):
        kernel.check([np.empty((subject.seeds, *known[name])) for name in names])


def _powers(dtype, *arrays) -> tuple[int, ...]:
    """Powers of two over the type's range, 2^15 short of its ends for arrays of about 1."""
    most = np.finfo(dtype).maxexp - 16
    return (*POWERS_OF_TWO, -most, most - max(3, *map(_exponent, arrays)) + 3)


def _exponent(a: np.ndarray) -> int:
    """The binary exponent of the largest element."""
    return int(np.frexp(np.abs(a).max())[1])


def _beyond(received: np.ndarray, expected: np.ndarray, tolerance: float) -> float:
    """The largest error relative to the largest element, if it is beyond the tolerance; else 0.

    Elements that the received type cannot hold are left out, and what it rounds to zero.
    """
    held = np.finfo(received.dtype)
    inside = np.abs(expected) <= float(held.max) / 4
    if not inside.any():
        return 0.0
    size = float(np.abs(expected).max())
    with np.errstate(invalid="ignore"):
        error = np.abs(received[inside].astype(np.float64) - expected[inside])
    worst = float(error.max()) if not np.isnan(error).any() else np.inf
    lost = 2.0**10 * float(held.smallest_subnormal)
    return 0.0 if worst <= tolerance * size + lost else worst / max(size, lost)


def _differences(expected: Pass, received: Pass, complaint: str) -> Iterator[str]:
    for (name, a), (_, b) in zip(expected.named(), received.named(), strict=True):
        if a.tobytes() != b.tobytes():
            yield f"{name} {complaint}"


def _normal_differences(expected: Pass, received: Pass, complaint: str) -> Iterator[str]:
    """As above, but rounding of subnormal numbers and overflow are no difference."""
    for (name, a), (_, b) in zip(expected.named(), received.named(), strict=True):
        if a.tobytes() != b.tobytes() and _beyond(b, a.astype(np.float64), 0.0):
            yield f"{name} {complaint}"


def _arrays(tree, prefix: str) -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(tree, np.ndarray):
        yield prefix, tree
    elif isinstance(tree, (dict, tuple, list)):
        yield from ((prefix + path, a) for path, a in leaves(tree) if isinstance(a, np.ndarray))


def _inner(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.sum((a * b).reshape(len(a), -1), axis=1)


def _norm(a: np.ndarray) -> np.ndarray:
    return np.sqrt(_inner(a.astype(np.float64), a.astype(np.float64)))
