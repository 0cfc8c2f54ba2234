"""What mean-field theory and its finite-width corrections predict, without drawing a network."""

from flowlab.theory.activations import ACTIVATIONS, Activation, get_activation, leaky_relu
from flowlab.theory.feedforward import predict
from flowlab.theory.finite_width import kappa, step_mean_variance
from flowlab.theory.mean_field import (
    DepthScales,
    c_fixed_point,
    c_map,
    chi,
    chi_c,
    critical_sigma_w2,
    depth_scales,
    q_fixed_point,
    q_map,
    q_trajectory,
)
from flowlab.theory.moments import kappa0, kappa1

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "DepthScales",
    "c_fixed_point",
    "c_map",
    "chi",
    "chi_c",
    "critical_sigma_w2",
    "depth_scales",
    "get_activation",
    "kappa",
    "kappa0",
    "kappa1",
    "leaky_relu",
    "predict",
    "q_fixed_point",
    "q_map",
    "q_trajectory",
    "step_mean_variance",
]
