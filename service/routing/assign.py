"""From a unit (user, session, request) to the arm of an experiment, by hashing.

A unit's position in [0, 1) comes from the experiment's salt and the unit's id alone; an arm owns
ranges of positions. Reads and writes nothing; the same everywhere, in every process, online and in
offline analysis. Invariant: an assignment depends on salt, unit and ranges only, so a unit changes
its arm only where the owner of its position changes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

HOLDOUT: Final = "holdout"
"""Arm of units that are kept out of an experiment on purpose."""

NOBODY: Final = -1
"""Owner of a position that no arm has."""

NOWHERE: Final = -1.0
"""Position of a request without a unit."""

Span = tuple[float, float]
"""Positions from the first (inclusive) to the second (exclusive)."""

Reason = Literal["hash", "holdout", "override", "kill_switch"]


class Assignment(msgspec.Struct, frozen=True):
    """What an experiment decided for one request.

    Attributes:
        experiment: Its name.
        arm: Name of the arm, or `holdout`.
        unit: Id of the user, session or request that was hashed; empty when a kill switch or an
            override by header decided and the request names no unit.
        position: Of the unit, in [0, 1); -1 without a unit.
        reason: `hash` is what analysis counts. `override` was asked for by QA, `kill_switch` sends
            everyone to the control arm.
    """

    experiment: str
    arm: str
    unit: str
    position: float
    reason: Reason = "hash"


def position(salt: str, unit: str) -> float:
    """Position of a unit in [0, 1): the upper 53 bits of XXH3-64 of salt, zero byte and id, in UTF-8."""
    return _place(_prefix(salt) + unit.encode())


def positions(salt: str, units: Sequence[str]) -> NDArray[np.float64]:
    """Positions of n units, (n,) float64."""
    prefix = _prefix(salt)
    places = (_place(prefix + unit.encode()) for unit in units)
    return np.fromiter(places, dtype=np.float64, count=len(units))


def _prefix(salt: str) -> bytes:
    return salt.encode() + b"\0"


def _place(text: bytes) -> float:
    return (xxh3_64_intdigest(text) >> 11) * 2.0**-53


class Ranges:
    """Who owns which positions.

    Args:
        spans: By arm; disjoint within [0, 1). What none of them holds belongs to nobody.
    """

    def __init__(self, spans: Sequence[Sequence[Span]]) -> None:
        self.starts: list[float] = [0.0]
        self.owners: list[int] = [NOBODY]
        pieces = sorted((*span, arm) for arm, own in enumerate(spans) for span in own if span[0] < span[1])
        for start, end, arm in pieces:
            if start == self.starts[-1]:
                self.owners[-1] = arm
            else:
                self.starts.append(start)
                self.owners.append(arm)
            self.starts.append(end)
            self.owners.append(NOBODY)

    def owner(self, place: float) -> int:
        """Number of the arm that owns a position, or `NOBODY`."""
        return self.owners[bisect_right(self.starts, place) - 1]

    def owners_of(self, places: NDArray[np.float64]) -> NDArray[np.intp]:
        """The same for (n,) float64 positions: (n,) numbers of arms, `NOBODY` where there is none."""
        owners = np.asarray(self.owners, dtype=np.intp)
        return owners[np.searchsorted(self.starts, places, side="right") - 1]


class Assigner:
    """Assigns the units of one experiment.

    Args:
        experiment: Name.
        salt: Of the positions.
        arms: Names in the order of `spans`.
        spans: Ranges of each arm.
        control: Arm that gets everyone once `killed`.
        holdout_share: Share of units kept out; they are drawn by a hash of their own, so that they
            come from all arms alike.
        holdout_salt: Of the holdout; experiments with the same one keep the same units out.
        overrides: Arm of single units.
        killed: Whether the kill switch is on.
    """

    def __init__(
        self,
        *,
        experiment: str,
        salt: str,
        arms: Sequence[str],
        spans: Sequence[Sequence[Span]],
        control: str,
        holdout_share: float,
        holdout_salt: str,
        overrides: Mapping[str, str],
        killed: bool,
    ) -> None:
        self.experiment = experiment
        self.salt = salt
        self.arms = tuple(arms)
        self.ranges = Ranges(spans)
        self._control = control
        self._holdout_share = holdout_share
        self._holdout_salt = holdout_salt
        self._prefix = _prefix(salt)
        self._holdout_prefix = _prefix(holdout_salt)
        self._overrides = dict(overrides)
        self._killed = killed

    def assign(self, unit: str | None, wanted: str | None = None) -> Assignment | None:
        """The decision for one unit; None when it has no part in the experiment.

        Args:
            unit: Id; None when the request names none.
            wanted: An arm that this request asks for; only a kill switch stands above it.
        """
        raw = b"" if unit is None else unit.encode()
        place = NOWHERE if unit is None else _place(self._prefix + raw)
        if self._killed:
            return Assignment(self.experiment, self._control, unit or "", place, "kill_switch")
        if wanted is not None:
            return Assignment(self.experiment, wanted, unit or "", place, "override")
        if unit is None:
            return None
        if self._overrides and (forced := self._overrides.get(unit)) is not None:
            return Assignment(self.experiment, forced, unit, place, "override")
        if self._holdout_share and _place(self._holdout_prefix + raw) < self._holdout_share:
            return Assignment(self.experiment, HOLDOUT, unit, place, "holdout")
        owner = self.ranges.owner(place)
        return None if owner == NOBODY else Assignment(self.experiment, self.arms[owner], unit, place)

    def assign_many(self, units: Sequence[str]) -> list[str | None]:
        """Arms of n units by hash and holdout alone, as analysis needs them; None without part in it."""
        owners = self.ranges.owners_of(positions(self.salt, units))
        held = np.zeros(len(units), dtype=np.bool_)
        if self._holdout_share:
            held = positions(self._holdout_salt, units) < self._holdout_share
        names: list[str | None] = [*self.arms, None]
        arms = [names[owner] for owner in owners.tolist()]
        return [HOLDOUT if out else arm for arm, out in zip(arms, held.tolist(), strict=True)]


__all__ = [
    "HOLDOUT",
    "NOBODY",
    "NOWHERE",
    "Assigner",
    "Assignment",
    "Ranges",
    "Reason",
    "Span",
    "position",
    "positions",
]
