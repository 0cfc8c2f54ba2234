"""PyTorch's graph of the backward pass: the edges that lead out of a module, and the graph's cuts.

A node's ``next_functions`` are its edges toward the inputs; gradients run along them. Nodes hold
what was saved for the backward pass, so nothing here keeps one for longer than it must.
"""

import heapq
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count

import torch
from torch.autograd.graph import Node, get_gradient_edge

Edge = tuple[Node, int]  # the node that a gradient goes to, and which of its outputs it belongs to


def edge_of(tensor: torch.Tensor) -> Edge | None:
    """Where the gradient of a tensor goes; None of one that needs none."""
    if not tensor.requires_grad:
        return None
    found = get_gradient_edge(tensor)
    return found.node, found.output_nr


def inputs_of(values: Iterable[torch.Tensor]) -> dict[Edge, int]:
    """The edges of a module's inputs, numbered by input.

    A view that is changed in place loses its place in the graph to its base, so that the edge of
    the base stands for it as well.
    """
    found: dict[Edge, int] = {}
    for number, value in enumerate(values):
        edge = edge_of(value)
        if edge is None:
            continue
        found.setdefault(edge, number)
        base = value._base
        if base is not None and base.numel() == value.numel():
            of_base = edge_of(base)
            if of_base is not None:
                found.setdefault(of_base, number)
    return found


def age_of_next() -> int:
    """The age of the next node that is made; older nodes have a smaller one."""
    return torch.autograd._get_sequence_nr()


def crossings(
    outputs: Iterable[torch.Tensor], inputs: dict[Edge, int], since: int
) -> list[tuple[Node, int, int]]:
    """(node, position, input): the edges to a module's inputs from its nodes, made ``since``.

    ``position`` is the edge's place among the node's. What runs along these edges is the module's
    own gradient of its input, apart from that of others who read the same tensor.
    """
    found, seen = [], set()
    waiting = [edge[0] for edge in map(edge_of, outputs) if edge is not None and edge not in inputs]
    while waiting and inputs:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        for position, edge in enumerate(node.next_functions):
            number = inputs.get(edge)
            if number is not None:
                found.append((node, position, number))
            elif _is_inner(edge[0]) and edge[0]._sequence_nr() >= since:
                waiting.append(edge[0])
    return found


def _is_inner(node: Node | None) -> bool:
    """Whether gradients go on from a node: it is no leaf's."""
    return node is not None and len(node.next_functions) > 0


def roots() -> list[list[torch.Tensor]]:
    """What the backward passes that are running now were called on, the innermost first."""
    named = {torch.autograd.backward.__code__: "tensors", torch.autograd.grad.__code__: "outputs"}
    found = []
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code in named:
            of = frame.f_locals[named[frame.f_code]]
            found.append([of] if isinstance(of, torch.Tensor) else list(of))
        frame = frame.f_back
    return found


@dataclass
class Cuts:
    """Where all that is still to come of a backward pass depends on one gradient alone.

    Multiplying the gradient that enters such a node multiplies every later one. Cuts are numbered
    from 1: ``at`` has of each node the number of the last one before it, its own included;
    ``nodes`` are the cuts' own, each with which of its gradients it is.
    """

    at: dict[Node, int] = field(default_factory=dict)
    nodes: dict[Node, int] = field(default_factory=dict)


def cuts(tensors: Iterable[torch.Tensor]) -> Cuts:
    """The cuts of the graph under ``tensors``.

    A leaf hangs on its readers: one that is read more often than once, such as a shared weight,
    forbids cuts between them.
    """
    begin = [edge for edge in map(edge_of, tensors) if edge is not None]
    entries = _entries(begin)
    missing = {node: len(numbers) for node, numbers in entries.items()}
    found, order, ready = Cuts(), count(), []
    open_: set[Node] = set()  # reached, and not all of their gradient is there

    def enter(node: Node) -> None:
        open_.add(node)
        missing[node] -= 1
        if missing[node]:
            return
        if _is_inner(node):
            heapq.heappush(ready, (-node._sequence_nr(), next(order), node))
        else:
            open_.discard(node)
            found.at[node] = len(found.nodes)

    for node, _ in begin:
        enter(node)
    while ready:
        node = heapq.heappop(ready)[2]
        open_.discard(node)
        if not open_ and len(set(entries[node])) == 1:
            found.nodes[node] = entries[node][0]
        found.at[node] = len(found.nodes)
        for inner, _ in node.next_functions:
            if inner is not None:
                enter(inner)
    return found


def _entries(begin: list[Edge]) -> dict[Node, list[int]]:
    """Every node under these edges, and of each edge to it which of its outputs it belongs to."""
    entries: dict[Node, list[int]] = {}
    waiting = [begin]
    while waiting:
        for node, number in waiting.pop():
            if node is None:
                continue
            if node not in entries:
                waiting.append(node.next_functions)
            entries.setdefault(node, []).append(number)
    return entries
