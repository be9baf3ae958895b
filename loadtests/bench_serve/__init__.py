"""`make bench-serve`: what the service costs beside the bare graph, in one interleaved run."""
