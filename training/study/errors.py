"""Errors of studies; each message names the file or folder and what helps.

StudyError
+-- PlanError       a study file cannot be used as it is
+-- StudyRunError   a folder holds a run of something else, or runs of the study failed
"""


class StudyError(Exception):
    """Base of every expected error of a study; the command line prints it without a traceback."""


class PlanError(StudyError):
    """A study file that cannot be read, contradicts itself or names what is not there."""


class StudyRunError(StudyError):
    """Runs that cannot be made, kept or compared."""
