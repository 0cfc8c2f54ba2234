"""Rows of single time steps: the states of recurrent layers and their cotangents, step by step."""

import numpy as np

from flowlab.layer import Arrays, Layer
from flowlab.layers.recurrent import step_norms
from flowlab.measurement.rounding import LOST, NONFINITE, OK
from flowlab.schema import STATE_NORMS

_STATE, _DELTA, _COTANGENT = range(len(STATE_NORMS))


class Steps:
    """What the recurrent layers of a network showed of each step.

    ``values`` are log2 norms (S, recurrent layers, steps, ``STATE_NORMS``), NaN where not known.
    """

    def __init__(self, layers: list[Layer], seeds: int, steps: int, batch: int, lowest: float):
        self.layers, self.batch, self.lowest = layers, batch, lowest
        self.values = np.full((seeds, len(layers), steps, len(STATE_NORMS)), np.nan)
        self.inputs: dict[int, np.ndarray] = {}  # log2 norms (S, steps) of each layer's input

    def put(self, number: int, tape: Arrays) -> None:
        """What the pullback of recurrent layer ``number``, from 0, left in its tape."""
        self.inputs[number] = step_norms(tape["x"])
        own = self.values[:, number]
        own[..., _STATE] = tape["state_log2_norms"]
        own[..., _DELTA] = tape["delta_log2_norms"]
        own[..., _COTANGENT] = tape["state_cotangent_log2_norms"]

    def found(self) -> np.ndarray:
        """What is found of each step (S, layers, steps); norms that are not known become NaN."""
        left = np.isnan(self.values) | np.isposinf(self.values)
        found = np.where(left.any(axis=-1), NONFINITE, OK)
        above = np.zeros(len(left), bool)  # is what comes from the layer above lost?
        for number, layer in reversed(list(enumerate(self.layers))):
            if layer.homogeneous:
                continue
            values = self.values[:, number]
            size = 0.5 * np.log2(self.batch * layer.features)
            states = values[..., _STATE]
            vanished = states - size < self.lowest
            # A state is an exact zero where its step's input is, and the state before.
            before = np.hstack([np.full((len(states), 1), -np.inf), states[:, :-1]])
            exact = np.isneginf(states) & np.isneginf(self.inputs[number]) & np.isneginf(before)
            values[..., _STATE][vanished & ~exact] = np.nan
            # The slope of saturated units can leave the float range: not an exact zero.
            saturated = np.isneginf(values[..., _DELTA]) & ~np.isneginf(values[..., _COTANGENT])
            later = np.logical_or.accumulate(saturated[:, ::-1], axis=1)[:, ::-1]
            later = np.hstack([later[:, 1:], np.zeros((len(above), 1), bool)]) | above[:, None]
            for column in (_DELTA, _COTANGENT):
                of = values[..., column]
                of[later & np.isneginf(of)] = np.nan
            values[..., _DELTA][saturated] = np.nan
            above = above | saturated.any(axis=1)
            gone = np.isnan(values).any(axis=-1) & (found[:, number] == OK)
            found[:, number][gone] = LOST
        return found
