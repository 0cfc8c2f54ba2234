"""Pytrees of arrays become the rows of modules and parameters: JAX, Flax, NumPy, state dicts.

A pytree is any nest of dictionaries, lists, tuples, named tuples and dataclasses; a leaf's path is
the names that lead to it, joined by dots. A parameter's name is the last of them, and its module
the rest. What JAX keeps of a container is its contents, so the order in which modules run has to be
read off it: see :func:`rows`.
"""

import dataclasses
import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from flowlab.errors import InputError, check_positive
from flowlab.modules.norms import log2_norm_of, log2_of_all, status_of
from flowlab.modules.table import named, of_rows
from flowlab.numerics.scale import LOG10_2
from flowlab.schema import DELTA

Path = tuple[str, ...]

COLLECTIONS = ("params", "intermediates")  # Flax's, around the tree itself
CALL = "__call__"  # under which Flax keeps the outputs of a module, one for each call
GAINS, SHIFTS = ("scale", "gamma", "gain", "weight"), ("bias", "beta", "shift", "b")
STATUSES = ("ok", "zero", "underflow", "nonfinite")  # of several in a row the last counts


def rows(
    gradients: Any,
    activations: Any = None,
    cotangents: Any = None,
    parameters: Any = None,
    *,
    seed: int = 0,
    step: int | None = None,
    name: str = "model",
    scale: float = 1.0,
) -> pd.DataFrame:
    """The table of one network from pytrees of arrays, as ``flowlab.measure`` has it.

    One row for each leaf of ``gradients``, with the norm of ``parameters`` there if given, and one
    for each output of a module among ``activations`` and ``cotangents`` (of the outputs, ∂L/∂y),
    which are joined by path: what lies beyond a module's own path names one of several outputs.
    Flax's ``intermediates`` are read as they come. None is a leaf without a value: unused.

    A gradient's column follows from its name: ``kernel``, ``weight``, ``w``, ``embedding`` and
    others are dW, ``bias`` and ``b`` are db, and where a module has vectors alone, one of them a
    ``scale``, ``gamma``, ``gain`` or ``weight``, it is a normalization with dgain and dbias. In a
    tuple (W, b) the vector is b. Fans are those of (..., in, out), of a ``weight`` (out, in, ...).

    ``layer`` counts modules in the order of ``activations``, without them in that of ``gradients``.
    A dictionary's order is its own, unless its keys are sorted, as JAX sorts them: then
    ``layer_2`` comes before ``layer_10``. JAX sorts other names too, so only ``activations`` from
    outside of a transformation say which module runs first. ``op`` is the last word of the path
    without its number.

    ``scale`` is a loss scale, which norms of gradients and cotangents are divided by; ``name`` is
    the model's. For several seeds or steps see :func:`flowlab.modules.table.joined`. Raises
    InputError for leaves that are no arrays of numbers, for no leaves, and where no path fits.
    """
    check_positive("scale", scale)
    for what, value in (("seed", seed), ("step", 1 if step is None else step)):
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 0:
            raise InputError(f"{what} must be a whole number from 0; got {value!r}")
    owned, weights = (
        {path or ("",): leaf for path, leaf in _leaves(what, tree).items()}
        for what, tree in (("gradients", gradients), ("parameters", parameters))
    )
    if not owned:
        raise InputError("gradients must hold at least one array; got none")
    gradients_of, weights_of = _by_module(owned), _by_module(weights)
    modules = [*gradients_of]
    outputs = [
        _outputs(what, tree, gradients_of)
        for what, tree in (("activations", activations), ("cotangents", cotangents))
    ]
    if weights and not weights.keys() & owned.keys():
        raise _nothing_fits("parameters", weights, owned)
    calls = list(dict.fromkeys(call for found in outputs for call in found))
    places = {call: layer for layer, call in enumerate(_ordered(calls, modules), 1)}
    shift = -math.log2(scale)
    found = []
    for (module, use), layer in places.items():
        place = {"layer": layer, "module": ".".join(module), "op": _op(module), "use": use}
        found += _of_outputs(place, *(of.get((module, use), {}) for of in outputs), shift)
        if use in (None, 1):
            mine, own = (of.get(module, {}) for of in (gradients_of, weights_of))
            found += [_of_parameter(place, name, mine, own, shift) for name in mine]
    return named(of_rows(found, seed=int(seed), step=step, axes={"network": name}))


