"""The training loop: optimisers, checkpoints, exact resume, evaluation."""
