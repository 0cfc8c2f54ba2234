"""S3, S13 and S16 read as expected, and read otherwise once an error is planted."""

from math import nan

import numpy as np

from flowlab.claims.claim import FAILS, HOLDS
from flowlab.layers import Linear
from flowlab.lessons import shapes, sharding
from tests.support.plants import corrupt, pullback_off
from tests.support.verdicts import Verdicts


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


def off(name, factor=1 + 1e-6):
    return pullback_off(Linear, name, factor)


PLANTS = {
    "S3": [
        *(off("dx"), off("W"), off("b"), off("W", nan)),
        *(forward_off, transposed_example),
    ],
    "S13": [
        *(off("dx"), off("W"), off("b"), off("W", nan)),
        *(corrupt("dx"), more_products, one_product, blind_adjoint_test),
    ],
    "S16": [
        *(all_reduce_that(lambda parts: [p / len(parts) for p in parts]), all_reduce_never),
        *(all_reduce_that(lambda parts: [p * (1 + 1e-6) for p in parts]), unneeded_all_reduce),
        *(unweighted_mean, off("W", nan)),
    ],
}


class TestShapes(Verdicts):
    MODULE = "shapes"
    PLANTS = PLANTS

    def seeds(self, id):
        return 4

    def turned(self, id, verdict, plant):
        return verdict == (HOLDS if plant is one_product else FAILS)

    def test_shapes_leave_as_many_products_as_the_sentence_says(self):
        finding = self.check("S13")
        assert abs(finding.measured - finding.predicted) <= finding.tolerance
        counts = shapes.derive(3, 3, 3).groupby("gradient")["linear"].sum()
        assert f"up to {np.max(counts)} where they coincide" in finding.sentence
