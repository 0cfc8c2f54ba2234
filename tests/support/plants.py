"""Errors to plant: functions of a ``MonkeyPatch`` that make what is measured wrong."""

from dataclasses import replace
from math import log10
from types import SimpleNamespace

import numpy as np

from flowlab import initializers
from flowlab.claims.trial import Trial
from flowlab.layers import normalization
from flowlab.schema import DELTA
from flowlab.training import updates

_measure, _tables = Trial.measure, {}


def remembered(trial, times=1, **axes):
    """What ``Trial.measure`` gives, each ensemble measured once in the life of the process.

    For tests in which nothing but tables and settings is wrong; others must measure themselves.
    """
    key = repr((trial, times, sorted(axes.items())))
    if key not in _tables:
        _tables[key] = _measure(trial, times, **axes)
    return _tables[key].copy()


def measured(change):
    """Tables go through ``change(trial, table, axes)``."""

    def plant(patch):
        def wrong(trial, times=1, **axes):
            return change(trial, remembered(trial, times, **axes), axes)

        patch.setattr(Trial, "measure", wrong)

    return plant


def tilted(factor, column=DELTA, **where):
    """A squared norm is ``factor`` times too large for each layer travelled backward.

    Of the networks that have the settings ``where``.
    """

    def tilt(trial, table, axes):
        if any(axes.get(name) != value for name, value in where.items()):
            return table
        travelled = table["layer"].max() - table["layer"]
        return table.assign(**{column: table[column] + travelled * log10(factor) / 2})

    return measured(tilt)


def with_settings(change):
    """Networks are measured with ``change(axes)`` in place of some of their settings."""

    def plant(patch):
        def wrong(trial, times=1, **axes):
            return remembered(trial, times, **axes | change(axes))

        patch.setattr(Trial, "measure", wrong)

    return plant


def passed(change):
    """What a pass gives goes through ``change(pass, x)``."""

    def plant(patch):
        run = Trial.run

        def wrong(self, layer, x, *args):
            return change(run(self, layer, x, *args), x)

        patch.setattr(Trial, "run", wrong)

    return plant


def corrupt(ending, factor=1 + 1e-6):
    """Gradients whose paths end so, or dx, are ``factor`` times too large."""

    def change(got, x):
        gradients = {
            path: g * (factor if path.endswith(ending) else 1) for path, g in got.gradients.items()
        }
        return replace(got, dx=got.dx * (factor if ending == "dx" else 1), gradients=gradients)

    return passed(change)


def pullback_off(layer, name="dx", factor=1 + 1e-6):
    """A layer's own pullback is off by a factor in dx or in one gradient."""

    def plant(patch):
        pullback = layer.pullback

        def wrong(self, *args):
            dx, gradients = pullback(self, *args)
            {"dx": dx, **gradients}[name][...] *= factor
            return dx, gradients

        patch.setattr(layer, "pullback", wrong)

    return plant


def clips(wrong):
    """Training clips by ``wrong(kind, at, gradients, norm)`` in place of what it should."""
    return lambda patch: patch.setattr(updates, "clip", wrong)


def scheme(name, **change):
    """An initializer's variance is wrong."""

    def plant(patch):
        patch.setitem(initializers.SCHEMES, name, replace(initializers.SCHEMES[name], **change))

    return plant


def stretched_orthogonal(factor):
    """Orthogonal matrices are ``factor`` times too large."""

    def plant(patch):
        fill = initializers.fill_orthogonal.run

        def wrong(seeds, layer, out, gain, *rest):
            fill(seeds, layer, out, factor * gain, *rest)

        patch.setattr(initializers, "fill_orthogonal", SimpleNamespace(run=wrong))

    return plant


def frozen_statistics(patch):
    """Batch norm's pullback takes mean and variance for constants."""
    patch.setattr(normalization, "batch_norm_pullback", normalization.fixed_norm_pullback)


def frozen(patch):
    """Every seed repeats the first one's norms, but for rounding."""

    def repeat(trial, table, axes):
        first = table.loc[table["seed"] == trial.seed, DELTA].to_numpy()
        repeated = np.tile(first, table["seed"].nunique())
        return table.assign(**{DELTA: repeated * (1 + 1e-9 * table["seed"])})

    measured(repeat)(patch)
