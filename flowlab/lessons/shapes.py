"""What shapes say: the worked example Y = XW + b, its gradients derived, a network's declarations.

X is (n, d1), W (d1, d2), b (d2,), Y and its cotangent dY (n, d2).
"""

import math
from collections.abc import Iterator
from functools import reduce
from itertools import groupby, product

import numpy as np
import pandas as pd

from flowlab.errors import InputError
from flowlab.kernel import ShapeError
from flowlab.layer import Layer, Shape, Workspace, leaves, primitives
from flowlab.layers import Linear, Residual
from flowlab.networks import Network

AXES = {"n": 3, "d1": 2, "d2": 2}
OPERANDS = {"X": ("n", "d1"), "W": ("d1", "d2"), "b": ("d2",), "dY": ("n", "d2")}
GRADIENTS = {"dX": "X", "dW": "W", "db": "b"}
LARGEST = 64  # the worked example differentiates entry by entry
TOLERANCE = 1e-10  # float64 rounding, relative to norms
_STEP = 2.0**-10


def dimensions(**given: int | Shape) -> dict[str, int]:
    """n, d1 and d2 from any of them and from shapes of X, W, b, dY; what is left out is 3, 2, 2.

    ``dimensions(n=5, W=(4, 2))``. Raises InputError for lengths below 1, ShapeError for a wrong
    number of axes and for shapes that do not fit together.
    """
    bound: dict[str, tuple[int, str]] = {}
    for name, value in given.items():
        axes = OPERANDS.get(name, (name,))
        lengths = value if isinstance(value, tuple) else (value,)
        if len(lengths) != len(axes):
            raise ShapeError(f"{name} must have {len(axes)} axes ({', '.join(axes)}); got {value}")
        for axis, length in zip(axes, lengths, strict=True):
            what = name if axis == name else f"axis {axis} of {name}"
            if length < 1:
                raise InputError(f"{what} must be at least 1; got {length}")
            expected, origin = bound.setdefault(axis, (length, name))
            if length != expected:
                source = "as given" if origin == axis else f"as in {origin}"
                raise ShapeError(f"{what} must be {expected}, {source}; got {length}")
    return {axis: bound.get(axis, (default,))[0] for axis, default in AXES.items()}


def worked_example(n: int = 3, d1: int = 2, d2: int = 2) -> dict[str, np.ndarray]:
    """X, W, b and dY of ones, and Y, dX, dW, db as the linear layer's kernels give them.

    Raises InputError for a dimension beyond 64.
    """
    for axis, length in (("n", n), ("d1", d1), ("d2", d2)):
        if length > LARGEST:
            raise InputError(f"{axis} must be at most {LARGEST} to be printed; got {length}")
    X = np.resize([1.0, 2.0, -1.0, 0.0, 3.0, 2.0, -2.0], (n, d1))
    W = np.resize([1.0, -1.0, 0.5, 2.0, -0.5], (d1, d2))
    b = np.resize([0.5, -1.0, 0.0, 1.0], (d2,))
    dY = np.ones((n, d2))
    layer, workspace = Linear(d2), Workspace()
    Y, tape = layer.forward(X[None], {"W": W[None], "b": b[None]}, workspace)
    dX, gradients = layer.pullback(dY[None], tape, workspace)
    dW, db = gradients["W"][0], gradients["b"][0]
    return {"X": X, "W": W, "b": b, "dY": dY, "Y": Y[0], "dX": dX[0], "dW": dW, "db": db}


def differences(example: dict[str, np.ndarray]) -> dict[str, float]:
    """How far a worked example is from independent oracles, relative to the largest entry.

    Y is compared with einsum; dX, dW and db with central differences of L = Σ dY ∘ Y, which are
    exact up to rounding because L is linear in each of X, W and b.
    """
    expected = {"Y": _forward(example)}
    for gradient, name in GRADIENTS.items():
        at = example[name]
        expected[gradient] = np.empty_like(at)
        for index in np.ndindex(at.shape):
            ends = []
            for step in (_STEP, -_STEP):
                moved = at.copy()
                moved[index] += step
                ends.append(np.sum(example["dY"] * _forward(example | {name: moved})))
            expected[gradient][index] = (ends[0] - ends[1]) / (2 * _STEP)
    return {
        name: float(np.abs(example[name] - value).max() / (np.abs(value).max() or 1.0))
        for name, value in expected.items()
    }


def _forward(example: dict[str, np.ndarray]) -> np.ndarray:
    return np.einsum("ni,io->no", example["X"], example["W"]) + example["b"]


