"""The training loop: optimisers, checkpoints, exact resume, evaluation, calibration.

`fit.run_training` reads a typed config and a prepared data set and writes a run folder. Invariant: the
weights left in the run folder are the best ones on validation, whatever ended the run.
"""
