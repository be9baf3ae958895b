"""Online click-through scoring: bundles in, features joined, calibrated probabilities out. No torch."""
