"""Figures: tidy tables in, matplotlib figures out; nothing is measured or predicted here."""

from flowlab.figures.by_layer import caption, profiles
from flowlab.figures.files import save

__all__ = ["caption", "profiles", "save"]
