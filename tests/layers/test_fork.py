"""Forks: laws, what they stack and declare, wrong versions, bad input."""

import numpy as np
import pytest

from flowlab import laws
from flowlab.errors import InputError
from flowlab.kernel import ShapeError
from flowlab.layer import Chain, leaves, map_leaves
from flowlab.layers import Activation, Fork, Linear
from tests.support.passes import close, run

SEEDS = 2


def draw(layer, shape):
    """x, parameters in the layer's nest and dy, standard normal."""
    random, declaration = np.random.default_rng(3), layer.declare(shape)
    normal = lambda shape: random.standard_normal((SEEDS, *shape))  # noqa: E731
    p = map_leaves(lambda declared: normal(declared.shape), declaration.parameters)
    return normal(shape), p, normal(declaration.output)


FORKS = {
    "one": Fork([Linear(3)]),
    "three": Fork([Linear(4), Chain([Activation("tanh"), Linear(4)]), Linear(4)]),
    "empty": Fork([Chain([]), Chain([]), Linear(3)]),
    "nested": Fork([Fork([Linear(2), Linear(2)]), Fork([Linear(2), Chain([Linear(2)])])]),
    "homogeneous": Fork([Chain([Linear(3), Activation("relu")]), Linear(3)]),
}


@pytest.mark.parametrize("name", FORKS)
@pytest.mark.parametrize("shape", [(4, 3), (2, 5, 3), (1, 1, 3)])
def test_laws(name, shape):
    laws.check(FORKS[name], shape)


def test_a_fork_stacks_its_branches_and_declares_what_they_do():
    layer = FORKS["three"]
    x, p, dy = draw(layer, (4, 3))
    y, dx, gradients = run(layer, x, p, dy)
    total = 0
    for k, branch in enumerate(layer.branches):
        one, through, own = run(branch, x, p[k], dy[:, :, k].copy())
        np.testing.assert_array_equal(y[:, :, k], one)
        total = total + through
        for (_, a), (_, b) in zip(leaves(own), leaves(gradients[k]), strict=True):
            np.testing.assert_array_equal(a, b)
    close(dx, total)
    assert FORKS["homogeneous"].homogeneous and not layer.homogeneous
    assert not layer.couples_examples
    kept = 3 * 4 * 4 + 4 * 3 + 3 * (3 * 4 + 4) + 4 * 3 * 4  # outputs, tanh, parameters, the stack
    assert layer.declare((4, 3)).elements == kept


class BranchLost(Fork):
    def pullback(self, dy, tape, workspace, watch=None):
        dy = dy.copy()
        dy[:, :, 1] = 0
        return super().pullback(dy, tape, workspace, watch)


class BranchesSwapped(Fork):
    def pullback(self, dy, tape, workspace, watch=None):
        return super().pullback(dy[:, :, ::-1].copy(), tape, workspace, watch)


class LastBranchAlone(Fork):
    def pullback(self, dy, tape, workspace, watch=None):
        _, gradients = super().pullback(dy, tape, workspace, watch)
        return self.branches[-1].pullback(dy[:, :, -1].copy(), tape[-1], workspace)[0], gradients


@pytest.mark.parametrize("wrong", [BranchLost, BranchesSwapped, LastBranchAlone])
def test_wrong_versions_are_rejected(wrong):
    with pytest.raises(laws.LawBroken) as broken:
        laws.check(wrong([Linear(3), Linear(3)]), (2, 4, 3))
    assert broken.value.law == "adjoint"


@pytest.mark.parametrize(
    "make, error, line",
    [
        (lambda: Fork([]), InputError, "fork: branches must be at least 1; got 0"),
        (
            lambda: Fork([Linear(3), Linear(4)]).declare((2, 5)),
            ShapeError,
            "fork: axis 1 of branch 2's output must be 3; got 4 (shape (2, 4), expected (2, 3))",
        ),
    ],
)
def test_bad_input_is_one_line(make, error, line):
    with pytest.raises(error) as caught:
        make()
    assert str(caught.value) == line
