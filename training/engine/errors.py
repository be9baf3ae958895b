"""Errors of the training engine; each message names the offending value and what helps.

EngineError
+-- DivergedError      the loss is no longer a finite number
+-- MonitorError       the metric that early stopping watches is undefined on this validation split
+-- CheckpointError    a checkpoint cannot be written, read, or does not belong to this run
+-- CalibrationError   no calibrator can be fitted, or a calibration file is not one
+-- RunError           a run folder is missing a file, incomplete, or already taken
+-- RankError          several processes cannot be made one group, or a command does not go with them
+-- PeerError          another process of the group failed
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


class RankError(EngineError):
    """Several processes cannot work as asked."""


class PeerError(EngineError):
    """Another process of the group failed."""
