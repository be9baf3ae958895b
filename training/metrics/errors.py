"""The one exception the metrics raise.

Invariant: an input that a metric cannot be computed from raises here, with the offending value in the
message; a metric that is merely undefined (one class only, nothing observed) is nan, never an error.
"""


class MetricError(ValueError):
    """Input that no metric can be computed from; the message names the array, the value and the rule."""
