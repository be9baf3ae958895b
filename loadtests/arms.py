"""Do replies put units into arms as the routing file says: in its shares, and nobody into two?

Pure, over recorded calls. A unit counts once, however often it asks: requests of one unit go together, so a
test over requests would find mismatches that are none (Fabijan et al., KDD 2019). Units that a file
overrides, the holdout and experiments under a kill switch say nothing about shares and do not count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import chisquare  # type: ignore[import-untyped]

from loadtests.record import Call
from service.routing.assign import HOLDOUT
from service.routing.config import ExperimentConfig, RoutingConfig

LEAST_EXPECTED = 5.0
"""Units that every arm should be expected to have, below which the chi-square distribution does not hold."""


@dataclass(frozen=True)
class ArmCheck:
    """What is found of one experiment.

    Attributes:
        experiment: Its name.
        units: By arm, arms of the file in its order.
        expected: By arm, what the shares promise of as many units.
        p_value: Of the sample-ratio test; None where there are too few units, or only one arm.
        num_switched: Units seen in more than one arm.
        strangers: Arms in replies that the file does not have.
    """

    experiment: str
    units: dict[str, int]
    expected: dict[str, float]
    p_value: float | None
    num_switched: int
    strangers: tuple[str, ...]

    def problems(self, least_p_value: float) -> list[str]:
        """What is wrong, one line each."""
        found = []
        if self.p_value is not None and self.p_value < least_p_value:
            expected = {arm: round(count, 1) for arm, count in self.expected.items()}
            found.append(
                f"experiment '{self.experiment}' has units {self.units}, its shares promise {expected}: "
                f"p = {self.p_value:.2g}, at least {least_p_value:g}"
            )
        if self.num_switched:
            found.append(
                f"experiment '{self.experiment}' put {self.num_switched} units into more than one arm"
            )
        if self.strangers:
            found.append(f"experiment '{self.experiment}' has no arm '{self.strangers[0]}', but replies do")
        return found


def check_arms(calls: Sequence[Call], routing: RoutingConfig) -> list[ArmCheck]:
    """Check every experiment of a file that counts, by the good replies of a run."""
    return [
        check_experiment(calls, experiment)
        for experiment in routing.experiments
        if not (routing.kill_switch or experiment.kill_switch)
    ]


def check_experiment(calls: Sequence[Call], experiment: ExperimentConfig) -> ArmCheck:
    """Check one experiment."""
    arms_of: dict[str, set[str]] = {}
    for call in calls:
        if call.experiment == experiment.name and call.arm is not None:
            unit = unit_of(call, experiment)
            if unit not in experiment.overrides:
                arms_of.setdefault(unit, set()).add(call.arm)
    names = [arm.name for arm in experiment.arms]
    seen = Counter(next(iter(arms)) for arms in arms_of.values() if len(arms) == 1)
    shares = {
        name: sum(end - start for start, end in spans)
        for name, spans in zip(names, experiment.spans, strict=True)
    }
    units = {name: seen[name] for name in names}
    total = sum(units.values())
    expected = {name: total * share / sum(shares.values()) for name, share in shares.items()}
    return ArmCheck(
        experiment=experiment.name,
        units=units,
        expected=expected,
        p_value=_p_value(units, expected),
        num_switched=sum(len(arms) > 1 for arms in arms_of.values()),
        strangers=tuple(sorted(set(seen) - set(names) - {HOLDOUT})),
    )


def unit_of(call: Call, experiment: ExperimentConfig) -> str:
    """What an experiment assigns a call by."""
    if experiment.unit == "request":
        return call.request_id
    return call.session or call.user if experiment.unit == "session" else call.user


def _p_value(units: dict[str, int], expected: dict[str, float]) -> float | None:
    """Pearson's chi-square test; arms without a share must be empty and are left out."""
    if any(units[name] for name, count in expected.items() if count == 0):
        return 0.0
    counted = [name for name, count in expected.items() if count > 0]
    if len(counted) < 2 or min(expected[name] for name in counted) < LEAST_EXPECTED:
        return None
    return float(chisquare([units[name] for name in counted], [expected[name] for name in counted]).pvalue)


__all__ = ["ArmCheck", "check_arms", "check_experiment", "unit_of"]
