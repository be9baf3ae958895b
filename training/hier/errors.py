"""Errors of pre-training and onboarding; each message names the offending value and what is allowed.

HierError
+-- GraphError      items, triples or clicks cannot be made a graph
+-- OnboardError    a domain cannot be registered, or not scored without clicks
"""


class HierError(Exception):
    """Base of every expected error here; the command line prints it without a traceback."""


class GraphError(HierError):
    """There is no usable graph in what was given."""


class OnboardError(HierError):
    """A domain cannot be onboarded."""
