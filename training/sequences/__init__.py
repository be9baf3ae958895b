"""Sequences of events over several domains: their data, losses, training and ranking metrics."""
