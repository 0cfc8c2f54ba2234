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


def crossings(
    outputs: Iterable[torch.Tensor], inputs: dict[Edge, int]
) -> list[tuple[Node, int, int]]:
    """(node, position, input): the edges from within a module to its inputs.

    ``position`` is the edge's place among the node's. What runs along these edges is the module's
    own gradient of its input, apart from that of others who read the same tensor.
    """
    if not inputs:
        return []
    # A module's nodes are younger than those of all its inputs.
    newest = max((_age(node) for node, _ in inputs), default=-1)
    found, seen = [], set()
    waiting = [edge[0] for edge in map(edge_of, outputs) if edge is not None and edge not in inputs]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        for position, edge in enumerate(node.next_functions):
            number = inputs.get(edge)
            if number is not None:
                found.append((node, position, number))
            elif edge[0] is not None and edge[0].next_functions and _age(edge[0]) > newest:
                waiting.append(edge[0])
    return found


def _age(node: Node) -> int:
    """When a node was made; -1 of a leaf's, which has no time."""
    return node._sequence_nr() if node.next_functions else -1


def roots() -> list[torch.Tensor]:
    """What the backward pass that is running now was called on; none where that is not known."""
    named = {torch.autograd.backward.__code__: "tensors", torch.autograd.grad.__code__: "outputs"}
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code in named:
            found = frame.f_locals[named[frame.f_code]]
            return [found] if isinstance(found, torch.Tensor) else list(found)
        frame = frame.f_back
    return []


@dataclass
class Cuts:
    """Where all that is still to come of a backward pass depends on one gradient alone.

    Multiplying the gradient that enters such a node multiplies every later one. ``at`` has of each
    node the number of the last cut before it, its own included; ``nodes`` are the cuts' own.
    """

    at: dict[Node, int] = field(default_factory=dict)
    nodes: set[Node] = field(default_factory=set)


def cuts(tensors: Iterable[torch.Tensor]) -> Cuts:
    """The cuts of the graph under ``tensors``.

    A leaf that is read once hangs on its reader alone; one that is read more often, such as a
    shared weight, forbids cuts between its readers.
    """
    begin = [edge for edge in map(edge_of, tensors) if edge is not None]
    entries: dict[Node, list[int]] = {}
    waiting = []
    for node, number in begin:
        if node not in entries:
            waiting.append(node)
        entries.setdefault(node, []).append(number)
    while waiting:
        for node, number in waiting.pop().next_functions:
            if node is None:
                continue
            if node not in entries:
                waiting.append(node)
            entries.setdefault(node, []).append(number)
    missing = {node: len(of) for node, of in entries.items()}
    found, order, ready = Cuts(), count(), []
    open_, last = set(), 0

    def enter(node: Node) -> None:
        if not node.next_functions and len(entries[node]) == 1:
            found.at[node] = last
            return
        open_.add(node)
        missing[node] -= 1
        if not missing[node]:
            heapq.heappush(ready, (-_age(node), next(order), node))

    for node, _ in begin:
        enter(node)
    while ready:
        node = heapq.heappop(ready)[2]
        open_.discard(node)
        if not open_ and node.next_functions and len(set(entries[node])) == 1:
            last += 1
            found.nodes.add(node)
        found.at[node] = last
        for inner, _ in node.next_functions:
            if inner is not None:
                enter(inner)
    return found
