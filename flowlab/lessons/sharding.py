"""Linear layers split over devices: where they must communicate, how much, and why there.

Giving x to P devices is the linear map x -> (x, ..., x), whose transpose is the sum over devices:
an all-reduce. A layer split by W's columns begins with such a copy, so its all-reduce comes on the
way back; split by W's rows it ends with the sum, and its pullback begins with the copy
(Shoeybi et al. 2019, "Megatron-LM", section 3). Devices are entries of lists in one process.
"""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd

from flowlab.errors import InputError, unknown
from flowlab.layer import Layer, Shape, Workspace
from flowlab.layers import Activation, Linear
from flowlab.networks import Network

LAYOUTS = ("data", "column", "row")
LARGEST = 1024  # the comparison multiplies matrices of this size
Parts = list[np.ndarray]


class AllReduce:
    """The sum over devices, given to each; ``elements`` counts what was summed.

    An all-reduce of E elements moves at least 2E(P − 1)/P of them from each of P devices
    (Patarasuk & Yuan 2009). With ``left_out`` every device keeps its own part instead.
    """

    def __init__(self, left_out: bool = False):
        self.left_out, self.elements = left_out, 0

    def __call__(self, parts: Parts) -> Parts:
        if self.left_out:
            return parts
        self.elements += parts[0].size
        return [np.sum(parts, axis=0)] * len(parts)


class Link(NamedTuple):
    """The all-reduce of each direction."""

    forward: AllReduce
    backward: AllReduce


class _Applied:
    """One forward pass of a layer; ``pullback`` is its adjoint."""

    def __init__(self, layer: Layer, x, **parameters):
        whole = {name: np.ascontiguousarray(array)[None] for name, array in parameters.items()}
        y, self._tape = layer.forward(np.ascontiguousarray(x)[None], whole, Workspace())
        self.layer, self.y = layer, y[0]

    def pullback(self, dy):
        """dX and the parameters' cotangents."""
        dy = np.ascontiguousarray(dy)[None]
        dx, gradients = self.layer.pullback(dy, self._tape, Workspace())
        return dx[0], *(gradient[0] for gradient in gradients.values())


def _linear(x, W, b) -> _Applied:
    return _Applied(Linear(W.shape[1]), x, W=W, b=b)


def whole(x, W, b, dy) -> dict[str, np.ndarray]:
    """Y, dX, dW and db of the unsplit layer."""
    one = _linear(x, W, b)
    return dict(zip(("Y", "dX", "dW", "db"), (one.y, *one.pullback(dy)), strict=True))


# Splits take x (n, d1), W (d1, d2), b (d2,), dy (n, d2), the number of devices and their link. They
# return, for each of Y, dX, dW and db, every device's copy, or the one array its parts make up.


def by_data(x, W, b, dy, count, link, reduction="sum", weighted=True):
    """Examples split: every device holds W and b; dW and db are all-reduced.

    ``dy`` is the cotangent of a sum over examples. Under ``mean`` each device divides by its own
    n_p examples, so its gradients enter the sum with the weight n_p/n; not ``weighted``, with 1/P.
    """
    ys, dxs, dWs, dbs = [], [], [], []
    for x_p, dy_p in zip(_split(x, count, 0), _split(dy, count, 0), strict=True):
        scale = 1 / len(x_p) if reduction == "mean" else 1.0
        share = (len(x_p) / len(x) if weighted else 1 / count) if reduction == "mean" else 1.0
        one = _linear(x_p, W, b)
        dx_p, dW_p, db_p = one.pullback(scale * dy_p)
        ys.append(one.y)
        dxs.append(share * dx_p)
        dWs.append(share * dW_p)
        dbs.append(share * db_p)
    return {
        "Y": [np.concatenate(ys)],
        "dX": [np.concatenate(dxs)],
        "dW": link.backward(dWs),
        "db": link.backward(dbs),
    }


