"""Hooks that see what modules give in the forward pass, and what cotangents come back.

Forward hooks and hooks on tensors and nodes of the graph, never full backward hooks: these put an
identity around a module, which breaks modules that work in place. Nothing is put into the graph,
no gradient is changed, and no tensor is kept but for the sum of gradients that reach one input of
a module along several edges.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from flowlab.errors import InputError
from flowlab.modules import graph, refusals
from flowlab.modules.containers import tensors
from flowlab.modules.magnitudes import Found, measure

Key = tuple[str, int]  # a module's path and which of its calls in a forward pass, from 1
Name = str | None  # of an output tensor; None where it is the only one


@dataclass(eq=False)
class Call:
    """What was seen of one call of a module in a forward pass.

    By output: its ``activations`` and its ``cotangents`` (one for each backward pass). Where none
    came since the output is a view of a tensor that was changed in place, ``shadowed`` has the
    cotangent of that tensor, or ``parts`` the name where this one is larger. ``inputs`` are the
    gradients of the module's inputs.
    """

    home: "ForwardPass"
    activations: dict[Name, Found] = field(default_factory=dict)
    cotangents: dict[Name, list[Found]] = field(default_factory=lambda: defaultdict(list))
    shadowed: dict[Name, Found] = field(default_factory=dict)
    parts: set[Name] = field(default_factory=set)
    inputs: list[Found] = field(default_factory=list)

    def delta(self, name: Name) -> list[Found]:
        """The cotangent of an output, none if it did not come."""
        found = self.cotangents.get(name)
        return found or [one for at, one in self.shadowed.items() if at == name]


@dataclass(eq=False)
class ForwardPass:
    """A forward pass: its calls, whether it ``returned``, and whether hooks are to add to it."""

    calls: dict[Key, Call] = field(default_factory=dict)
    uses: dict[nn.Module, int] = field(default_factory=lambda: defaultdict(int))
    returned: bool = False
    listening: bool = True


@dataclass
class _Entered:
    """A module that is running: the edges of its inputs, and the age that its own nodes have."""

    module: nn.Module
    inputs: dict[graph.Edge, int]
    since: int
    recomputed: bool


@dataclass
class _Sum:
    """What left a module toward one of its inputs so far, and how many edges are ``missing``."""

    call: Call
    missing: int = 0
    gradient: torch.Tensor | None = None
    exponent: int = 0


class Observer:
    """Watches the modules ``paths`` (module to path) of ``model`` between :meth:`start` and
    :meth:`stop`, while ``listening``.

    ``exponent()`` is the power of two that belongs to the gradients at the node that runs.
    ``order`` has all calls ever seen, by their position in execution; ``passes`` are those since
    the last :meth:`clear`, each time that the model was called one, and ``without_gradient``
    whether one of these had none.
    """

    def __init__(
        self, model: nn.Module, paths: Mapping[nn.Module, str], exponent: Callable[[], int]
    ):
        self.model, self.paths, self._exponent = model, paths, exponent
        self.listening = True
        self.order: list[Key] = []
        self._handles: list = []
        self.passes: list[ForwardPass] = []
        self.clear()

    def clear(self) -> None:
        """Forget what was seen, and what is still on its way."""
        for one in self.passes:
            one.listening = False
        self.passes: list[ForwardPass] = []
        self.without_gradient = False
        self._pass: ForwardPass | None = None
        self._running: list[_Entered] = []
        self._before: Key | None = None
        # Calls of reentrant checkpointing, which have no graph before they are computed again.
        self._pending: dict[nn.Module, list[Call]] = defaultdict(list)
        self._unfinished: list[_Sum] = []
        self._task = -1

    def start(self) -> None:
        for module in dict.fromkeys([self.model, *self.paths]):
            self._handles += [
                module.register_forward_pre_hook(_Hook(self._enter), with_kwargs=True),
                module.register_forward_hook(_Hook(self._leave), always_call=True),
            ]

    def stop(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.clear()

    # Forward

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if not self.listening:
            return
        refusals.check_call()
        recomputed = torch._C._current_graph_task_id() != -1
        if not recomputed and (module is self.model or not self._running):
            self._begin(module)
        inputs = {}
        if module in self.paths and torch.is_grad_enabled():
            inputs = graph.inputs_of(tensor for _, tensor in tensors((args, kwargs)))
        self._running.append(_Entered(module, inputs, graph.age_of_next(), recomputed))

    def _begin(self, module: nn.Module) -> None:
        """A new pass, where the model is called, or a module of it after a backward pass."""
        self._running.clear()  # what an interrupt left
        if not torch.is_grad_enabled():
            self._pass, self.without_gradient = None, True
        elif module is self.model or self._pass is None or self._pass.returned:
            self._pass, self._before = ForwardPass(), None
            self.passes.append(self._pass)

    def _leave(self, module: nn.Module, args: tuple, output: object) -> None:
        if not any(one.module is module for one in self._running):
            return
        while (entered := self._running.pop()).module is not module:
            pass
        found = tensors(output)
        if not found or module not in self.paths:  # no output: nothing to measure, or an exception
            return
        if entered.recomputed:
            self._recomputed(module, found, entered)
        elif self._pass is not None:
            call = self._call(module)
            call.activations = {name: measure(tensor) for name, tensor in found}
            if torch.is_grad_enabled():
                self._await(call, found, entered)
            else:
                self._pending[module].append(call)

    def _call(self, module: nn.Module) -> Call:
        """The new call of a module; of one never seen, behind the one before it in the order."""
        self._pass.uses[module] += 1
        key = self.paths[module], self._pass.uses[module]
        if key not in self.order:
            at = 0 if self._before is None else self.order.index(self._before) + 1
            self.order.insert(at, key)
        self._before = key
        call = self._pass.calls[key] = Call(self._pass)
        return call

    def _recomputed(self, module: nn.Module, found: list, entered: _Entered) -> None:
        """A forward pass within the backward pass: checkpointing.

        Where the first pass had a graph, its hooks are in place. Where it had none, this one has
        the graph that the cotangents will travel.
        """
        calls = self._pending[module]
        if not calls or not torch.is_grad_enabled():
            return
        if len(calls) > 1:
            raise InputError(
                f"module {self.paths[module] or 'model'} must be called once under "
                f"checkpoint(use_reentrant=True); got {len(calls)} calls: use_reentrant=False works"
            )
        self._await(calls.pop(), found, entered)

    # Backward

    def _await(self, call: Call, found: list, entered: _Entered) -> None:
        """Hook what brings the cotangents of a call, and what takes its gradients away."""
        inputs = entered.inputs
        for name, tensor in found:
            if not tensor.requires_grad:
                continue
            tensor.register_hook(self._arrival(call, call.cotangents[name]))
            base = tensor._base
            if base is not None and base.grad_fn is not None:
                # A view that is changed in place later loses its place in the graph to its base.
                whole = base.numel() == tensor.numel() and graph.edge_of(base) not in inputs
                into = call.shadowed if whole else None
                base.grad_fn.register_prehook(self._shadow(call, name, base.output_nr, into))
            if graph.edge_of(tensor) in inputs:  # an input that is passed on as it is
                tensor.register_hook(self._arrival(call, call.inputs))
        sums: dict[int, _Sum] = defaultdict(lambda: _Sum(call))
        by_node: dict = defaultdict(list)
        for node, position, number in graph.crossings(
            (tensor for _, tensor in found), inputs, entered.since
        ):
            sums[number].missing += 1
            by_node[node].append((position, sums[number]))
        for node, leaving in by_node.items():
            node.register_hook(self._departure(call, leaving))

    def _arrival(self, call: Call, into: list[Found]):
        def arrived(gradient: torch.Tensor) -> None:
            if call.home.listening:
                call.home.returned = True
                into.append(measure(gradient, self._exponent()))

        return arrived

    def _shadow(self, call: Call, name: Name, number: int, into: dict[Name, Found] | None):
        def arrived(gradients: tuple) -> None:
            gradient = gradients[number]
            if not call.home.listening or gradient is None or call.cotangents[name]:
                return
            call.home.returned = True
            if into is None:
                call.parts.add(name)
            else:
                into[name] = measure(gradient, self._exponent())

        return arrived

    def _departure(self, call: Call, leaving: list[tuple[int, _Sum]]):
        """Measure what leaves a module toward each of its inputs, the sum of several edges."""

        def left(gradients: tuple, _) -> None:
            if not call.home.listening:
                return
            for position, one in leaving:
                one.missing -= 1
                if (new := gradients[position]) is not None:
                    one.gradient = new if one.gradient is None else one.gradient + new
                    one.exponent = self._exponent()
                if one.missing == 0:
                    _finish(one)
                elif one.gradient is not None:
                    self._later(one)

        return left

    def _later(self, one: _Sum) -> None:
        """Measure a sum at the end of the backward pass, should the rest of it not come."""
        self._unfinished.append(one)
        task = torch._C._current_graph_task_id()
        if task != self._task:
            self._task = task
            torch.autograd.Variable._execution_engine.queue_callback(self._finish_all)

    def _finish_all(self) -> None:
        for one in self._unfinished:
            _finish(one)
        self._unfinished, self._task = [], -1


def _finish(one: _Sum) -> None:
    if one.gradient is not None and one.call.home.listening:
        one.call.inputs.append(measure(one.gradient, one.exponent))
    one.gradient = None


class _Hook:
    """A hook that copies of the module, and files of it, do not have."""

    def __init__(self, call: Callable):
        self._call = call

    def __call__(self, *given):
        return self._call(*given)

    def __reduce__(self):
        return _idle, ()


def _idle() -> Callable:
    return _nothing


def _nothing(*given) -> None:
    """In place of a hook, in a copy of its module."""
