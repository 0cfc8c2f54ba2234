"""Hooks that see what modules give in the forward pass, and what cotangents come back.

Forward hooks and hooks on tensors and nodes of the graph, never full backward hooks: these put an
identity around a module, which breaks modules that work in place. Nothing is put into the graph,
no gradient is changed, and no tensor is kept but for the sum of gradients that reach one input of
a module along several edges.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from flowlab.errors import InputError
from flowlab.modules import graph
from flowlab.modules.containers import tensors
from flowlab.modules.exponents import Exponents
from flowlab.modules.magnitudes import Found, measure

Key = tuple[str, int]  # a module's path and which of its calls in a forward pass, from 1


@dataclass
class Seen:
    """What was seen of one call of a module, one entry for each forward pass (micro-batch).

    ``outputs`` has the names of its output tensors, None for a single one; ``activations`` and
    ``cotangents`` are by that name, ``inputs`` the gradients of its inputs. ``shadowed`` are
    cotangents of the whole tensor that an output is a view of.
    """

    outputs: list[str | None] = field(default_factory=list)
    activations: dict[str | None, list[Found]] = field(default_factory=lambda: defaultdict(list))
    cotangents: dict[str | None, list[Found]] = field(default_factory=lambda: defaultdict(list))
    shadowed: dict[str | None, list[Found]] = field(default_factory=lambda: defaultdict(list))
    inputs: list[Found] = field(default_factory=list)
    parts: set[str | None] = field(default_factory=set)  # outputs that are parts of other tensors


@dataclass
class _Entered:
    """A module that is running: the edges of its inputs, and whether its call counts."""

    module: nn.Module
    inputs: dict[graph.Edge, int]
    counts: bool
    recomputed: bool


class Observer:
    """Watches the modules ``paths`` (module to path) of ``model`` between :meth:`start` and
    :meth:`stop`, while ``listening``.

    ``order`` has all calls ever seen, by their position in execution; ``seen`` those since the last
    :meth:`clear`.
    """

    def __init__(
        self, model: nn.Module, paths: Mapping[nn.Module, str], exponents: Exponents | None
    ):
        self.model, self.paths, self.exponents = model, paths, exponents
        self.listening = True
        self.order: list[Key] = []
        self._known: set[Key] = set()
        self._handles: list = []
        self.clear()

    def clear(self) -> None:
        """Forget what was seen, and what is still on its way."""
        self.seen: dict[Key, Seen] = {}
        self.without_gradient = 0
        self._epoch = object()  # hooks of earlier passes know by it that they are late
        self._new_pass()

    def _new_pass(self) -> None:
        self._uses: dict[nn.Module, int] = defaultdict(int)
        self._pending: dict[nn.Module, list[Key]] = defaultdict(list)
        self._running: list[_Entered] = []
        self._before: Key | None = None
        self._returned = False

    # Life

    def start(self) -> None:
        for module in dict.fromkeys([self.model, *self.paths]):
            self._handles.append(
                module.register_forward_pre_hook(_Hook(self._enter), with_kwargs=True)
            )
            self._handles.append(module.register_forward_hook(_Hook(self._leave)))

    def stop(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.clear()

    # Forward

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if not self.listening:
            return
        backward = torch._C._current_graph_task_id() != -1
        if not backward and not self._inside:
            outermost = module is self.model
            if outermost or self._returned:
                self._new_pass()
            self._alive = torch.is_grad_enabled()
            self.without_gradient += not self._alive
        counts = module in self.paths and self._alive
        inputs = {}
        if counts and torch.is_grad_enabled():
            inputs = graph.inputs_of(tensor for _, tensor in tensors((args, kwargs)))
        self._running.append(_Entered(module, inputs, counts, backward))

    @property
    def _inside(self) -> bool:
        """Whether a module is running in the forward pass."""
        return bool(self._running)

    def _leave(self, module: nn.Module, args: tuple, output: object) -> None:
        if not self.listening or not any(one.module is module for one in self._running):
            return
        while (entered := self._running.pop()).module is not module:
            pass  # modules that an exception left
        if not entered.counts:
            return
        found = tensors(output)
        if entered.recomputed:
            self._recomputed(module, found, entered.inputs)
            return
        self._uses[module] += 1
        key = self.paths[module], self._uses[module]
        self._place(key)
        seen = self.seen.setdefault(key, Seen())
        for name, tensor in found:
            if name not in seen.outputs:
                seen.outputs.append(name)
            seen.activations[name].append(measure(tensor))
        if torch.is_grad_enabled():
            self._await(seen, found, entered.inputs)
        else:
            self._pending[module].append(key)

    def _place(self, key: Key) -> None:
        """Give a call that is new its position: behind the call that came before it."""
        if key not in self._known:
            at = 0 if self._before is None else self.order.index(self._before) + 1
            self.order.insert(at, key)
            self._known.add(key)
        self._before = key

    def _recomputed(self, module: nn.Module, found: list, inputs: dict) -> None:
        """A forward pass within the backward pass: checkpointing.

        Where the first pass had a graph, its hooks are in place. Where it had none, this one has
        the graph that the cotangents will travel.
        """
        calls = self._pending.get(module)
        if not calls or not torch.is_grad_enabled():
            return
        if len(calls) > 1:
            raise InputError(
                f"module {self.paths[module] or 'model'} must be called once under "
                f"checkpoint(use_reentrant=True); got {len(calls)} calls: use_reentrant=False works"
            )
        self._await(self.seen[calls.pop()], found, inputs)

    # Backward

    def _await(self, seen: Seen, found: list, inputs: dict[graph.Edge, int]) -> None:
        """Hook what brings the cotangents of a call."""
        for name, tensor in found:
            if not tensor.requires_grad:
                continue
            tensor.register_hook(self._arrival(seen, name))
            base = tensor._base
            if base is not None and base.grad_fn is not None:
                # A view that is changed in place later takes its base's place in the graph.
                if base.numel() == tensor.numel() and not _among(base, inputs):
                    base.grad_fn.register_prehook(self._shadow(seen, name, base.output_nr))
                else:
                    seen.parts.add(name)
        crossings = graph.crossings((tensor for _, tensor in found), inputs)
        if crossings:
            self._hook_inputs(seen, crossings)
        for name, tensor in found:  # what passes its input on unchanged
            edge = graph.edge_of(tensor)
            if edge in inputs:
                tensor.register_hook(self._arrival(seen, name, passed=True))

    def _arrival(self, seen: Seen, name: str | None, passed: bool = False):
        epoch = self._epoch

        def arrived(gradient: torch.Tensor) -> torch.Tensor | None:
            if epoch is not self._epoch:
                return None
            self._returned = True
            found = self._measured(gradient)
            (seen.inputs if passed else seen.cotangents[name]).append(found)
            if passed or self.exponents is None:
                return None
            return self.exponents.renormalise(gradient, found)

        return arrived

    def _shadow(self, seen: Seen, name: str | None, number: int):
        epoch = self._epoch

        def arrived(gradients: tuple) -> None:
            gradient = gradients[number]
            missing = len(seen.shadowed[name]) == len(seen.cotangents[name])
            if epoch is self._epoch and gradient is not None and missing:
                self._returned = True
                seen.shadowed[name].append(self._measured(gradient))

        return arrived

    def _hook_inputs(self, seen: Seen, crossings: list) -> None:
        """Measure what leaves a module toward each of its inputs, the sum of several edges."""
        edges: dict[int, int] = defaultdict(int)
        by_node: dict = defaultdict(list)
        for node, position, number in crossings:
            edges[number] += 1
            by_node[node].append((position, number))
        sums: dict[int, list] = {}  # by input: how many edges are missing, the sum so far
        for number, several in edges.items():
            sums[number] = [several, None]
        for node, positions in by_node.items():
            node.register_hook(self._departure(seen, tuple(positions), sums))

    def _departure(self, seen: Seen, positions: tuple, sums: dict[int, list]):
        epoch = self._epoch

        def left(gradients: tuple, _) -> None:
            if epoch is not self._epoch:
                return
            for position, number in positions:
                state = sums[number]
                state[0] -= 1
                gradient = gradients[position]
                if gradient is not None:
                    state[1] = gradient if state[1] is None else state[1] + gradient
                if state[0] == 0 and state[1] is not None:
                    seen.inputs.append(self._measured(state[1]))
                    state[1] = None

        return left

    def _measured(self, gradient: torch.Tensor) -> Found:
        return measure(gradient, self.exponents.now() if self.exponents else 0)


def _among(tensor: torch.Tensor, inputs: dict[graph.Edge, int]) -> bool:
    return graph.edge_of(tensor) in inputs


class _Hook:
    """A hook that copies of the module do not have."""

    def __init__(self, call):
        self._call = call

    def __call__(self, *given):
        return self._call(*given)

    def __deepcopy__(self, memo):
        return _nothing


def _nothing(*given) -> None:
    """In place of a hook, in a copy of its module."""
