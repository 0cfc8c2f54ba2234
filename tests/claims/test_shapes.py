"""S3, S13 and S16 read as expected, and read otherwise once an error is planted."""

from dataclasses import replace
from math import nan

import numpy as np
import pytest

from flowlab import claims
from flowlab.claims.claim import CONDITIONAL, FAILS, HOLDS
from flowlab.claims.trial import Trial
from flowlab.layers import Linear
from flowlab.lessons import shapes, sharding

CLAIMS = {id: claim for id, claim in claims.load().items() if id in ("S3", "S13", "S16")}


def check(id):
    return CLAIMS[id].check(Trial(0, 4))


def pullback_off(which, factor=1 + 1e-6):
    """Linear's pullback is off by a factor in dX, dW or db."""

    def plant(patch):
        pullback = Linear.pullback

        def wrong(self, *args):
            dx, gradients = pullback(self, *args)
            if which in gradients:
                return dx, gradients | {which: gradients[which] * factor}
            return dx * factor, gradients

        patch.setattr(Linear, "pullback", wrong)

    return plant


def forward_off(patch):
    forward = Linear.forward

    def wrong(self, *args):
        y, tape = forward(self, *args)
        return y * (1 + 1e-6), tape

    patch.setattr(Linear, "forward", wrong)


def transposed_example(patch):
    right = shapes.worked_example
    patch.setattr(
        shapes, "worked_example", lambda *size: (e := right(*size)) | {"dX": e["dX"].T.copy()}
    )


def trial_off(patch):
    run = Trial.run

    def wrong(self, *args):
        got = run(self, *args)
        return replace(got, dx=got.dx * (1 + 1e-6))

    patch.setattr(Trial, "run", wrong)


def more_products(patch):
    """A second product fits although the dimensions differ."""
    right = shapes._products

    def wrong(operands, sums):
        yield from right(operands, sums)
        yield from (item for item in right(operands, sums) if item[0].count("dY") == 1)

    patch.setattr(shapes, "_products", wrong)


def one_product(patch):
    """Shapes leave nothing open: only the adjoints are listed."""
    right = shapes._products
    known = {"dY Wᵀ", "Xᵀ dY", "1ᵀ dY"}
    patch.setattr(
        shapes, "_products", lambda shapes, sums: (i for i in right(shapes, sums) if i[0] in known)
    )


def blind_adjoint_test(patch):
    patch.setattr(shapes, "TOLERANCE", 1e9)


def all_reduce_that(changes):
    """The all-reduce gives something else than the sum."""

    def plant(patch):
        right = sharding.AllReduce.__call__
        patch.setattr(
            sharding.AllReduce, "__call__", lambda self, parts: changes(right(self, parts))
        )

    return plant


def all_reduce_never(patch):
    def keep(self, parts):
        self.elements += parts[0].size
        return parts

    patch.setattr(sharding.AllReduce, "__call__", keep)


def unneeded_all_reduce(patch):
    """The row split all-reduces dX, whose parts are apart already."""
    right = sharding.by_row

    def wrong(*args):
        got = right(*args)
        link = args[-1]
        return got | {"dX": link.backward([got["dX"][0], 0 * got["dX"][0]])}

    patch.setattr(sharding, "by_row", wrong)


def unweighted_mean(patch):
    right = sharding.by_data
    patch.setattr(sharding, "by_data", lambda *a, **o: right(*a, **(o | {"weighted": False})))


PLANTS = {
    "S3": [
        *(pullback_off("x"), pullback_off("W"), pullback_off("b"), pullback_off("W", nan)),
        *(forward_off, transposed_example),
    ],
    "S13": [
        *(pullback_off("x"), pullback_off("W"), pullback_off("b"), pullback_off("W", nan)),
        *(trial_off, more_products, one_product, blind_adjoint_test),
    ],
    "S16": [
        *(all_reduce_that(lambda parts: [p / len(parts) for p in parts]), all_reduce_never),
        *(all_reduce_that(lambda parts: [p * (1 + 1e-6) for p in parts]), unneeded_all_reduce),
        *(unweighted_mean, pullback_off("W", nan)),
    ],
}


@pytest.mark.parametrize("id, verdict", [("S3", HOLDS), ("S13", CONDITIONAL), ("S16", HOLDS)])
def test_verdict(id, verdict):
    finding = check(id)
    assert finding.verdict == verdict and CLAIMS[id].expected == (verdict,)
    assert abs(finding.measured - finding.predicted) <= finding.tolerance
    assert finding.sentence.endswith(".") and "\n" not in finding.sentence


@pytest.mark.parametrize("id, plant", [(id, p) for id, plants in PLANTS.items() for p in plants])
def test_planted_error_turns_the_verdict(id, plant, monkeypatch):
    plant(monkeypatch)
    assert check(id).verdict == (HOLDS if plant is one_product else FAILS)


def test_shapes_leave_as_many_products_as_stated():
    sentence = check("S13").sentence
    counts = shapes.derive(3, 3, 3).groupby("gradient")["linear"].sum()
    assert f"up to {np.max(counts)} where they coincide" in sentence
