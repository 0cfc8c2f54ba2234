"""Every law can fail: each mutant of a layer is rejected, and by the law that it breaks."""

import numpy as np
import pytest

from flowlab import laws
from flowlab.layer import Chain, Declaration
from flowlab.layers import Activation, Linear, Residual, SoftmaxCrossEntropy
from flowlab.layers.linear import Linear as Base


class Mutant(Base):
    """A linear layer whose arrays pass through ``after_forward`` and ``after_pullback``."""

    name = "mutant"

    def before_forward(self, x, parameters):
        pass

    def after_forward(self, x, parameters, y):
        pass

    def before_pullback(self, dy, tape):
        pass

    def after_pullback(self, dy, tape, dx, gradients):
        pass

    def forward(self, x, parameters, workspace):
        self.before_forward(x, parameters)
        y, tape = super().forward(x, parameters, workspace)
        self.after_forward(x, parameters, y)
        return y, tape

    def pullback(self, dy, tape, workspace, watch=None):
        self.before_pullback(dy, tape)
        dx, gradients = super().pullback(dy, tape, workspace)
        self.after_pullback(dy, tape, dx, gradients)
        if watch is not None:
            watch(self, tape, dy, dx, gradients)
        return dx, gradients


MUTANTS = {}


def rejected_by(law):
    """Register a mutant with the law that must reject it."""

    def register(mutant):
        MUTANTS[mutant.__name__] = (mutant, law)
        return mutant

    return register


def test_the_unmutated_layer_passes():
    laws.check(Mutant(3), (4, 3))


@rejected_by("replayed")
class DoubledOutsideKernels(Mutant):  # consistently, so that it is the adjoint of what it does
    def after_forward(self, x, parameters, y):
        y *= 2

    def after_pullback(self, dy, tape, dx, gradients):
        for array in (dx, *gradients.values()):
            array *= 2


@rejected_by("adjoint")
class FlippedSign(Mutant):
    def after_pullback(self, dy, tape, dx, gradients):
        np.negative(gradients["W"], out=gradients["W"])


@rejected_by("adjoint")
class MissedTranspose(Mutant):  # W is square, so the shapes fit
    def after_pullback(self, dy, tape, dx, gradients):
        dx[...] = dy @ tape["W"]


@rejected_by("adjoint")
class ZeroGradient(Mutant):
    def after_pullback(self, dy, tape, dx, gradients):
        gradients["b"][...] = 0


@rejected_by("adjoint")
class OnePartInAMillion(Mutant):
    def after_pullback(self, dy, tape, dx, gradients):
        dx *= 1 + 1e-6


@rejected_by("adjoint")
class OnePartInAMillionOfOneElement(Mutant):
    def after_pullback(self, dy, tape, dx, gradients):
        gradients["b"][:, 1] *= 1 + 1e-6


@rejected_by("adjoint")
class OnePartInAMillionOfOneWeight(Mutant):
    def after_pullback(self, dy, tape, dx, gradients):
        gradients["W"][:, 2, 0] *= 1 - 1e-6


@rejected_by("scaling")
class AbsoluteThreshold(Mutant):
    def after_pullback(self, dy, tape, dx, gradients):
        dx[np.abs(dx) < 1e-100] = 0


@rejected_by("scaling")
class CoarserThreshold(Mutant):
    def after_pullback(self, dy, tape, dx, gradients):
        gradients["W"][np.abs(gradients["W"]) < 1e-12] = 0


@rejected_by("adjoint")
class WrongForwardOnly(Mutant):
    def after_forward(self, x, parameters, y):
        y += 1e-5 * np.abs(y)


@rejected_by("scaling")
class AffinePullback(Mutant):  # right to twelve digits at dy of order one
    def after_pullback(self, dy, tape, dx, gradients):
        gradients["b"] += np.finfo(dx.dtype).eps


@rejected_by("scaling")
class ThresholdInReach(Mutant):
    def after_pullback(self, dy, tape, dx, gradients):
        dx[np.abs(dx) < 1e-5] = 0


@rejected_by("written")
class UnwrittenOutput(Mutant):
    def forward(self, x, parameters, workspace):
        y, tape = super().forward(x, parameters, workspace)
        partial = workspace.take(y.shape, y.dtype)
        partial[:, :-1] = y[:, :-1]
        return partial, tape


