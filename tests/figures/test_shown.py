"""A figure that ends a cell of a notebook is seen."""

from io import BytesIO

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from flowlab.figures.shown import Shown


def test_a_figure_shows_itself_at_its_own_size():
    figure = Shown(figsize=(3, 2))
    figure.subplots().plot([1, 2], [3, 4])
    png, metadata = figure._repr_png_()
    pixels = matplotlib.image.imread(BytesIO(png))
    assert pixels.shape[:2] == (400, 600) and metadata == {"width": 300}
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 10
    assert figure._repr_png_()[0] == png
    assert not hasattr(Figure, "_repr_png_")
