"""Benchmarks: one file a subject, each a function that returns a table of ratios."""