def derive(n: int, d1: int, d2: int, seed: int = 0) -> pd.DataFrame:
    """Every product of the right shape for each gradient, and the one that is the adjoint.

    The products have one or two factors out of X, W, dY and their transposes; for db the first is
    a row of ones, which sums over an axis. A gradient is linear in dY, so only products that hold
    dY once can be one: ``linear``. ``residual`` is |⟨dY, Jv⟩ − ⟨G, v⟩| / ‖dY‖‖Jv‖ for a product G,
    a random direction v and the Jacobian J of Y: at rounding (``adjoint``) only where G = JᵀdY.
    Columns gradient, formula, linear, residual, adjoint.
    """
    random = np.random.default_rng(seed)
    lengths = {"n": n, "d1": d1, "d2": d2}
    shapes = {name: tuple(lengths[axis] for axis in axes) for name, axes in OPERANDS.items()}
    operands = {name: shapes[name] for name in ("X", "W", "dY")}
    X, W, dY = map(random.standard_normal, operands.values())
    jacobians = {
        "dX": lambda v: v @ W,
        "dW": lambda v: X @ v,
        "db": lambda v: np.broadcast_to(v, dY.shape),
    }
    rows = []
    for gradient, name in GRADIENTS.items():
        v = random.standard_normal(shapes[name])
        Jv = jacobians[gradient](v)
        size = np.linalg.norm(dY) * np.linalg.norm(Jv)
        for formula, shape in _products(operands, sums=name == "b"):
            if shape != shapes[name]:
                continue
            G = evaluate(formula, X=X, W=W, dY=dY)
            residual = abs(np.sum(dY * Jv) - np.sum(G * v)) / size
            once = formula.count("dY") == 1
            rows.append((gradient, formula, once, residual, once and residual < TOLERANCE))
    return pd.DataFrame(rows, columns=["gradient", "formula", "linear", "residual", "adjoint"])


def _products(shapes: dict[str, Shape], sums: bool) -> Iterator[tuple[str, Shape]]:
    """Formula and shape of every product, or of every sum over an axis."""
    single = {}
    for name, shape in shapes.items():
        single |= {name: shape, f"{name}ᵀ": shape[::-1]}
    if sums:
        yield from ((f"1ᵀ {name}", shape[1:]) for name, shape in single.items())
        return
    yield from single.items()
    for (left, a), (right, b) in product(single.items(), repeat=2):
        if a[1] == b[0]:
            yield f"{left} {right}", (a[0], b[1])


def evaluate(formula: str, **operands: np.ndarray) -> np.ndarray:
    """The product that a formula of :func:`derive` names: ``evaluate("Xᵀ dY", X=X, dY=dY)``."""
    if formula.startswith("1ᵀ "):
        return evaluate(formula.removeprefix("1ᵀ "), **operands).sum(axis=0)
    names = formula.split()
    factors = [operands[name.removesuffix("ᵀ")] for name in names]
    turned = [f.T if name.endswith("ᵀ") else f for name, f in zip(names, factors, strict=True)]
    return reduce(np.matmul, turned)


def coincidences(n: int, d1: int, d2: int) -> list[str]:
    """Which of the three dimensions are equal, such as ``["n = d1"]``."""
    lengths = {"n": n, "d1": d1, "d2": d2}
    pairs = (("n", "d1"), ("d1", "d2"), ("n", "d2"))
    return [f"{a} = {b}" for a, b in pairs if lengths[a] == lengths[b]]


def declared(network: Network, shape: Shape) -> pd.DataFrame:
    """What every layer of a network declares for the input ``shape``; nothing is allocated.

    One row for each stretch of equal consecutive layers: ``first`` and ``last`` layer, its
    operations, input ``x`` and ``output`` shape, ``weights`` (shapes of what has a gradient, by
    path), and for one such layer, in elements: ``parameters``, ``kept`` (its output and whatever
    else the pullback reads) and ``cotangents`` (of input, output and parameters together).
    Cotangents have the shapes of what they belong to.
    """
    layers = [(layer.block, layer.shape, layer.output) for layer in network.walk(shape)]
    rows, first = [], 1
    for key, group in groupby(layers, key=lambda layer: (_operations(layer[0]), *layer[1:])):
        operations, x, output = key
        stretch = list(group)
        block, last = stretch[0][0], first + len(stretch) - 1
        declaration = block.declare(x)
        parameters = dict(leaves(declaration.parameters))
        weights = {path: p.shape for path, p in parameters.items() if p.role != "target"}
        trained = sum(map(math.prod, weights.values()))
        held = sum(math.prod(p.shape) for p in parameters.values())
        cotangents = math.prod(x) + math.prod(output) + trained
        kept = declaration.elements - held
        rows.append((first, last, operations, x, output, weights, trained, kept, cotangents))
        first = last + 1
    columns = ["first", "last", "operations", "x", "output"]
    columns += ["weights", "parameters", "kept", "cotangents"]
    return pd.DataFrame(rows, columns=columns)


def _operations(block: Layer) -> str:
    names = ", ".join(layer.name for layer in primitives(block))
    return f"x + ({names})" if isinstance(block, Residual) else names


def memory(table: pd.DataFrame) -> dict[str, int]:
    """Elements that one network needs at once, from its :func:`declared` layers.

    ``activations`` are the input and all that the layers keep; ``cotangents`` those of the one
    layer that needs most, because each layer's are recycled as soon as they are measured.
    """
    count = table["last"] - table["first"] + 1
    return {
        "parameters": int((count * table["parameters"]).sum()),
        "activations": math.prod(table["x"].iat[0]) + int((count * table["kept"]).sum()),
        "cotangents": int(table["cotangents"].max()),
    }
