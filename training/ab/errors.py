"""Errors of the reading of A/B tests; each message names the value and what is allowed.

AbError
+-- PlanValueError   a number of a plan or a simulation is out of range
+-- AbDataError      the rows cannot be read as the experiment that was asked for
"""


class AbError(ValueError):
    """Base of every expected error of this room."""


class PlanValueError(AbError):
    """A number of a plan or a simulation is out of range."""


class AbDataError(AbError):
    """The rows cannot be read as the experiment that was asked for."""


def require_between(value: float, low: float, high: float, *, name: str) -> None:
    """Refuse a number outside the open interval (low, high).

    Raises:
        PlanValueError: It is outside, or not a number.
    """
    if not low < value < high:
        raise PlanValueError(f"{name} must lie between {low:g} and {high:g} (both excluded), got {value:g}")


def require_at_least(value: float, low: float, *, name: str) -> None:
    """Refuse a number below `low`.

    Raises:
        PlanValueError: It is below, or not a number.
    """
    if not value >= low:
        raise PlanValueError(f"{name} must be at least {low:g}, got {value:g}")
