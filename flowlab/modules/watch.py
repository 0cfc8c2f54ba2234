"""What an observer saw of a model becomes rows: one for each call of a module and parameter."""

import math
from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakSet

import pandas as pd
from torch import nn

from flowlab.errors import InputError
from flowlab.modules import choosing, refusals
from flowlab.modules.exponents import Exponents
from flowlab.modules.magnitudes import Found, Magnitude, measure, settle, together
from flowlab.modules.observing import Key, Observer, Seen
from flowlab.modules.parameters import OwnedParameter, fans_of, parameters
from flowlab.modules.statuses import is_zero, mark_flushed, status_of
from flowlab.modules.table import of_rows

_ATTACHED: WeakSet[nn.Module] = WeakSet()
_RECURRENT = "steps within the sequence are not seen"
_PART = "the output is part of a tensor that was changed in place"

Place = Callable[[Iterable[Found]], slice]
Read = Callable[[slice, float], Magnitude | None]


class ModelWatch:
    """Watches a model until :meth:`stop`, and makes the table of what came since the last one.

    Raises InputError for a model that cannot be watched, or that is already.
    """

    def __init__(self, model: nn.Module, modules: choosing.Choice, exponents: bool):
        refusals.check(model)
        self.chosen = choosing.choose(model, modules)
        if any(module in _ATTACHED for module in self.chosen.values()):
            raise InputError(
                "model must be attached once at a time; got one that is attached already: "
                "call detach() on the first"
            )
        self.names = choosing.paths(model)
        self.registered = [path for path, _ in model.named_modules()]
        self.parameters = [one for one in parameters(model) if self._within(one.owner)]
        self._returned: dict[int, list[Magnitude]] = {}
        carried = Exponents(self._put) if exponents else None
        self.observer = Observer(model, {m: path for path, m in self.chosen.items()}, carried)
        if carried:
            carried.start({number: one.value for number, one in enumerate(self.parameters)})
        self.observer.start()
        _ATTACHED.update(self.chosen.values())

    def _within(self, path: str) -> bool:
        """Whether a module is chosen, or lies within one that is."""
        return any(path == of or not of or path.startswith(f"{of}.") for of in self.chosen)

    def _put(self, number: int, magnitude: Magnitude) -> None:
        if self.observer.listening:
            self._returned.setdefault(number, []).append(magnitude)

    def stop(self) -> None:
        """Remove every hook; once more does nothing."""
        if self.observer.exponents:
            self.observer.exponents.stop()
        self.observer.stop()
        self._returned = {}
        _ATTACHED.difference_update(self.chosen.values())

    def table(self, scale: float, unscaled: bool, **place: Any) -> pd.DataFrame:
        """The rows of one step; see :meth:`flowlab.modules.attach.Flow.step`.

        Raises InputError where there was no forward pass, none with gradients, or no backward pass.
        """
        seen, off = self.observer.seen, math.log2(scale)
        self._check(seen)
        collected: list[Found] = []

        def put(parts: Iterable[Found]) -> slice:
            first = len(collected)
            collected.extend(parts)
            return slice(first, len(collected))

        calls = [
            (key, name, self._spans(of, name, put))
            for key, of in seen.items()
            for name in _named(of)
        ]
        gradients = [self._gradient(number, put) for number in range(len(self.parameters))]
        magnitudes = settle(collected)

        def read(span: slice, off: float = 0.0) -> Magnitude | None:
            found = together(magnitudes[span])
            return found and found.divided(off)

        layers = self._layers()
        rows = [
            self._call(key, name, layers[key], seen[key], spans, read, off)
            for key, name, spans in calls
        ]
        rows += [self._unused(*key, layer) for key, layer in layers.items() if key not in seen]
        rows.sort(key=lambda row: row["layer"])
        mark_flushed(rows)
        flushed = {row["module"] for row in rows if row.get("_flushed")}
        first: dict[str, int] = {}
        for (path, _), layer in layers.items():
            first.setdefault(path, layer)
        for one, (gradient, value) in zip(self.parameters, gradients, strict=True):
            found = read(gradient, 0.0 if unscaled else off)
            rows.append(_parameter(one, _around(one.owner, first), found, read(value), flushed))
        rows.sort(key=lambda row: row["layer"])
        self.observer.clear()
        self._returned = {}
        shown = [{name: v for name, v in row.items() if name[0] != "_"} for row in rows]
        return of_rows(shown, **place)

    def _check(self, seen: dict[Key, Seen]) -> None:
        if not seen:
            if self.observer.without_gradient:
                raise InputError(
                    "the forward pass must run with gradients; got one under torch.no_grad or "
                    "inference_mode"
                )
            raise InputError("the model must be called before a step is measured; got no call")
        for (path, use), of in seen.items():
            for name in of.outputs:
                count, passes = len(of.cotangents[name]), len(of.activations[name])
                if count > passes:
                    raise InputError(
                        "backward must run once through each forward pass; got "
                        f"{count} cotangents from {passes} at {path or 'the model'}, call {use}: "
                        "call flow.step() between them"
                    )
        if not any(
            any(of.cotangents.values()) or any(of.shadowed.values()) for of in seen.values()
        ):
            raise InputError(
                "backward() must run between the forward pass and the step; "
                "got no gradient at any module"
            )

    def _spans(self, of: Seen, name: str | None, put: Place) -> dict[str, slice]:
        """Where the magnitudes of an output, or of all together, will stand."""
        whole = name is None
        names = of.outputs if whole else [name]
        return {
            "activation": put(one for each in names for one in of.activations[each]),
            "delta": put(one for each in names for one in of.cotangents[each] or of.shadowed[each]),
            "dX": put(of.inputs if whole else ()),
        }

    def _gradient(self, number: int, put: Place) -> tuple[slice, slice]:
        """Where the magnitudes of a parameter's gradient and of itself will stand."""
        value = self.parameters[number].value
        gradient = self._returned.get(number, [])
        if len(gradient) != 1:  # exponents were not carried, or several passes have been added up
            gradient = [] if value.grad is None else [measure(value.grad)]
        return put(gradient), put([measure(value)])

    # Rows

    def _layers(self) -> dict[Key, int]:
        """The position of every call; of a module that never ran, behind the one before it."""
        order = list(self.observer.order)
        ran = {path for path, _ in order}
        place = {path: number for number, path in enumerate(self.registered)}
        for path in self.chosen:
            if path in ran or self._read_by_another(path):
                continue
            before = [
                number
                for number, (other, _) in enumerate(order)
                if place[other] < place[path] and other and not path.startswith(f"{other}.")
            ]
            order.insert(before[-1] + 1 if before else 0, (path, 0))
        return {key: number for number, key in enumerate(order, 1)}

    def _read_by_another(self, path: str) -> bool:
        """Whether a module that is not called has parameters with gradients, as in attention."""
        return any(one.owner == path and one.value.grad is not None for one in self.parameters)

    def _common(self, path: str) -> dict[str, Any]:
        module = self.chosen[path]
        weight = getattr(module, "weight", None)
        fans = fans_of(weight) if isinstance(weight, nn.Parameter) else (1, 1)
        others = self.names[module][1:]
        return {
            **{"module": path, "op": type(module).__name__},
            **{"fan_in": fans[0], "fan_out": fans[1]},
            "aliases": ", ".join(others) if others else None,
            "note": _RECURRENT if isinstance(module, nn.RNNBase) else None,
        }

    def _call(
        self, key: Key, name: str | None, layer: int, of: Seen, spans: dict, read: Read, off: float
    ) -> dict[str, Any]:
        row = self._common(key[0]) | {"layer": layer, "use": key[1], "output": name}
        found = {
            "activation": read(spans["activation"], 0.0),
            "delta": read(spans["delta"], off),
            "dX": read(spans["dX"], off),
        }
        row |= {f"{what}_log10_norm": one.log10 for what, one in found.items() if one is not None}
        for what in ("activation", "delta"):
            if found[what] is not None and found[what].size:
                row[f"{what}_zeros"] = found[what].zeros / found[what].size
        row |= {"status": status_of(found.values()), "_delta": found["delta"], "_dX": found["dX"]}
        if found["delta"] is None:
            part = bool(of.parts & set(of.outputs if name is None else [name]))
            row |= {"status": "lost", "note": _PART} if part else {"status": "unused"}
        return row

    def _unused(self, path: str, use: int, layer: int) -> dict[str, Any]:
        return self._common(path) | {"layer": layer, "use": use or None, "status": "unused"}


def _named(of: Seen) -> list[str | None]:
    """The outputs of a call that have rows: each, and where they are several all together."""
    return of.outputs if len(of.outputs) < 2 else [*of.outputs, None]


def _around(path: str, first: dict[str, int]) -> int:
    """The layer of a module, or of the nearest module around it that ran."""
    while path and path not in first:
        path = path.rpartition(".")[0]
    return first.get(path, 1)


def _parameter(
    one: OwnedParameter,
    layer: int,
    gradient: Magnitude | None,
    value: Magnitude,
    flushed: set[str],
) -> dict[str, Any]:
    row = {
        **{"layer": layer, "module": one.owner, "op": one.op, "parameter": one.name},
        **{"fan_in": one.fan_in, "fan_out": one.fan_out, "W_log10_norm": value.log10},
        "aliases": ", ".join(one.aliases) if one.aliases else None,
    }
    if gradient is None:
        frozen = None if one.value.requires_grad else "frozen: requires_grad is False"
        return row | {"status": "unused", "note": frozen}
    if is_zero(gradient) and one.owner in flushed:
        return row | {"status": "underflow"}
    return row | {one.column: gradient.log10, "status": status_of([gradient])}
