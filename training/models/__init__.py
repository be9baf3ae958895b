"""Domain-aware click models, one file per method, over shared building blocks."""
