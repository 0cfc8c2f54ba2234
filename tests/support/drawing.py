"""What tests ask of drawn figures."""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.legend import Legend
from matplotlib.text import Text


def labelled(figure, label):
    """The artists that carry a label, over all panels."""
    found = [a for ax in figure.axes for a in [*ax.containers, *ax.lines, *ax.collections]]
    return [artist for artist in found if artist.get_label() == label]


def assert_readable(figure):
    """All text lies inside the figure, at 8 pt or more, and no two pieces of it overlap.

    Ticks outside of the axes are left out: they are not drawn.
    """
    figure.draw_without_rendering()
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                if not low <= tick.get_loc() <= high:
                    tick.label1.set_visible(False)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    boxes = []
    for text in figure.findobj(Text):
        if not (text.get_visible() and text.get_text()):
            continue
        assert text.get_fontsize() >= 8
        box = Text.get_window_extent(text, renderer)  # of an annotation without its arrow
        boxes.append((text.get_text(), box))
        assert box.x0 >= 0 and box.y0 >= 0, text
        assert box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, text
    for i, (a, first) in enumerate(boxes):
        for b, second in boxes[i + 1 :]:
            wide = min(first.x1, second.x1) - max(first.x0, second.x0)
            high = min(first.y1, second.y1) - max(first.y0, second.y0)
            assert wide <= 0.5 or high <= 0.5, f"{a!r} overlaps {b!r}"
    for legend in figure.findobj(Legend):
        for ax in figure.axes:
            assert not legend.get_window_extent(renderer).overlaps(ax.bbox)
