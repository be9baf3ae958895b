"""Data sets: generators, preparation, and the loaders that feed training."""
