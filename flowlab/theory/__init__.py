"""What mean-field theory and its finite-width corrections predict, without drawing a network."""

from flowlab.theory.activations import ACTIVATIONS, ActivationFunction, get_activation, leaky_relu
from flowlab.theory.feedforward import norms_by_layer
from flowlab.theory.finite_width import kappa, step_mean_variance
from flowlab.theory.mean_field import (
    chi,
    correlation_depth,
    q_fixed_point,
    q_map,
    q_trajectory,
)

__all__ = [
    "ACTIVATIONS",
    "ActivationFunction",
    "chi",
    "correlation_depth",
    "get_activation",
    "kappa",
    "leaky_relu",
    "norms_by_layer",
    "q_fixed_point",
    "q_map",
    "q_trajectory",
    "step_mean_variance",
]
