"""The routing file: experiments by domain, and routing of domains by how much data they have.

Reads YAML. Invariant: a `RoutingConfig` that exists has experiments whose arms own disjoint ranges,
at most one experiment per domain, and names that may stand as metric labels.

How shares become ranges, so that growing an arm's share moves nobody out of it:
one or two arms grow towards each other, the first from 0 upwards and the second from 1 downwards;
more arms each start at the left edge of a room of their own, whose width (`room`, by default an
even part) is fixed however the share changes; or an arm lists its `ranges` itself.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.errors import RoutingError
from service.routing.assign import HOLDOUT, Span

Unit = Literal["user", "session", "request"]

PARTS: Final = 1_000_000
"""Ranges begin and end at whole millionths, so that they meet exactly."""

RESERVED: Final = (HOLDOUT, "none", "other")
MAX_PROBLEMS: Final = 5

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")]
Share = Annotated[float, Field(ge=0, le=1)]
Reference = Annotated[str, Field(min_length=1, max_length=64)]
Salt = Annotated[str, Field(min_length=1, max_length=100)]


class _Strict(BaseModel):
    """No unknown keys, no conversion of types, no change once made."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ArmConfig(_Strict):
    """One arm.

    Attributes:
        name: Unique within the experiment.
        share: Of the units.
        room: Largest share the arm is meant to grow to; what it does not use belongs to nobody.
        ranges: Instead of a share: `[from, to]` pairs of positions in [0, 1].
        bundle: Alias, or (part of) the id of a bundle; without one, what the domain gets anyway.
    """

    name: Name
    share: Share | None = None
    room: Share | None = None
    ranges: list[Annotated[list[Share], Field(min_length=2, max_length=2)]] | None = None
    bundle: Reference | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if self.name in RESERVED:
            raise ValueError(f"arm '{self.name}': the name is reserved; so are {', '.join(RESERVED)}")
        if (self.share is None) == (self.ranges is None):
            raise ValueError(f"arm '{self.name}' needs either a share or ranges")
        if self.ranges is not None and self.room is not None:
            raise ValueError(f"arm '{self.name}' lists ranges; a room goes with a share")
        for start, end in self.ranges or []:
            if start >= end:
                raise ValueError(f"arm '{self.name}': range [{start}, {end}] does not rise")
        return self


class HoldoutConfig(_Strict):
    """Units that take part in no arm.

    Attributes:
        share: Of the units.
        salt: Experiments with the same one hold the same units out; by default one of its own.
    """

    share: Share
    salt: Salt | None = None


class ShadowConfig(_Strict):
    """A bundle that scores a sample of the requests once they are answered; nobody sees its scores.

    Attributes:
        bundle: As of an arm.
        share: Of the requests.
        budget_ms: Time of one shadow run, waiting included.
        max_waiting: Runs that may wait; more are dropped.
    """

    bundle: Reference
    share: Annotated[float, Field(gt=0, le=1)]
    budget_ms: Annotated[int, Field(ge=1, le=10_000)] = 100
    max_waiting: Annotated[int, Field(ge=1, le=1000)] = 16


class ExperimentConfig(_Strict):
    """One experiment.

    Attributes:
        name: Unique.
        domains: `all` that the default bundle lists, or names.
        unit: What is assigned: `user` by its id; `session` by the request's `session_id`, or by the
            user without one; `request` by its request id.
        salt: Of the hash. A new one draws anew; two experiments may not share one.
        arms: In an order that should not change, since their places follow from it.
        control: Arm that everyone gets under the kill switch; the first one by default.
        holdout: None keeps nobody out.
        overrides: Arm of single units, for QA.
        kill_switch: Sends everyone to the control arm.
        shadow: None for none.
    """

    name: Name
    domains: Literal["all"] | Annotated[list[str], Field(min_length=1)]
    unit: Unit
    salt: Salt
    arms: Annotated[list[ArmConfig], Field(min_length=1, max_length=20)]
    control: Name | None = None
    holdout: HoldoutConfig | None = None
    overrides: dict[str, Name] = {}
    kill_switch: bool = False
    shadow: ShadowConfig | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [arm.name for arm in self.arms]
        if twice := _repeated(names):
            raise ValueError(f"experiment '{self.name}' has the arm '{twice}' twice")
        if self.control is not None and self.control not in names:
            raise ValueError(f"experiment '{self.name}': control '{self.control}' is none of {names}")
        for unit, arm in self.overrides.items():
            if arm not in names:
                raise ValueError(
                    f"experiment '{self.name}': the override of '{unit}' names arm '{arm}', "
                    f"which is none of {names}"
                )
        if self.domains != "all" and (twice := _repeated(self.domains)):
            raise ValueError(f"experiment '{self.name}' lists the domain '{twice}' twice")
        _check_disjoint(self)
        return self

    @property
    def control_arm(self) -> str:
        """Name of the arm under the kill switch."""
        return self.control or self.arms[0].name

    @property
    def spans(self) -> list[list[Span]]:
        """Ranges of positions by arm."""
        return [[(start / PARTS, end / PARTS) for start, end in own] for own in _layout(self)]