def by_column(x, W, b, dy, count, link):
    """W's columns split: every device holds x; Y is left split, and dX is all-reduced."""
    devices = [
        _linear(x, W_p, b_p)
        for W_p, b_p in zip(_split(W, count, 1), _split(b, count, 0), strict=True)
    ]
    parts = zip(devices, _split(dy, count, 1), strict=True)
    dxs, dWs, dbs = zip(*(device.pullback(dy_p) for device, dy_p in parts), strict=True)
    return {
        "Y": [np.concatenate([device.y for device in devices], axis=1)],
        "dX": link.backward(list(dxs)),
        "dW": [np.concatenate(dWs, axis=1)],
        "db": [np.concatenate(dbs)],
    }


def by_row(x, W, b, dy, count, link):
    """W's rows and x's columns split: Y is all-reduced; dY, held by every device, gives dX split.

    One device adds b; all hold the same db.
    """
    biases = [b] + [np.zeros_like(b)] * (count - 1)
    devices = [
        _linear(x_p, W_p, b_p)
        for x_p, W_p, b_p in zip(_split(x, count, 1), _split(W, count, 0), biases, strict=True)
    ]
    dxs, dWs, dbs = zip(*(device.pullback(dy) for device in devices), strict=True)
    return {
        "Y": link.forward([device.y for device in devices]),
        "dX": [np.concatenate(dxs, axis=1)],
        "dW": [np.concatenate(dWs)],
        "db": list(dbs),
    }


def column_then_row(x, first, second, dy, count, link):
    """tanh(x W1 + b1) W2 + b2 with W1 split by columns and W2 by rows, ``first`` = (W1, b1).

    The hidden layer stays split: one all-reduce each way serves both layers.
    """
    biases = [second[1]] + [np.zeros_like(second[1])] * (count - 1)
    splits = (_split(first[0], count, 1), _split(first[1], count, 0), _split(second[0], count, 0))
    outputs, dxs = [], []
    for W1, b1, W2, b2 in zip(*splits, biases, strict=True):
        y, dx = _block(x, (W1, b1), (W2, b2), dy)
        outputs.append(y)
        dxs.append(dx)
    return {"Y": link.forward(outputs), "dX": link.backward(dxs)}


def _block(x, first, second, dy):
    """Y and dX of tanh(x W1 + b1) W2 + b2."""
    below = _linear(x, *first)
    hidden = _Applied(Activation("tanh"), below.y)
    above = _linear(hidden.y, *second)
    dh, *_ = above.pullback(dy)
    return above.y, below.pullback(*hidden.pullback(dh))[0]


def compare(n: int, d1: int, d2: int, count: int, seed: int = 0) -> pd.DataFrame:
    """Every split against the whole layer, with its all-reduces and without each.

    One row for each split and direction: ``split``, ``direction``, what is ``reduced``, how many
    ``elements``; ``error``, the largest distance from the whole relative to its norm, over devices
    and results of that direction; ``without``, the same when this direction's all-reduce is left
    out (NaN where there is none). The block has d1 inputs and outputs and d2 hidden units.
    Raises InputError unless 2 <= ``count`` <= n, d1, d2.
    """
    random = np.random.default_rng(seed)
    x, W, b, dy = _draw(random, n, d1, d2, count)
    second = random.standard_normal((d2, d1)), random.standard_normal(d1)
    layer = (x, W, b, dy)
    block = (x, (W, b), second, random.standard_normal((n, d1)))
    total, mean = whole(*layer), whole(x, W, b, dy / n)
    joined = dict(zip(("Y", "dX"), _block(*block), strict=True))
    splits = {
        "data, sum": (total, by_data, layer, {}),
        "data, mean": (mean, by_data, layer, {"reduction": "mean"}),
        "column": (total, by_column, layer, {}),
        "row": (total, by_row, layer, {}),
        "column, then row": (joined, column_then_row, block, {}),
    }
    reduced = {
        ("data", "backward"): "dW, db",
        ("column", "backward"): "dX",
        ("row", "forward"): "Y",
    }
    rows = []
    for name, (expected, split, arguments, options) in splits.items():
        for direction in ("forward", "backward"):
            link = Link(AllReduce(), AllReduce())
            error = _error(split(*arguments, count, link, **options), expected, direction)
            elements, without = getattr(link, direction).elements, np.nan
            if elements:
                broken = link._replace(**{direction: AllReduce(left_out=True)})
                without = _error(split(*arguments, count, broken, **options), expected, direction)
            reduced = "Y" if direction == "forward" else "dW, db" if "data" in name else "dX"
            rows.append((name, direction, reduced * (elements > 0), elements, error, without))
    columns = ["split", "direction", "reduced", "elements", "error", "without"]
    return pd.DataFrame(rows, columns=columns)


