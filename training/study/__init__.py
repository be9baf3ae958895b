"""Comparisons of models over seeds: plan, run, compare, report."""
