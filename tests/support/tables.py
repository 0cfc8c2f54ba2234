"""Tables and predictions made up so that what is to be found in them is known."""

import numpy as np
import pandas as pd

from flowlab import schema

DELTA, COTANGENT = "delta_log10_norm", "dh_log10_norm"
SQUARED = (2 * np.log(10)) ** 2


def net(run, slope, depth=6, seeds=5, noise=0.01, kappa=0.0, **axes):
    """A run whose log-norms lie on a line of ``slope`` decades per layer, and its prediction."""
    rng = np.random.default_rng(abs(hash((slope, depth))) % 2**32)
    layer = np.arange(1, depth + 1)
    config = {"experiment": "made", "init": "he", "gain": 1.0, "width": 10, "activation": "tanh"}
    config |= {"skip": "none", "sigma_w": 1.0, "sigma_b": 0.0, "batch_size": 4, "fan_out": 16}
    config |= {"run": run, "depth": depth, "op": "linear", "status": "ok", **axes}
    line = slope * (depth - layer)
    # Seeds differ by a slope of their own; their mean is exact.
    wobble = rng.normal(0, noise, seeds)
    wobble -= wobble.mean()
    frames = []
    for seed in range(seeds):
        norms = {name: line + wobble[seed] * (depth - layer) for name in schema.NORMS}
        frames.append(pd.DataFrame({**config, "seed": seed, "layer": layer, **norms}))
    sd = np.sqrt(kappa * (depth - layer) / 10 / SQUARED)
    theory = {name: line for name in schema.NORMS}
    theory |= {f"{name}_sd": sd for name in schema.NORMS}
    theory = pd.DataFrame({"run": run, "layer": layer, "op": "linear", **theory})
    return pd.concat(frames, ignore_index=True), theory


def sweep(*runs):
    """Several runs, each (slope, axes), as one table and one prediction."""
    return together(*(net(f"run{k}", slope, **axes) for k, (slope, axes) in enumerate(runs)))


def shift(table, run, by):
    """The table with log-norms of a run tilted by ``by`` decades per layer."""
    tilt = by * (table["depth"] - table["layer"]) * (table["run"] == run)
    return table.assign(**{name: table[name] + tilt for name in schema.NORMS})


def trained(table, later=5.0, steps=(1, 2, 5)):
    """The table of a trained run: at its first step these rows, then norms that depth tilts by
    ``later`` decades per layer more at each step."""
    frames = []
    for number, step in enumerate(steps):
        tilt = number * later * table["layer"]
        norms = {name: table[name] + tilt for name in (*schema.NORMS, COTANGENT) if name in table}
        frames.append(table.assign(step=pd.array([step] * len(table), "Int64"), **norms))
    return pd.concat(frames, ignore_index=True)


def together(*made):
    """Tables and predictions, each as one."""
    return tuple(pd.concat(frames, ignore_index=True) for frames in zip(*made, strict=True))


def recurrent(run, slope, steps=20, depth=3, down=0.1, predicted=None, **axes):
    """A recurrent run: cotangents of states on a line of ``slope`` decades per step going back,
    ``down`` more in each layer nearer the input; of the layers' own rows the slope is 7."""
    axes = {"network": "rnn", "recurrent": "lecun", "radius": 0.9, "steps": steps, **axes}
    table, theory = net(run, 7.0, depth=depth, **axes)
    table["time"], table[COTANGENT] = pd.array([None] * len(table), "Int64"), np.nan
    theory["time"] = pd.array([None] * len(theory), "Int64")
    first = table[(table["layer"] < depth) & (table["seed"] < 5)]
    states = first.loc[first.index.repeat(steps)].reset_index(drop=True)
    states["time"] = np.tile(np.arange(1, steps + 1), len(first))
    back = steps - states["time"].astype(float)
    wobble = 0.01 * (states["seed"] - 2)
    states[COTANGENT] = slope * back + down * (depth - 1 - states["layer"]) + wobble
    states[DELTA], states["op"] = -99.0, "state"
    steps_of = theory.iloc[:0]
    if predicted is not None:
        steps_of = states[states["seed"] == 0][["run", "layer", "time"]].copy()
        steps_of[COTANGENT], steps_of[DELTA] = predicted * back, -99.0
        steps_of[f"{COTANGENT}_sd"] = 0.0
    kinds = {"time": "Int64"}
    return (
        pd.concat([table, states], ignore_index=True).astype(kinds),
        pd.concat([theory, steps_of], ignore_index=True).astype(kinds),
    )


def curve(run, loss, seeds=5, examples=(8, 16, 24, 40, 64), spread=0.1, diverge=None, **axes):
    """The curve of a run whose held-out loss is ``loss(examples)``, in each seed times a factor of
    its own, whose geometric mean is 1; accuracy is 2^-loss. The last seed may ``diverge`` from
    some number of examples on."""
    examples = np.array(examples)
    factors = np.random.default_rng(len(run)).normal(0, 1, seeds)
    factors = np.exp(spread * (factors - factors.mean()))
    frames = []
    for seed, factor in enumerate(factors):
        losses = factor * loss(examples.astype(float))
        if diverge is not None and seed == seeds - 1:
            losses[examples >= diverge] = np.nan
        status = np.where(np.isfinite(losses), "ok", "diverged")
        values = {"examples": examples, "step": np.arange(1, len(examples) + 1)}
        values |= {"held_out_loss": losses, "held_out_accuracy": 2**-losses}
        values |= {"training_loss": losses, "noise_scale": 30.0, "training_status": status}
        frames.append(pd.DataFrame({"run": run, "training": "sgd", "seed": seed, **axes, **values}))
    return pd.concat(frames, ignore_index=True)
