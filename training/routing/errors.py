"""Errors of routing; each message names the offending value and what is allowed.

RoutingError     settings, rows or a model that routing cannot be trained or measured with
"""

from training.engine.errors import EngineError


class RoutingError(EngineError, ValueError):
    """Routing cannot be trained or measured with these settings, rows or this model."""
