"""Bundles in memory: opening, warming and holding the graphs that serve."""
