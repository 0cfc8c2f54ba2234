"""What an observer saw of a model becomes rows: one for each call of a module and parameter."""

import math
from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakSet

from torch import nn

from flowlab.errors import InputError
from flowlab.modules import choosing, refusals
from flowlab.modules.exponents import Exponents
from flowlab.modules.magnitudes import Found, Magnitude, measure, settle, together
from flowlab.modules.observing import Call, Key, Name, Observer
from flowlab.modules.parameters import OwnedParameter, fans_of, parameters
from flowlab.modules.statuses import is_zero, mark_flushed, status_of, value_of

_ATTACHED: WeakSet[nn.Module] = WeakSet()
_RECURRENT = "steps within the sequence are not seen"
_PART = "the output is part of a tensor that was changed in place"
_EMPTY = "the output has no entries"

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
        self._returned: dict[int, list[Found]] = {}
        self.exponents = Exponents(self._put) if exponents else None
        now = self.exponents.now if self.exponents else lambda: 0
        self.observer = Observer(model, {m: path for path, m in self.chosen.items()}, now)
        self.observer.start()
        if self.exponents:
            self.exponents.start(dict(enumerate(one.value for one in self.parameters)))
        _ATTACHED.update(self.chosen.values())

    @property
    def listening(self) -> bool:
        """Whether passes are measured."""
        return self.observer.listening

    @listening.setter
    def listening(self, yes: bool) -> None:
        self.observer.listening = yes
        if self.exponents:
            self.exponents.listening = yes

    def _within(self, path: str) -> bool:
        """Whether a module is chosen, or lies within one that is."""
        return any(path == of or not of or path.startswith(f"{of}.") for of in self.chosen)

    def _put(self, number: int, magnitude: Found) -> None:
        self._returned.setdefault(number, []).append(magnitude)

    def clear(self) -> None:
        """Forget what came since the last step."""
        self.observer.clear()
        self._returned = {}
        if self.exponents:
            self.exponents.forget()

    def stop(self) -> None:
        """Remove every hook; once more does nothing."""
        if self.exponents:
            self.exponents.stop()
        self.observer.stop()
        self.clear()
        _ATTACHED.difference_update(self.chosen.values())

    def rows(self, scale: float, unscaled: bool) -> list[dict[str, Any]]:
        """The rows of one step; see :meth:`flowlab.modules.attach.Flow.step`.

        Raises InputError where there was no forward pass, none with gradients, or no backward pass.
        """
        try:
            return self._rows(math.log2(scale), unscaled)
        finally:
            self.clear()

    def _rows(self, off: float, unscaled: bool) -> list[dict[str, Any]]:
        seen = self._seen()
        collected: list[Found] = []

        def put(parts: Iterable[Found]) -> slice:
            first = len(collected)
            collected.extend(parts)
            return slice(first, len(collected))

        calls = [
            (key, name, _spans(of, name, put)) for key, of in seen.items() for name in _rows_of(of)
        ]
        gradients = [
            [
                put([] if one.value.grad is None else [measure(one.value.grad)]),
                put(self._returned.get(number, [])),
                put([measure(one.value)]),
            ]
            for number, one in enumerate(self.parameters)
        ]
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
        idle = {path for path in self.chosen if path in {row["module"] for row in rows}}
        idle -= {row["module"] for row in rows if row["status"] != "unused"}
        first: dict[str, int] = {}
        for (path, _), layer in layers.items():
            first.setdefault(path, layer)
        for one, (kept, returned, value) in zip(self.parameters, gradients, strict=True):
            found, carried = read(kept, 0.0 if unscaled else off), read(returned, off)
            if returned.stop - returned.start == 1 and (is_zero(found) or found.room < 0):
                found = carried  # what came, before its type was too short for it
            if is_zero(found) and one.owner in idle:
                found = None
            rows.append(_parameter(one, _around(one.owner, first), found, read(value), flushed))
        rows.sort(key=lambda row: row["layer"])
        return [{name: v for name, v in row.items() if name[0] != "_"} for row in rows]

    def _seen(self) -> dict[Key, list[Call]]:
        """The calls of those passes that gradients came back through, in every pass the same key.

        Raises InputError where there are none, and where gradients came more than once.
        """
        observer, seen = self.observer, {}
        for one in observer.passes:
            for key, call in one.calls.items() if one.returned else ():
                seen.setdefault(key, []).append(call)
                count = max(map(len, call.cotangents.values()), default=0)
                if count > 1:
                    raise InputError(
                        f"backward must run once through a forward pass; got {count} times "
                        f"through {key[0] or 'the model'}: add the losses, or call the model anew"
                    )
        if seen:
            self._check_gradients()
            return seen
        if observer.passes:
            raise InputError(
                "backward() must run between the forward pass and the step; "
                "got no gradient at any module"
            )
        if observer.without_gradient:
            raise InputError(
                "the forward pass must run with gradients; got one under torch.no_grad or "
                "inference_mode"
            )
        raise InputError("the model must be called before a step is measured; got no call")

    def _check_gradients(self) -> None:
        wanted = [one.value for one in self.parameters if one.value.requires_grad]
        if wanted and all(value.grad is None for value in wanted):
            raise InputError(
                "parameters must have gradients when a step is measured; got None in every .grad: "
                "call flow.step() before zero_grad(), and backward() rather than autograd.grad"
            )

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
        fans = fans_of(weight, module) if isinstance(weight, nn.Parameter) else (1, 1)
        others = self.names[module][1:]
        return {
            **{"module": path, "op": type(module).__name__},
            **{"fan_in": fans[0], "fan_out": fans[1]},
            "aliases": ", ".join(others) if others else None,
            "note": _RECURRENT if isinstance(module, nn.RNNBase) else None,
        }

    def _call(
        self,
        key: Key,
        name: Name,
        layer: int,
        of: list[Call],
        spans: dict[str, slice],
        read: Read,
        off: float,
    ) -> dict[str, Any]:
        row = self._common(key[0]) | {"layer": layer, "use": key[1], "output": name}
        found = {
            "activation": read(spans["activation"], 0.0),
            "delta": read(spans["delta"], off),
            "dX": read(spans["dX"], off),
        }
        if not found["activation"].size:
            return row | {"status": "unused", "note": _EMPTY}
        row |= {f"{what}_log10_norm": value_of(one) for what, one in found.items() if one}
        for what in ("activation", "delta"):
            if found[what] is not None and found[what].size:
                row[f"{what}_zeros"] = found[what].zeros / found[what].size
        row |= {f"_{what}": one for what, one in found.items()}
        if found["delta"] is not None:
            return row | {"status": status_of(found.values())}
        names = _outputs(of) if name is None else [name]
        part = any(call.parts & set(names) for call in of)
        return row | ({"status": "lost", "note": _PART} if part else {"status": "unused"})

    def _unused(self, path: str, use: int, layer: int) -> dict[str, Any]:
        return self._common(path) | {"layer": layer, "use": use or None, "status": "unused"}


def _outputs(of: list[Call]) -> list[Name]:
    """The names of the output tensors of a call."""
    return list(dict.fromkeys(name for call in of for name in call.activations))


def _rows_of(of: list[Call]) -> list[Name]:
    """The outputs of a call that have rows: each, and where they are several all together."""
    names = _outputs(of)
    return names if len(names) < 2 else [*names, None]


def _spans(of: list[Call], name: Name, put: Place) -> dict[str, slice]:
    """Where the magnitudes of an output, or of all together, will stand."""
    names = _outputs(of) if name is None else [name]
    each = [(call, at) for call in of for at in names if at in call.activations]
    return {
        "activation": put(call.activations[at] for call, at in each),
        "delta": put(one for call, at in each for one in call.delta(at)),
        "dX": put(one for call in of for one in call.inputs) if name is None else slice(0),
    }


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
    return row | {one.column: value_of(gradient), "status": status_of([gradient])}
