"""Causal domain clustering (CDC): which cluster serves a domain, and which domains train it."""