class MaturityConfig(_Strict):
    """Routing by the labelled rows n of a domain, as the default bundle's manifest counts them.

    No rows: the `zero_shot` bundle. Fewer than `mature_rows`: the default bundle's graph, blended on
    logits with the `few_shot` bundle at weight prior_rows / (prior_rows + n). More: the default
    bundle's graph of the domain or its cluster.

    Attributes:
        zero_shot: Alias or id.
        few_shot: The same; the zero-shot bundle by default.
        mature_rows: Rows from which nothing is blended in.
        prior_rows: How many rows the few-shot score is worth.
    """

    zero_shot: Reference
    few_shot: Reference | None = None
    mature_rows: Annotated[int, Field(ge=1)] = 20_000
    prior_rows: Annotated[float, Field(gt=0)] = 5_000.0


class RoutingConfig(_Strict):
    """The whole file.

    Attributes:
        version: Of the format.
        experiments: At most one per domain; one that names a domain stands above one for `all`.
        maturity: None routes every domain to the default bundle.
        kill_switch: That of every experiment.
        override_header: Header in which a request may ask for an arm; None takes no notice of any.
    """

    version: Literal[1]
    experiments: list[ExperimentConfig] = []
    maturity: MaturityConfig | None = None
    kill_switch: bool = False
    override_header: Annotated[str, Field(pattern=r"^x-[a-z0-9-]{1,60}$")] | None = None

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if twice := _repeated([experiment.name for experiment in self.experiments]):
            raise ValueError(f"two experiments are named '{twice}'")
        if twice := _repeated([experiment.salt for experiment in self.experiments]):
            raise ValueError(f"two experiments have the salt '{twice}'; their arms would go together")
        owner: dict[str, str] = {}
        for experiment in self.experiments:
            for domain in ("all",) if experiment.domains == "all" else experiment.domains:
                other = owner.setdefault(domain, experiment.name)
                if other != experiment.name:
                    what = "all domains" if domain == "all" else f"domain '{domain}'"
                    raise ValueError(f"{what}: both '{other}' and '{experiment.name}' claim them")
        return self

    @property
    def references(self) -> list[str]:
        """Every alias or id that the file names, once, sorted."""
        arms = [arm.bundle for experiment in self.experiments for arm in experiment.arms]
        shadows = [e.shadow.bundle for e in self.experiments if e.shadow is not None]
        mature = [] if self.maturity is None else [self.maturity.zero_shot, self.maturity.few_shot]
        return sorted({name for name in (*arms, *shadows, *mature) if name is not None})


def digest_of(raw: bytes) -> str:
    """Short digest of a file's text, for labels and logs: 12 hex digits of its sha256."""
    return hashlib.sha256(raw).hexdigest()[:12]


