"""Errors of export. Expected ones: the CLI prints their text without a traceback."""

from __future__ import annotations


class ExportError(Exception):
    """Base of the errors of export."""


class RunError(ExportError):
    """A run folder lacks something a bundle needs."""


class ParityError(ExportError):
    """The exported graph does not give the probabilities of the trained model."""