@rejected_by("written")
class UnwrittenGradient(Mutant):
    def pullback(self, dy, tape, workspace, watch=None):
        dx, gradients = super().pullback(dy, tape, workspace, watch)
        partial = workspace.take(gradients["b"].shape, gradients["b"].dtype)
        partial[:, 1:] = gradients["b"][:, 1:]
        return dx, {**gradients, "b": partial}


@rejected_by("written")
class SwallowedBuffer(Mutant):
    """Adds to what the buffer held, but hides NaN."""

    def pullback(self, dy, tape, workspace, watch=None):
        dx, gradients = super().pullback(dy, tape, workspace, watch)
        total = workspace.take(dx.shape, dx.dtype)
        total[...] = np.where(np.isnan(total), 0, total) + dx
        return total, gradients


@rejected_by("unchanged")
class MutatedInput(Mutant):
    def before_forward(self, x, parameters):
        x[:, 0, 0] = np.abs(x[:, 0, 0]) + 1


@rejected_by("unchanged")
class MutatedParameter(Mutant):
    def after_pullback(self, dy, tape, dx, gradients):
        tape["W"] -= 0.1 * gradients["W"]


@rejected_by("unchanged")
class MutatedCotangent(Mutant):
    def before_pullback(self, dy, tape):
        dy *= 2


@rejected_by("unchanged")
class MutatedTape(Mutant):
    def after_pullback(self, dy, tape, dx, gradients):
        tape["x"][...] = 0


@rejected_by("repeatable")
class OtherBitsOnTheSecondCall(Mutant):
    calls = 0

    def after_pullback(self, dy, tape, dx, gradients):
        self.calls += 1
        if self.calls > 1:
            dx[...] = np.nextafter(dx, np.inf, dtype=dx.dtype)


@rejected_by("repeatable")
class Nondeterministic(Mutant):
    random = np.random.default_rng(0)

    def after_forward(self, x, parameters, y):
        y *= 1 + 1e-5 * self.random.standard_normal()


@rejected_by("ensemble")
class NetworksThatTouch(Mutant):
    def after_pullback(self, dy, tape, dx, gradients):
        gradients["b"][...] = gradients["b"].mean(axis=0)


@rejected_by("examples")
class UndeclaredCoupling(Mutant):
    def after_forward(self, x, parameters, y):
        y -= y.mean(axis=1, keepdims=True)


@rejected_by("examples")
class CoupledPullback(Mutant):
    def after_pullback(self, dy, tape, dx, gradients):
        dx += 1e-6 * dx.mean(axis=1, keepdims=True)


class UndeclaredCouplingOfALoss(SoftmaxCrossEntropy):
    def pullback(self, dy, tape, workspace, watch=None):
        dx, gradients = super().pullback(dy, tape, workspace, watch)
        dx -= dx.mean(axis=1, keepdims=True)
        return dx, gradients


@rejected_by("homogeneous")
class FalseHomogeneity(Mutant):
    def after_forward(self, x, parameters, y):
        np.tanh(y, out=y)


@rejected_by("homogeneous")
class FalseHomogeneityOfTheBias(Mutant):
    def after_forward(self, x, parameters, y):
        y += parameters["b"][:, None] ** 2


@rejected_by("shapes")
class WrongDeclaredOutput(Mutant):
    def shapes(self, shape):
        declared = super().shapes(shape)
        n, o = declared.output
        return Declaration((n, o + 1), declared.parameters)


@rejected_by("shapes")
class WrongDeclaredParameter(Mutant):
    def shapes(self, shape):
        declared = super().shapes(shape)  # the kernels take W before b
        swapped = {"b": declared.parameters["b"], "W": declared.parameters["W"]}
        return Declaration(declared.output, swapped)


@rejected_by("shapes")
class WrongReturnedShape(Mutant):
    def pullback(self, dy, tape, workspace, watch=None):
        dx, gradients = super().pullback(dy, tape, workspace, watch)
        return dx, {**gradients, "b": gradients["b"][:, None]}


@rejected_by("shapes")
class WrongDtype(Mutant):
    def forward(self, x, parameters, workspace):
        y, tape = super().forward(x, parameters, workspace)
        return y.astype(np.float64), tape


@rejected_by("shapes")
class ForgottenGradient(Mutant):
    def pullback(self, dy, tape, workspace, watch=None):
        dx, gradients = super().pullback(dy, tape, workspace, watch)
        return dx, {"W": gradients["W"]}