def parse_routing(raw: bytes, source: Path) -> RoutingConfig:
    """The configuration that a file's text holds.

    Raises:
        RoutingError: It is no YAML, or not what the model above takes; the message names the places.
    """
    try:
        data = yaml.load(raw, Loader=_UniqueKeys)  # noqa: S506 - a SafeLoader that refuses double keys
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RoutingError(f"{source}: is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise RoutingError(f"{source}: must hold a mapping with `version: 1`, got {type(data).__name__}")
    try:
        return RoutingConfig.model_validate(data)
    except ValidationError as error:
        problems = [_told(problem) for problem in error.errors()[:MAX_PROBLEMS]]
        raise RoutingError(f"{source}: {'; '.join(problems)}") from None


class _UniqueKeys(yaml.SafeLoader):
    """YAML whose mappings may not name a key twice, of which the plain loader would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 - as in the base class
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := _repeated(keys):
            raise yaml.constructor.ConstructorError(None, None, f"key '{twice}' twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _told(problem: Any) -> str:
    """One line of a refusal."""
    path = ""
    for part in problem["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    text = str(problem["msg"]).removeprefix("Value error, ")
    return f"{path[1:]}: {text}" if path else text


def _layout(experiment: ExperimentConfig) -> list[list[tuple[int, int]]]:
    """Ranges by arm in millionths; see the module's docstring."""
    arms = experiment.arms
    if any(arm.ranges is not None for arm in arms):
        return [[(_parts(start), _parts(end)) for start, end in arm.ranges or []] for arm in arms]
    shares = [_parts(arm.share or 0.0) for arm in arms]
    if len(arms) <= 2 and all(arm.room is None for arm in arms):
        return [[(0, shares[0])], *([(PARTS - share, PARTS)] for share in shares[1:])]
    ends, left = [], 0
    for room in _rooms(experiment):
        ends.append(left)
        left += room
    return [[(edge, edge + share)] for edge, share in zip(ends, shares, strict=True)]


def _rooms(experiment: ExperimentConfig) -> list[int]:
    """Width of each arm's room; those that state none share evenly what the others leave."""
    given = [None if arm.room is None else _parts(arm.room) for arm in experiment.arms]
    rest = PARTS - sum(room for room in given if room is not None)
    even = max(0, rest) // max(1, given.count(None))
    return [even if room is None else room for room in given]


def _parts(share: float) -> int:
    return round(share * PARTS)


def _check_disjoint(experiment: ExperimentConfig) -> None:
    """Shares fit into their rooms and these into 1; ranges do not overlap."""
    name, arms = experiment.name, experiment.arms
    listed = [arm.ranges is not None for arm in arms]
    if any(listed):
        if not all(listed):
            raise ValueError(f"experiment '{name}': either all arms list ranges or all have shares")
    else:
        total = sum(_parts(arm.share or 0.0) for arm in arms)
        if total > PARTS:
            raise ValueError(f"experiment '{name}': shares add up to {total / PARTS:g}, at most 1 is there")
        if len(arms) > 2 or any(arm.room is not None for arm in arms):
            _check_rooms(experiment)
    layout = zip(arms, _layout(experiment), strict=True)
    pieces = sorted((*span, arm.name) for arm, own in layout for span in own)
    for (_, end, first), (start, _, second) in pairwise(pieces):
        if start < end:
            raise ValueError(
                f"experiment '{name}': ranges of '{first}' and '{second}' overlap at {start / PARTS:g}"
            )


def _check_rooms(experiment: ExperimentConfig) -> None:
    rooms = _rooms(experiment)
    if sum(rooms) > PARTS:
        raise ValueError(
            f"experiment '{experiment.name}': rooms add up to {sum(rooms) / PARTS:g}, at most 1 is there"
        )
    for arm, room in zip(experiment.arms, rooms, strict=True):
        if _parts(arm.share or 0.0) > room:
            raise ValueError(
                f"experiment '{experiment.name}': arm '{arm.name}' has share {arm.share:g} in a room of "
                f"{room / PARTS:g}; give the arms a `room` each, which should then stay as it is"
            )


def _repeated(names: list[str]) -> str | None:
    name, count = next(iter(Counter(names).most_common(1)), (None, 0))
    return name if count > 1 else None


__all__ = [
    "ArmConfig",
    "ExperimentConfig",
    "HoldoutConfig",
    "MaturityConfig",
    "RoutingConfig",
    "ShadowConfig",
    "Unit",
    "digest_of",
    "parse_routing",
]
