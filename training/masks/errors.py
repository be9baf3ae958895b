"""Errors of the mask search; each message names the offending value and what is allowed.

MaskSearchError     settings, rows or a model that masks cannot be searched with
"""

from training.engine.errors import EngineError


class MaskSearchError(EngineError, ValueError):
    """Masks cannot be searched with these settings, rows or this model."""