def mean_of_means(n: int, d1: int, d2: int, count: int, seed: int = 0) -> float:
    """How far dW and db are from the batch's mean when devices' means are averaged without weights:
    relative to the norm, and above rounding wherever the parts have unequal lengths.
    Raises InputError as :func:`compare` does.
    """
    x, W, b, dy = _draw(np.random.default_rng(seed), n, d1, d2, count)
    link = Link(AllReduce(), AllReduce())
    got = by_data(x, W, b, dy, count, link, reduction="mean", weighted=False)
    return _error(got, whole(x, W, b, dy / n), "backward")


def _draw(random: np.random.Generator, n: int, d1: int, d2: int, count: int) -> Parts:
    """x, W, b and dy of dimensions that ``count`` devices can share."""
    if count < 2:
        raise InputError(f"shards must be at least 2; got {count}")
    for axis, length in (("n", n), ("d1", d1), ("d2", d2)):
        if length > LARGEST:
            raise InputError(f"{axis} must be at most {LARGEST} for shards; got {length}")
        if count > length:
            raise InputError(f"shards must be at most {axis} = {length}; got {count}")
    return [random.standard_normal(shape) for shape in ((n, d1), (d1, d2), (d2,), (n, d2))]


def _error(got: dict[str, Parts], expected: dict[str, np.ndarray], direction: str) -> float:
    """The worst relative error of a direction's results, over devices."""
    names = ["Y"] if direction == "forward" else [name for name in expected if name != "Y"]
    errors = [relative_error(copy, expected[name]) for name in names for copy in got[name]]
    return float(np.max(errors))  # NaN, if there is one


def relative_error(a: np.ndarray, b: np.ndarray) -> float:
    """‖a − b‖ / ‖b‖."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def communication(net: Network | Layer, shape: Shape, layout: str) -> pd.DataFrame:
    """What each layer must communicate for the input ``shape`` (batch, ...), in elements.

    ``data`` all-reduces the gradients of all parameters. ``column`` and ``row`` split the linear
    layers alone, each taking and giving whole arrays: by columns dX is all-reduced and Y gathered,
    by rows Y is all-reduced and dX gathered; where a neighbour can use the parts, the gather falls
    away. The first layer's dX is counted. Columns layer, op, fan_in, fan_out, collective, forward,
    backward: one row for each operation and collective. Raises InputError for an unknown layout.
    """
    if layout not in LAYOUTS:
        raise unknown("layout", layout, LAYOUTS)
    rows = []
    network = net if isinstance(net, Network) else Network((net,), (False,))
    operations = ((place.layer, *one) for place in network.walk(shape) for one in place.operations)
    for number, layer, declared in operations:
        parameters = [p for p in declared.values() if p.role != "target"]
        if parameters:
            fans = parameters[0].fan_in, parameters[0].fan_out
            x, y = (math.prod(shape[:-1]) * fan for fan in fans)
            if layout == "data":
                sent = [("all-reduce", 0, sum(math.prod(p.shape) for p in parameters))]
            elif not isinstance(layer, Linear):
                continue
            elif layout == "column":
                sent = [("all-reduce", 0, x), ("all-gather", y, 0)]
            else:
                sent = [("all-reduce", y, 0), ("all-gather", 0, x)]
            rows += [(number, layer.name, *fans, *one) for one in sent]
    columns = ["layer", "op", "fan_in", "fan_out", "collective", "forward", "backward"]
    return pd.DataFrame(rows, columns=columns)


def _split(array: np.ndarray, count: int, axis: int) -> Parts:
    """Nearly equal parts: the first are longer by one where the length does not divide."""
    return np.array_split(array, count, axis)
