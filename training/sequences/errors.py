"""Errors of sequence data and training."""


class SequenceError(Exception):
    """Event logs, sequence configs or sequence runs that cannot be used; the message has the value."""
