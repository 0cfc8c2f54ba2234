"""A cotangent that carries an exponent through a user's own graph.

Backpropagation is linear: where all that is still to come depends on one gradient, that gradient
may be multiplied by a power of two, and every later one is multiplied by it, too. Parameters get
their gradients back in true size, so that the user's own numbers are the same; norms are taken
before.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.autograd.graph import Node

from flowlab.errors import InputError
from flowlab.modules import graph
from flowlab.modules.magnitudes import Found, measure, settle

_COMFORT = 16  # as in flowlab.numerics.scale


class Exponents:
    """The exponents of one backward pass at a time, carried while it is ``listening``.

    ``seen(parameter's number, magnitude)`` is called with every gradient of a parameter.
    """

    def __init__(self, seen: Callable[[int, Found], None]):
        self._seen = seen
        self.listening = True
        self._handles: list = []
        self._parallel = torch._C._is_multithreading_enabled()
        self._on_cuts: list = []
        self.forget()

    def start(self, parameters: Mapping[int, nn.Parameter]) -> None:
        """Watch parameters, by number, until :meth:`stop`."""
        # Hooks find the pass that they belong to on their own thread's stack.
        torch.autograd.set_multithreading_enabled(False)
        for number, value in parameters.items():
            if value.requires_grad:
                self._handles.append(value.register_hook(self._restore(number)))

    def stop(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.forget()
        torch.autograd.set_multithreading_enabled(self._parallel)

    def forget(self) -> None:
        """Let go of the backward pass, at its end or where it will have none."""
        for handle in self._on_cuts:
            handle.remove()
        self._on_cuts = []
        self._task, self._cuts = -1, graph.Cuts()
        self._raised: list[tuple[int, int]] = [(0, 0)]  # (cut, exponent from there on), ordered

    def now(self) -> int:
        """The exponent of the gradients of the node that runs now."""
        self._follow()
        return self._total(torch._C._current_autograd_node())

    def _follow(self) -> None:
        """Look at the graph, once for each backward pass."""
        task = torch._C._current_graph_task_id()
        if task == self._task:
            return
        roots = graph.roots()
        if len(roots) > 1:
            raise InputError(
                "exponents=True must not meet a backward pass within another, as of "
                "checkpoint(use_reentrant=True); use_reentrant=False works"
            )
        if not roots:
            raise InputError(
                "exponents=True needs torch.autograd.backward, grad or Tensor.backward; "
                "got a backward pass begun in another way"
            )
        self.forget()
        self._task, self._cuts = task, graph.cuts(roots[0])
        for node, number in self._cuts.nodes.items():
            scale = self._renormalise(self._cuts.at[node], number)
            self._on_cuts.append(node.register_prehook(scale))
        torch.autograd.Variable._execution_engine.queue_callback(self.forget)

    def _renormalise(self, cut: int, number: int):
        """Bring the gradient that enters a cut back to the middle of its range, if it left it."""

        def scale(gradients: tuple) -> tuple | None:
            if gradients[number] is None:
                return None
            (found,) = settle([measure(gradients[number])])
            rms = found.log2 - 0.5 * math.log2(max(found.size, 1))
            if not math.isfinite(rms) or abs(rms) <= _comfort(gradients[number].dtype):
                return None
            raised = math.floor(rms)
            self._raised.append((cut, self._at(cut) + raised))
            return (
                *gradients[:number],
                _times(gradients[number], -raised),
                *gradients[number + 1 :],
            )

        return scale

    def _restore(self, number: int):
        def restore(gradient: torch.Tensor) -> torch.Tensor | None:
            if not self.listening:
                return None
            exponent = self.now()
            self._seen(number, measure(gradient, exponent))
            return _times(gradient, exponent) if exponent else None

        return restore

    def _total(self, node: Node) -> int:
        cut = self._cuts.at.get(node)
        if cut is None:
            raise InputError(
                "exponents=True needs the whole graph of the backward pass; "
                f"got a gradient at {node.name()} from outside of it"
            )
        return self._at(cut)

    def _at(self, cut: int) -> int:
        """The exponent behind a cut."""
        return self._raised[bisect_right(self._raised, cut, key=lambda one: one[0]) - 1][1]


def _range(dtype: torch.dtype) -> int:
    """The power of two that a type's normal numbers go down to."""
    return round(-math.log2(torch.finfo(dtype).tiny))


def _comfort(dtype: torch.dtype) -> int:
    return min(_COMFORT, _range(dtype) // 4)


def _times(gradient: torch.Tensor, exponent: int) -> torch.Tensor:
    """``gradient`` times 2^exponent, whatever the exponent, in a new tensor."""
    most = _range(gradient.dtype)
    while exponent:
        part = max(-most, min(most, exponent))
        gradient = gradient * math.ldexp(1.0, part)
        exponent -= part
    return gradient
