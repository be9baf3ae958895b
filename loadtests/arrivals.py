"""When requests of an open loop are to start: evenly, or as people come, at a fixed or a changing rate.

Pure. Invariant: starts rise, lie within the plan, and depend on plan and seed alone, never on replies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Spacing = Literal["poisson", "even"]


class PlanError(ValueError):
    """A plan of rates that cannot be followed."""


@dataclass(frozen=True)
class Stretch:
    """A part of a plan, in which the rate changes in a straight line.

    Attributes:
        seconds: How long it lasts.
        first: Requests per second when it begins.
        last: Requests per second when it ends.
    """

    seconds: float
    first: float
    last: float

    @property
    def expected(self) -> float:
        """Requests of the whole stretch."""
        return self.seconds * (self.first + self.last) / 2


def parse_plan(text: str, seconds: float) -> list[Stretch]:
    """A plan of rates from text.

    Args:
        text: `200` for a fixed rate, `50:400` for a straight line, `50:400:400:50` for lines in turn, all of
            one length.
        seconds: Of the whole.

    Raises:
        PlanError: No numbers, a negative one, or no time or requests at all.
    """
    try:
        rates = [float(part) for part in text.split(":")]
    except ValueError:
        raise PlanError(f"'{text}' is no plan; write a rate like 200 or rates like 50:400") from None
    if min(rates) < 0 or max(rates) == 0:
        raise PlanError(f"rates must not be negative nor all 0, got '{text}'")
    if not seconds > 0:
        raise PlanError(f"a plan must last longer than 0 s, got {seconds:g}")
    if len(rates) == 1:
        return [Stretch(seconds, rates[0], rates[0])]
    each = seconds / (len(rates) - 1)
    return [Stretch(each, first, last) for first, last in pairwise(rates)]


def arrivals(plan: Sequence[Stretch], spacing: Spacing, *, seed: int) -> NDArray[np.float64]:
    """Intended starts in seconds from the begin of the plan, (n,) float64, rising.

    A Poisson process whose rate changes is one of rate 1 on a clock that runs at that rate; even spacing puts
    a start at every whole reading of the same clock.
    """
    total = sum(stretch.expected for stretch in plan)
    if spacing == "even":
        clock = np.arange(int(total + 1e-9), dtype=np.float64)
    else:
        rng = np.random.default_rng(seed)
        clock = np.cumsum(rng.exponential(size=int(total + 10 * total**0.5 + 10)))
        clock = clock[clock < total]
    return _times(plan, clock)


def _times(plan: Sequence[Stretch], clock: NDArray[np.float64]) -> NDArray[np.float64]:
    """When the number of expected requests reaches each reading; the inverse of the integral of the rate."""
    times = np.empty_like(clock)
    begun_s = begun = 0.0
    for stretch in plan:
        own = (clock >= begun) & (clock < begun + stretch.expected)
        past = clock[own] - begun
        slope = (stretch.last - stretch.first) / stretch.seconds
        # past = first t + slope t^2 / 2, solved in the form that needs no division by the slope.
        root = np.sqrt(np.maximum(stretch.first**2 + 2 * slope * past, 0.0))
        denominator = stretch.first + root
        times[own] = begun_s + np.divide(
            2 * past, denominator, out=np.zeros_like(past), where=denominator > 0
        )
        begun_s, begun = begun_s + stretch.seconds, begun + stretch.expected
    return times


__all__ = ["PlanError", "Spacing", "Stretch", "arrivals", "parse_plan"]
