"""One pass of a layer, and what two arrays must have in common."""

import numpy as np

from flowlab.layer import Workspace


def run(layer, x, parameters, dy):
    """y, dx and the gradients in the parameters' nest, in buffers full of NaN."""
    workspace = Workspace(np.nan)
    y, tape = layer.forward(x, parameters, workspace)
    return y, *layer.pullback(dy, tape, workspace)


def close(ours, theirs, tolerance=1e-12):
    """Both have one shape and differ in norm by the tolerance at most."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert np.linalg.norm(ours - theirs) <= tolerance * np.linalg.norm(theirs)
