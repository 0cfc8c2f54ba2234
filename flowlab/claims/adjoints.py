"""S2: the pullback is the adjoint of the Jacobian, for every layer."""

import numpy as np

from flowlab import laws
from flowlab.claims import compare
from flowlab.claims.claim import claim
from flowlab.claims.trial import inner, square
from flowlab.claims.twins import SEEDS, Instance, instances


@claim(
    "S2",
    "The adjoint of a linear map is its transpose, ⟨Tx, y⟩ = ⟨x, Tᵀy⟩: backpropagation at work.",
    "the text",
)
def adjoint_of_every_layer(trial):
    """Against derivatives by differences, for the input and every parameter."""
    errors = {name: defect(instance, trial.seed) for name, instance in instances().items()}
    name = max(errors, key=lambda name: np.nan_to_num(errors[name], nan=np.inf))
    result = compare.identity(
        "|⟨dy, Jv⟩ − ⟨Jᵀdy, v⟩| / ‖dy‖‖Jv‖", errors[name], laws.ADJOINT_TOLERANCE
    )
    return result.finding(
        f"In each of {len(errors)} layers the pullback is the adjoint of the Jacobian, for the "
        f"input and every parameter; the furthest from it is {name}, by {result.measured:.0e}."
        if result.error <= 1
        else f"The pullback of {name} is not the adjoint of its Jacobian: off by "
        f"{result.measured:.0e}."
    )


def defect(instance: Instance, seed: int) -> float:
    """The worst relative defect of one layer's pullback, for its input and every parameter."""
    trial = laws.Subject(
        instance.layer, instance.shape, instance.data, instance.inputs, SEEDS, seed, (np.float64,)
    )
    point = trial.point(np.float64)
    result = trial.run(point)
    off, norms = [], []
    for path in (None, *trial.differentiable):
        v, Jv, _ = trial.derivative(path)
        gradient = result.dx if path is None else result.gradients[path]
        off.append(np.abs(inner(point.dy, Jv) - inner(gradient, v)))
        norms.append(np.sqrt(square(Jv)))
    sizes = compare.sizes(np.array(norms), laws.ADJOINT_TOLERANCE)
    return float(np.max(np.array(off) / (np.sqrt(square(point.dy)) * sizes)))
