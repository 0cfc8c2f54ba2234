"""Figures: tidy tables in, matplotlib figures out; nothing is measured or predicted here.

``draw(table)`` makes the figure of any sweep, ``save(figure, stem)`` writes it. The forms among
which it chooses are public too: ``profiles`` takes a table, the others what ``sweep`` makes of one.
"""

from flowlab.figures.choice import caption, draw
from flowlab.figures.difference import difference
from flowlab.figures.files import save
from flowlab.figures.layer_profiles import profiles
from flowlab.figures.networks import network_panels
from flowlab.figures.one_axis import curves
from flowlab.figures.over import change_over
from flowlab.figures.over_batch import norms_by_batch
from flowlab.figures.pairs import heat_map
from flowlab.figures.ranks import ranking
from flowlab.figures.sweeps import Conditions, sweep

__all__ = [
    "Conditions",
    "caption",
    "change_over",
    "curves",
    "difference",
    "draw",
    "heat_map",
    "network_panels",
    "norms_by_batch",
    "profiles",
    "ranking",
    "save",
    "sweep",
]
