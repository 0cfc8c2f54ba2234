"""Forks: several layers read one input, and their outputs stand side by side on a new axis."""

import math

from flowlab.errors import InputError
from flowlab.kernel import kernel
from flowlab.layer import Declaration, Layer, expect_shape


@kernel("(n,p)->(n,k,p)")
def _place(one, stacked, k):
    for n in range(one.shape[0]):
        for p in range(one.shape[1]):
            stacked[n, k, p] = one[n, p]


@kernel("(n,k,p)->(n,p)")
def _pick(stacked, one, k):
    for n in range(one.shape[0]):
        for p in range(one.shape[1]):
            one[n, p] = stacked[n, k, p]


@kernel("...,...->...")
def _sum(u, v):
    return u + v


class Fork(Layer):
    """y[:, k] = f_k(x) for layers f_1, f_2, ...; dx = Σ_k J_kᵀ dy[:, k].

    (batch, ...) becomes (batch, branches, ...): queries, keys and values of the same tokens, say.
    InputError for no branch, ShapeError unless all branches give the same shape, with a batch axis.
    """

    def __init__(self, branches, name: str = "fork"):
        self.branches = self.children = tuple(branches)
        self.name = name
        if not self.branches:
            raise InputError(f"{name}: branches must be at least 1; got 0")
        self.couples_examples = any(branch.couples_examples for branch in self.branches)
        self.homogeneous = all(branch.homogeneous for branch in self.branches)
        self.recorded = all(branch.recorded for branch in self.branches)

    def rebuilt(self, children) -> "Fork":
        """A fork of other branches under the same name."""
        return Fork(children, self.name)

    def passed(self, dy, through):
        """As `Chain.passed`, of a ``dy`` with ``part(k)``, of branch k, and ``plus(other)``."""
        total = None
        for k, branch in reversed(list(enumerate(self.branches))):
            one = through(branch, dy.part(k))
            total = one if total is None else total.plus(one)
        return total

    def declare(self, shape):
        declared = [branch.declare(shape) for branch in self.branches]
        one = declared[0].output
        expect_shape(self.name, "branch 1's output", one[:1], shape[:1])
        for k, other in enumerate(declared[1:], 2):
            expect_shape(self.name, f"branch {k}'s output", other.output, one)
        output = (one[0], len(declared), *one[1:])
        elements = sum(d.elements for d in declared) + math.prod(output)
        return Declaration(output, tuple(d.parameters for d in declared), elements=elements)

    def forward(self, x, parameters, workspace):
        y = workspace.take(x.shape[:1] + self.declare(x.shape[1:]).output, x.dtype)
        tape = []
        for k, (branch, own) in enumerate(zip(self.branches, parameters, strict=True)):
            one, entry = branch.forward(x, own, workspace)
            _place.run(one.reshape(*one.shape[:2], -1), y.reshape(*y.shape[:3], -1), k)
            tape.append(entry)
        return y, tape

    def pullback(self, dy, tape, workspace, watch=None):
        dx, gradients = None, []
        for k in reversed(range(len(self.branches))):
            one = workspace.take(dy.shape[:2] + dy.shape[3:], dy.dtype)
            _pick.run(dy.reshape(*dy.shape[:3], -1), one.reshape(*one.shape[:2], -1), k)
            through, own = self.branches[k].pullback(one, tape[k], workspace, watch)
            gradients.append(own)
            if through is not one:  # an empty chain hands its cotangent on
                workspace.give(one)
            if dx is None:
                dx = through
                continue
            total = workspace.take(dx.shape, dx.dtype)
            _sum.run(dx, through, total)
            workspace.give(dx)
            workspace.give(through)
            dx = total
        if watch is not None:
            watch(self, tape, dy, dx, {})  # the branches have reported their parameters
        return dx, tuple(reversed(gradients))
