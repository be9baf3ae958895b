"""Errors of the training engine; each message names the offending value and what helps.

EngineError
+-- DivergedError      the loss is no longer a finite number
+-- MonitorError       the metric that early stopping watches is undefined on this validation split
+-- CheckpointError    a checkpoint cannot be written, read, or does not belong to this run
+-- CalibrationError   no calibrator can be fitted, or a calibration file is not one
+-- RunError           a run folder is missing a file, incomplete, or already taken
"""


class EngineError(Exception):
    """Base of every expected error of the engine; the command line prints it without a traceback."""


class DivergedError(EngineError):
    """The training loss is NaN or infinite."""


class MonitorError(EngineError):
    """The watched validation metric has no value."""


class CheckpointError(EngineError):
    """A checkpoint cannot be written or read, or is another run's."""


class CalibrationError(EngineError):
    """The calibrator cannot be fitted or read."""


class RunError(EngineError):
    """A run folder cannot be used as asked."""