@rejected_by("precision")
class SingleIsCoarse(Mutant):
    def after_pullback(self, dy, tape, dx, gradients):
        if dx.dtype == np.float32:
            dx *= np.float32(1.001)


@rejected_by("scaling")
class SubnormalFlush(Mutant):  # as some processors do, but a little early
    def after_pullback(self, dy, tape, dx, gradients):
        dx[np.abs(dx) < 2.0**15 * np.finfo(dx.dtype).tiny] = 0


@rejected_by("scales")
class SquaresInSingle(Mutant):  # right wherever squares are floats
    homogeneous = False

    def after_forward(self, x, parameters, y):
        with np.errstate(over="ignore", invalid="ignore"):
            y *= np.where(y * y == 0, 1, (y * y) / (y * y))


@rejected_by("scales")
class SumsOfSquaresInSingle(Mutant):
    homogeneous = False

    def after_pullback(self, dy, tape, dx, gradients):
        with np.errstate(over="ignore", invalid="ignore"):
            size = np.sqrt(np.sum(tape["W"] ** 2, axis=(1, 2), keepdims=True))
            gradients["W"] *= np.where(np.isfinite(size), 1, 0)


@rejected_by("scales")
class OtherPathForLargeInputs(Mutant):
    homogeneous = False

    def after_pullback(self, dy, tape, dx, gradients):
        if dx.dtype == np.float32 and np.abs(tape["x"]).max() > 1e30:
            gradients["b"] *= 2


@rejected_by("watched")
class Unwatched(Mutant):
    def pullback(self, dy, tape, workspace, watch=None):
        return super().pullback(dy, tape, workspace)


@pytest.mark.parametrize("mutant, law", MUTANTS.values(), ids=MUTANTS)
def test_mutant_is_rejected(mutant, law):
    with pytest.raises(laws.LawBroken) as broken:
        laws.check(mutant(3), (4, 3))
    assert (broken.value.law, broken.value.layer) == (law, "mutant")
    assert f"mutant breaks the law '{law}'" in str(broken.value)
    assert "\n" not in str(broken.value)


def test_every_law_rejects_some_mutant():
    assert {law for _, law in MUTANTS.values()} == set(laws.LAWS)


@pytest.mark.parametrize("seed", range(10))
def test_a_millionth_is_rejected_at_every_seed(seed):
    with pytest.raises(laws.LawBroken, match="of the input"):
        laws.check(OnePartInAMillion(3), (4, 3), seed=seed)
    with pytest.raises(laws.LawBroken, match="of b"):
        laws.check(OnePartInAMillionOfOneElement(3), (4, 3), seed=seed)


@pytest.mark.parametrize("wrap", [Residual, lambda layer: Chain([Linear(3), layer])])
def test_a_mutant_within_a_composite_is_rejected(wrap):
    with pytest.raises(laws.LawBroken) as broken:
        laws.check(wrap(OnePartInAMillion(3)), (4, 3))
    assert broken.value.law == "adjoint"


def test_a_loss_may_not_couple_examples_either():
    label, exponent = np.array([[0, 2, 1, 4]]), np.zeros(1, int)
    given = {"label": label, "exponent": exponent}
    with pytest.raises(laws.LawBroken) as broken:
        laws.check(UndeclaredCouplingOfALoss(), (4, 5), parameters=given, seeds=1)
    assert broken.value.law == "examples"


def test_a_declared_coupling_is_allowed():
    class Declared(UndeclaredCoupling):
        couples_examples = True
        homogeneous = recorded = False

        def after_pullback(self, dy, tape, dx, gradients):
            dy = dy - dy.mean(axis=1, keepdims=True)
            dx[...] = dy @ np.swapaxes(tape["W"], 1, 2)
            gradients["W"][...] = np.swapaxes(tape["x"], 1, 2) @ dy
            gradients["b"][...] = 0

    laws.check(Declared(3), (4, 3))


def test_a_wrong_slope_at_one_sign_is_rejected():
    class OneSided(Activation):
        def pullback(self, dy, tape, workspace, watch=None):
            dx, gradients = super().pullback(dy, tape, workspace, watch)
            dx[tape["y"] < 0] *= 1.01
            return dx, gradients

    with pytest.raises(laws.LawBroken) as broken:
        laws.check(OneSided("leaky_relu"), (4, 3))
    assert broken.value.law == "adjoint"
