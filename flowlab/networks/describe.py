"""A layer described, so that equal networks have one digest in any process and others do not.

Of a layer of flowlab's the class, its plain attributes and what it is made of say all. Of a class
from elsewhere the source counts as well, with that of its kernels, and every attribute.
"""

import dataclasses
import hashlib
import inspect
from types import ModuleType
from typing import Any

import numpy as np

from flowlab.errors import InputError
from flowlab.kernel import Kernel
from flowlab.layer import Layer

_PLAIN = (bool, int, float, str, tuple, type(None))


def described(layer: Layer) -> tuple:
    """Names, numbers and texts whose ``repr`` is equal for equal layers.

    Raises InputError for a layer from outside flowlab with an attribute that has no description.
    """
    own = sorted(
        (name, value)
        for name, value in vars(layer).items()
        if isinstance(value, _PLAIN) and name != "children" and not _holds_layers(value)
    )
    kind = f"{type(layer).__module__}.{type(layer).__qualname__}"
    children = [described(child) for child in layer.children]
    return kind, layer.name, own, children, *_from_elsewhere(layer)


def words(layer: Layer) -> str:
    """What a layer is made of, as a reader would write it: Chain(Linear(8), Activation(relu))."""
    inner = [words(child) for child in layer.children]
    first = next(iter(vars(layer).values()), "")
    shown = inner or [str(first)] * isinstance(first, int | float | str)
    return f"{type(layer).__name__}({', '.join(shown)})"


def _holds_layers(value: Any) -> bool:
    return isinstance(value, tuple) and any(isinstance(item, Layer) for item in value)


def _from_elsewhere(layer: Layer) -> list:
    """Of a class from outside flowlab: its code, and the attributes that are not plain."""
    own = [kind for kind in type(layer).__mro__ if kind.__module__.partition(".")[0] != "flowlab"]
    if own == [object]:
        return []
    found = [
        (name, _content(value, f"{layer.name}.{name}"))
        for name, value in sorted(vars(layer).items())
        if not (isinstance(value, (*_PLAIN, Layer)) or name.startswith("_"))
    ]
    return found + [_content(kind, kind.__qualname__) for kind in own if kind is not object]


def _content(value: Any, what: str) -> Any:
    if isinstance(value, type):
        ours = {k: v for k, v in vars(value).items() if not k.startswith("__") or k == "__init__"}
        return [(name, _content(ours[name], f"{what}.{name}")) for name in sorted(ours)]
    if isinstance(value, property | staticmethod | classmethod):
        value = value.fget if isinstance(value, property) else value.__func__
    value = getattr(value, "py_func", value)  # of a compiled function
    if isinstance(value, Kernel):
        return value.signature, _content(value.function, what)
    if inspect.isfunction(value):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        cells = [cell for cell in cells if not isinstance(cell, type | ModuleType)]
        return _text(value), [_content(cell, what) for cell in cells]
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, hashlib.sha256(value.tobytes()).hexdigest()
    if isinstance(value, tuple | list):
        return [_content(item, what) for item in value]
    if isinstance(value, dict):
        return [(str(key), _content(item, what)) for key, item in value.items()]
    if dataclasses.is_dataclass(value):
        return type(value).__qualname__, _content(vars(value), what)
    if isinstance(value, Layer):
        return described(value)
    if isinstance(value, (*_PLAIN, np.generic)):
        return repr(value)
    raise InputError(
        f"{what} must be plain data, an array, a function or a dataclass, for the network to have "
        f"a digest; got {type(value).__name__}"
    )


def _text(function) -> str:
    """A function's source or, where it is not to be had, its code."""
    try:
        return inspect.getsource(function)
    except OSError:
        code = function.__code__
        constants = [constant for constant in code.co_consts if isinstance(constant, _PLAIN)]
        return f"{code.co_code.hex()} {code.co_names} {constants}"
