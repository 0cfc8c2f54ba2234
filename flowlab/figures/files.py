"""Figures as files."""

import os
from io import BytesIO
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from flowlab.figures import style
from flowlab.storage.files import write


def save(figure: Figure, stem: str | os.PathLike) -> tuple[Path, Path]:
    """Write ``<stem>.png`` (200 dpi) and ``<stem>.svg`` (text stays text) and return their paths.

    A reader sees the old file or the new one, never half of one; the same figure gives the same
    bytes. Missing folders are made; the figure's layout is fixed from then on. Raises
    StorageError where the files cannot be written.
    """
    stem = Path(stem)
    paths = stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".svg")
    FigureCanvasAgg(figure)  # whatever backend is set
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # it moves a little at every draw, and the bytes with it
    settings = {"svg.fonttype": "none", "svg.hashsalt": "flowlab"}
    with style.context(), matplotlib.rc_context(settings):
        write(_bytes(figure, "png"), paths[0])
        write(_bytes(figure, "svg", metadata={"Date": None}), paths[1])
    return paths


def _bytes(figure: Figure, format: str, **options) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format=format, dpi=style.DPI, bbox_inches=None, **options)
    return buffer.getvalue()
