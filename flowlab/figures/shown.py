"""Figures that a notebook shows when they end a cell."""

from io import BytesIO

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


class Shown(Figure):
    """A figure that displays itself, whether or not pyplot has been imported."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """Its PNG, drawn twice as fine as it is shown: 100 pixels of the page to an inch."""
        buffer = BytesIO()
        FigureCanvasAgg(self).print_figure(buffer, format="png", dpi=200, bbox_inches=None)
        return buffer.getvalue(), {"width": round(100 * self.get_figwidth())}
