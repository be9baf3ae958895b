"""Errors and the warning of clustering; each message names the offending value and what is allowed.

ClusteringError
+-- MatrixError          a matrix or vector of another shape than stated, or with NaN or infinity
+-- RulesError           settings that cannot work together, such as more clusters than domains
+-- TreatmentError       too few treatments tell domains apart, so there is no causal distance
+-- StateError           a saved state is not one, or the state cannot answer yet
+-- AssignmentError      an assignment that is no partition, has unknown names, or cannot be read
+-- GroupingError        a grouping baseline cannot make the groups it is asked for
"""


class ClusteringError(Exception):
    """Base of every expected error of clustering; the command line prints it without a traceback."""


class MatrixError(ClusteringError, ValueError):
    """An array that clustering cannot read."""


class RulesError(ClusteringError, ValueError):
    """Settings that cannot work."""


class TreatmentError(ClusteringError):
    """No causal distance can be taken from these treatments."""


class StateError(ClusteringError):
    """A clustering state that cannot be read or is asked too early."""


class AssignmentError(ClusteringError, ValueError):
    """An assignment that is not valid."""


class GroupingError(ClusteringError, ValueError):
    """Groups that cannot be made."""


class DistanceFallbackWarning(UserWarning):
    """The dependence kernel tells too little apart; the signed distance stands in for this update."""
