"""Routing of rows to experts in a training run: warm-up of its loss, and what is measured of it."""
