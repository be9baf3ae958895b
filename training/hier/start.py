"""Where a new domain's head starts: weights that source domains gave in its part, see `rehearsal`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Start:
    """How a new domain starts.

    Attributes:
        head: (9 + d,) weights in log odds: with it the slope of a domain's line is 1.
        prior: Of its counts.
        strength: Pull of its head to `head`.
    """

    head: tuple[float, ...]
    prior: float
    strength: float

    @staticmethod
    def of(head: Sequence[float], prior: float, strength: float) -> Start:
        """From what a file says."""
        return Start(tuple(float(weight) for weight in head), float(prior), float(strength))
