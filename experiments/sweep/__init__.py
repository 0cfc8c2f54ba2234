"""Sweeps: many conditions, computed by several processes, resumed by content."""