# Trees


def _leaves(what: str, tree: Any) -> dict[Path, np.ndarray | None]:
    """The arrays of a tree by path, in its order, without Flax's name of the whole."""
    found = {}
    for path, leaf in _walk(tree):
        path = path[1:] if path[:1] in [(name,) for name in COLLECTIONS] else path
        # Keys of state dicts are paths themselves.
        path = tuple(part for name in path for part in name.split("."))
        found[path] = _array(".".join((what, *path)), leaf)
    return found if tree is not None else {}


def _walk(tree: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every leaf with its path."""
    if isinstance(tree, Mapping):
        inner = _in_order({str(key): value for key, value in tree.items()})
    elif hasattr(tree, "_fields") and isinstance(tree, tuple):
        inner = zip(tree._fields, tree, strict=True)
    elif isinstance(tree, list | tuple):
        inner = ((str(place), value) for place, value in enumerate(tree))
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        inner = (
            (own.name, getattr(tree, own.name))
            for own in dataclasses.fields(tree)
            if not own.metadata.get("static") and own.metadata.get("pytree_node", True)
        )
    else:
        yield path, tree
        return
    for name, value in inner:
        yield from _walk(value, (*path, name))


def _in_order(items: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    names = list(items)
    if names == sorted(names):  # as JAX leaves them, whatever it was given
        names.sort(
            key=lambda name: [
                (not part.isdigit(), int(part) if part.isdigit() else part)
                for part in re.findall(r"\d+|\D+", name)
            ]
        )
    return ((name, items[name]) for name in names)


def _array(what: str, leaf: Any) -> np.ndarray | None:
    """A leaf as NumPy has it, None where it has no value."""
    if leaf is None:
        return None
    if hasattr(leaf, "detach"):  # PyTorch's
        leaf = leaf.detach().cpu()
        leaf = leaf.float() if str(leaf.dtype) == "torch.bfloat16" else leaf  # not NumPy's
    try:
        array = np.asarray(leaf)
    except (TypeError, ValueError):  # a tracer, a ragged list
        array = np.asarray(None)
    if array.dtype.names == ("float0",):  # JAX's gradient of whole numbers: there is none
        return None
    if array.dtype.kind not in "biufcV":
        raise InputError(f"{what} must be an array of numbers; got {type(leaf).__name__}")
    return array


def _nothing_fits(what: str, paths: Any, known: Any) -> InputError:
    mine, theirs = (".".join(next(iter(of))) or "the whole" for of in (paths, known))
    return InputError(f"{what} must have paths of gradients, such as {theirs}; got {mine}")


# Modules


def _by_module(leaves: dict[Path, np.ndarray | None]) -> dict[Path, dict[str, np.ndarray | None]]:
    """The leaves of each module by name."""
    found: dict[Path, dict[str, np.ndarray | None]] = {}
    for path, leaf in leaves.items():
        found.setdefault(path[:-1], {})[path[-1]] = leaf
    return found


def _outputs(
    what: str, tree: Any, modules: Collection[Path]
) -> dict[tuple[Path, int], dict[str, np.ndarray | None]]:
    """The outputs of each call (module, use) by name."""
    found: dict[tuple[Path, int], dict[str, np.ndarray | None]] = {}
    fits = False
    leaves = _leaves(what, tree)
    for path, leaf in leaves.items():
        use, output = 1, ()
        if CALL in path:
            place = path.index(CALL)
            module, number, output = path[:place], path[place + 1 : place + 2], path[place + 2 :]
            use = int(number[0]) + 1 if number and number[0].isdigit() else 1
        else:
            lengths = range(len(path), 0 if len(modules) > 1 else -1, -1)
            length = next((n for n in lengths if path[:n] in modules), len(path))
            module, output = path[:length], path[length:]
        fits |= module in modules
        found.setdefault((module, use), {})[".".join(output)] = leaf
    if leaves and not fits:
        raise _nothing_fits(what, leaves, modules)
    return found


def _ordered(calls: list[tuple[Path, int]], modules: list[Path]) -> list[tuple[Path, int | None]]:
    """Calls in their order, and modules without a call behind those that they follow."""
    behind: dict[Path | None, list[Path]] = {}
    called, before = {module for module, _ in calls}, None
    for module in modules:
        if module in called:
            before = module
        else:
            behind.setdefault(before, []).append(module)
    last = {module: place for place, (module, _) in enumerate(calls)}
    ordered = [(module, None) for module in behind.get(None, ())]
    for place, (module, use) in enumerate(calls):
        ordered.append((module, use))
        if place == last[module]:
            ordered += [(of, None) for of in behind.get(module, ())]
    return ordered


def _op(module: Path) -> str:
    words = [re.sub(r"[\d_-]+$", "", name) for name in module]
    return next((word for word in reversed(words) if word), "model")


def _of_outputs(
    place: dict, activations: dict, cotangents: dict, shift: float
) -> Iterator[dict[str, Any]]:
    """The rows of a call: one for each output where there are several, then one for all."""
    names = [*(activations | cotangents)]
    each = [(name, [name]) for name in names if len(names) > 1]
    for output, own in [*each, *([(None, names)] if names else [])]:
        row = {**place, "output": output}
        states = []
        for column, zeros, of, moved in (
            ("activation_log10_norm", "activation_zeros", activations, 0.0),
            (DELTA, "delta_zeros", cotangents, shift),
        ):
            arrays = [of.get(name) for name in own]
            arrays = [array for array in arrays if array is not None]
            if arrays:
                norm, row[zeros], state = _together(arrays)
                row[column] = LOG10_2 * (norm + moved)
                states.append(state)
        row["status"] = max(states, key=STATUSES.index) if states else "unused"
        yield row


def _together(arrays: list[np.ndarray]) -> tuple[float, float, str]:
    """(log2 norm, share of zeros, status) of several arrays as one."""
    found = [log2_norm_of(array) for array in arrays]
    norms, sizes = np.array([norm for norm, _ in found]), np.array([a.size for a in arrays])
    states = [status_of(n, a.size, a.dtype) for n, a in zip(norms, arrays, strict=True)]
    norm = log2_of_all(norms)
    state = max(states, key=STATUSES.index)
    if state == "zero" and not np.isneginf(norm):
        state = "ok"
    share = (
        np.average(np.nan_to_num([z for _, z in found]), weights=sizes) if sizes.any() else np.nan
    )
    return norm, float(share), state


# Parameters


def _of_parameter(place: dict, name: str, mine: dict, weights: dict, shift: float) -> dict:
    """The row of a parameter; ``mine`` are the gradients of its module by name."""
    leaf = mine[name]
    row = {**place, "parameter": name, "use": None}
    if leaf is None:
        return {**row, "status": "unused"}
    column = _column(name, mine)
    norm, _ = log2_norm_of(leaf)
    row |= {column: LOG10_2 * (norm + shift), "status": status_of(norm, leaf.size, leaf.dtype)}
    if column == "dW_log10_norm":
        row["fan_in"], row["fan_out"] = _fans(name, leaf.shape)
        if weights.get(name) is not None:
            row["W_log10_norm"] = LOG10_2 * log2_norm_of(weights[name])[0]
    return row


def _column(name: str, siblings: dict[str, np.ndarray | None]) -> str:
    arrays = {own: array for own, array in siblings.items() if array is not None}
    vectors = all(array.ndim <= 1 for array in arrays.values())
    lower = name.lower()
    if vectors and any(own.lower() in GAINS for own in arrays):
        return "dgain_log10_norm" if lower in GAINS else "dbias_log10_norm"
    unnamed = name.isdigit() and arrays[name].ndim <= 1 and not vectors
    return "db_log10_norm" if "bias" in lower or lower in SHIFTS or unnamed else "dW_log10_norm"


def _fans(name: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """(fan_in, fan_out) of a map by its shape; 1 where it has fewer than two axes."""
    if len(shape) < 2:
        return 1, 1
    if "weight" in name.lower():
        outputs, inputs, *kernel = shape
    else:
        *kernel, inputs, outputs = shape
    return inputs * math.prod(kernel), outputs * math.prod(kernel)
