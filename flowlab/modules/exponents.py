"""A cotangent that carries an exponent through a user's own graph.

Backpropagation is linear: where all that is still to come depends on one gradient, that gradient
may be multiplied by a power of two, and every later one is multiplied by it, too. Parameters get
their gradients back in true size, so that the user's own numbers are the same; norms are taken
before.
"""

import math
from bisect import bisect_right, insort
from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.autograd.graph import Node

from flowlab.errors import InputError
from flowlab.modules import graph
from flowlab.modules.magnitudes import Magnitude, measure

_COMFORT = 16  # as in flowlab.numerics.scale


class Exponents:
    """The exponents of one backward pass at a time.

    ``seen(parameter's number, magnitude)`` is called with every gradient of a parameter.
    """

    def __init__(self, seen: Callable[[int, Magnitude], None]):
        self._seen = seen
        self._task = -1
        self._cuts = graph.Cuts()
        self._raised: list[tuple[int, int]] = [(0, 0)]  # (cut, exponent from there on), ordered
        self._handles: list = []
        self._parallel = torch._C._is_multithreading_enabled()

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
        torch.autograd.set_multithreading_enabled(self._parallel)

    def now(self) -> int:
        """The exponent of the gradients of the node that runs now."""
        self._follow()
        return self._total(torch._C._current_autograd_node())

    def renormalise(self, gradient: torch.Tensor, found: Magnitude) -> torch.Tensor | None:
        """What is passed on in place of ``gradient`` with its magnitude ``found``; None for itself.

        Only at a cut, and only where it left the middle of the range.
        """
        node = torch._C._current_autograd_node()
        rms = found.log2 - 0.5 * math.log2(max(found.size, 1)) - self._total(node)
        if node not in self._cuts.nodes or not math.isfinite(rms) or abs(rms) <= _COMFORT:
            return None
        raised = math.floor(rms)
        insort(
            self._raised, (self._cuts.at[node], self._total(node) + raised), key=lambda one: one[0]
        )
        return _times(gradient, -raised)

    def _restore(self, number: int):
        def restore(gradient: torch.Tensor) -> torch.Tensor | None:
            exponent = self.now()
            self._seen(number, measure(gradient, exponent))
            return _times(gradient, exponent) if exponent else None

        return restore

    def _total(self, node: Node) -> int:
        last = self._cuts.at.get(node)
        if last is None:
            raise InputError(
                "exponents=True needs the whole graph of the backward pass; "
                f"got a gradient at {node.name()} from outside of it"
            )
        return self._raised[bisect_right(self._raised, last, key=lambda one: one[0]) - 1][1]

    def _follow(self) -> None:
        """Look at the graph, once for each backward pass."""
        task = torch._C._current_graph_task_id()
        if task == self._task:
            return
        if self._task != -1:
            raise InputError(
                "exponents=True must not meet a backward pass within another, as of "
                "checkpoint(use_reentrant=True); use_reentrant=False works"
            )
        roots = graph.roots()
        if not roots:
            raise InputError(
                "exponents=True needs torch.autograd.backward, grad or Tensor.backward; "
                "got a backward pass begun in another way"
            )
        self._task, self._cuts, self._raised = task, graph.cuts(roots), [(0, 0)]
        torch.autograd.Variable._execution_engine.queue_callback(self._forget)

    def _forget(self) -> None:
        self._task, self._cuts, self._raised = -1, graph.Cuts(), [(0, 0)]


def _times(gradient: torch.Tensor, exponent: int) -> torch.Tensor:
    """``gradient`` times 2^exponent, whatever the exponent, in a new tensor."""
    most = round(-math.log2(torch.finfo(gradient.dtype).tiny))
    while exponent:
        part = max(-most, min(most, exponent))
        gradient = gradient * math.ldexp(1.0, part)
        exponent -= part
    return gradient
