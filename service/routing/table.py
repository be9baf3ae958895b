"""The routing file turned into look-ups: domain -> experiment -> arm -> who answers.

Built anew for every change and then only read. Invariant: every domain of an experiment is scored by
the bundle of each of its arms, so that the arm never decides between an answer and a 404.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from service.errors import InvalidRequest
from service.routing.assign import Assigner, Assignment
from service.routing.config import RoutingConfig, Unit
from service.routing.shadow import Shadow
from service.routing.target import Target


class Choice(NamedTuple):
    """The decision for one request.

    Attributes:
        target: Who answers.
        assignment: None where no experiment has a part in it.
        shadow: To offer the answered request to.
    """

    target: Target
    assignment: Assignment | None
    shadow: Shadow | None


@dataclass(frozen=True, slots=True)
class RunningExperiment:
    """One experiment, ready to decide.

    Attributes:
        assigner: Of its units.
        unit: What they are.
        shadow: None for none.
    """

    assigner: Assigner
    unit: Unit
    shadow: Shadow | None


@dataclass(frozen=True, slots=True)
class DomainRoute:
    """One domain.

    Attributes:
        plain: Without an experiment, and for units that have no part in it.
        experiment: None for none.
        arms: Who answers by arm, `holdout` included.
    """

    plain: Choice
    experiment: RunningExperiment | None
    arms: Mapping[str, Target]


class RoutingTable:
    """All decisions of one routing file.

    Args:
        config: The file.
        digest: Of its text.
        domains: Routes by domain.
        unlisted: Of all others.
        shadows: To close in the end.
    """

    def __init__(
        self,
        config: RoutingConfig,
        digest: str,
        domains: Mapping[str, DomainRoute],
        unlisted: DomainRoute,
        shadows: Iterable[Shadow],
    ) -> None:
        self.config = config
        self.digest = digest
        self.domains = domains
        self.unlisted = unlisted
        self.shadows = tuple(shadows)
        header = config.override_header
        self._header = None if header is None else header.encode("ascii")

    def choose(
        self,
        domain: str,
        *,
        user_id: str | int | None,
        session_id: str | None,
        request_id: str,
        headers: Iterable[tuple[bytes, bytes]],
    ) -> Choice:
        """Decide one request.

        Args:
            domain: As sent.
            user_id: None for an anonymous user.
            session_id: None where the request names none; then the user stands for it.
            request_id: As it will be echoed.
            headers: Of the request; read only where a header may ask for an arm.

        Raises:
            InvalidRequest: The header asks for an arm that the experiment does not have.
        """
        route = self.domains.get(domain, self.unlisted)
        running = route.experiment
        if running is None:
            return route.plain
        unit: str | int | None
        if running.unit == "request":
            unit = request_id
        elif running.unit == "session" and session_id:
            unit = session_id
        else:
            unit = user_id
        if unit.__class__ is int:
            unit = str(unit)
        wanted = None if self._header is None else self._wanted(headers, running)
        assignment = running.assigner.assign(unit, wanted)  # type: ignore[arg-type]
        if assignment is None:
            return route.plain
        return Choice(route.arms[assignment.arm], assignment, running.shadow)

    def describe(self) -> str:
        """One sentence for operators: how many domains go where."""
        routes = self.domains.values()
        blended = sum(route.plain.target.blend is not None for route in routes)
        by_alias = Counter(route.plain.target.scorer.loaded.alias for route in routes)
        running = sum(route.experiment is not None for route in routes)
        where = ", ".join(f"{count} to {alias}" for alias, count in sorted(by_alias.items()))
        return f"{len(self.domains)} domains: {where}; {blended} blended; {running} in an experiment"

    def close(self) -> None:
        """Drop waiting shadow runs."""
        for shadow in self.shadows:
            shadow.close()

    def _wanted(self, headers: Iterable[tuple[bytes, bytes]], running: RunningExperiment) -> str | None:
        """The arm that a header asks for."""
        for name, value in headers:
            if name == self._header:
                arm = value.decode("latin-1")
                if arm not in running.assigner.arms:
                    raise InvalidRequest(
                        f"experiment '{running.assigner.experiment}' has no arm {arm[:60]!r}; "
                        f"it has {', '.join(running.assigner.arms)}",
                        field=name.decode("ascii"),
                        value=arm[:60],
                    )
                return arm
        return None


__all__ = ["Choice", "DomainRoute", "RoutingTable", "RunningExperiment"]
