"""Metrics and logs, each declared in one place."""
