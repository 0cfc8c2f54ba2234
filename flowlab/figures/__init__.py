"""Figures: tidy tables in, matplotlib figures out; nothing is measured or predicted here."""

from flowlab.figures.files import save
from flowlab.figures.layer_profiles import caption, profiles

__all__ = ["caption", "profiles", "save"]
