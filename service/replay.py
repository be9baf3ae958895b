"""Scores exposures again with another bundle, or the same one, and says how far the scores are apart.

Reads exposure files (`exposures-*.jsonl`, those still open too) line by line; keeps figures per domain and
arm, not records. What was sent as an override of features is not in the record, and stored features change:
whether the encoded rows are those that were scored then is told by their digest, and counted. Invariant:
every line is either replayed or counted under the reason why it is not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from service.api.expose import rows_digest
from service.contract.events import EXPOSURES, ExposureRecord, decode_exposure
from service.errors import (
    DeadlineExceeded,
    GraphRunError,
    InvalidRequest,
    ReplayError,
    UnknownDomain,
)
from service.scoring.admission import Deadline
from service.scoring.query import Query
from service.scoring.scorer import Scorer

NO_ARM: Final = "none"
OPEN: Final = ".open"
DEADLINE_MS: Final = 60_000

REASONS: Final = {
    "torn": "unfinished last line of an open file",
    "unreadable": "not an exposure record",
    "degraded": "was scored with defaults in place of features that could not be read",
    "too_many_items": "more candidates than max_items",
    "unknown_domain": "the bundle does not score its domain",
    "invalid": "its context does not fit the bundle's schema",
    "features_unavailable": "stored features could not be read now",
    "features_changed": "encoded rows are not those of then, and only equal ones were asked for",
    "failed": "the graph failed, or took longer than a minute",
}
"""Why a record is not replayed."""


@dataclass
class Group:
    """Figures of one domain and arm.

    Attributes:
        requests: Replayed.
        items: Candidates of those.
        same_features: Requests whose encoded rows are those of then.
        sum_difference: Of |score now - score then| over candidates.
        max_difference: The largest.
        sum_correlation: Of rank correlations over requests that have one.
        correlated: Requests that have one: at least two candidates and no score shared by all.
    """

    requests: int = 0
    items: int = 0
    same_features: int = 0
    sum_difference: float = 0.0
    max_difference: float = 0.0
    sum_correlation: float = 0.0
    correlated: int = 0

    def add(self, then: NDArray[np.float64], now: NDArray[np.float64], *, same: bool) -> None:
        """Take one request: (N,) float64 scores of then and now."""
        difference = np.abs(now - then)
        self.requests += 1
        self.items += len(then)
        self.same_features += same
        self.sum_difference += float(difference.sum())
        self.max_difference = max(self.max_difference, float(difference.max()))
        correlation = rank_correlation(then, now)
        if correlation is not None:
            self.sum_correlation += correlation
            self.correlated += 1

    def row(self) -> dict[str, Any]:
        """The figures as one line of a table; None where there is nothing to take a mean of."""
        return {
            "requests": self.requests,
            "items": self.items,
            "same_features": self.same_features,
            "mean_abs_difference": self.sum_difference / self.items if self.items else None,
            "max_abs_difference": self.max_difference,
            "mean_rank_correlation": self.sum_correlation / self.correlated if self.correlated else None,
        }


@dataclass
class ReplayResult:
    """What a replay found.

    Attributes:
        groups: By domain and arm (`experiment/arm`, `none` outside of experiments).
        left_out: Records that were not replayed, by reason.
    """

    groups: dict[tuple[str, str], Group] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def requests(self) -> int:
        """Replayed in all."""
        return sum(group.requests for group in self.groups.values())

    @property
    def max_difference(self) -> float:
        """Largest difference of a score anywhere."""
        return max((group.max_difference for group in self.groups.values()), default=0.0)

    def rows(self) -> list[dict[str, Any]]:
        """A line for each domain and arm, in order."""
        return [
            {"domain": domain, "arm": arm, **group.row()}
            for (domain, arm), group in sorted(self.groups.items())
        ]


class Replay:
    """Replays records with one scorer.

    Args:
        scorer: Of the bundle.
        max_items: Most candidates of a request.
        same_features_only: Leave out requests whose encoded rows are not those of then.
    """

    def __init__(self, scorer: Scorer, *, max_items: int, same_features_only: bool = False) -> None:
        self.result = ReplayResult()
        self._scorer = scorer
        self._max_items = max_items
        self._same_features_only = same_features_only

    async def line(self, line: bytes) -> None:
        """Replay one line of a file, or count why not."""
        reason = await self._replay(line)
        if reason is not None:
            self.result.left_out[reason] += 1

    async def _replay(self, line: bytes) -> str | None:
        record = read_record(line)
        if record is None:
            return "unreadable" if line.endswith(b"\n") else "torn"
        if record.degraded:
            return "degraded"
        if len(record.items) > self._max_items:
            return "too_many_items"
        try:
            scored = await self._scorer.score(query_of(record), Deadline(DEADLINE_MS))
        except UnknownDomain:
            return "unknown_domain"
        except InvalidRequest:
            return "invalid"
        except (DeadlineExceeded, GraphRunError):
            return "failed"
        if scored.degraded:
            return "features_unavailable"
        same = rows_digest(scored) == record.features
        if self._same_features_only and not same:
            return "features_changed"
        arm = NO_ARM if record.arm is None else f"{record.experiment}/{record.arm}"
        group = self.result.groups.setdefault((record.domain, arm), Group())
        then = np.array(record.scores, dtype=np.float32).astype(np.float64)
        group.add(then, scored.scores.astype(np.float64), same=same)
        return None


def read_record(line: bytes) -> ExposureRecord | None:
    """The record of a line; None where it is none, or has not one score per candidate."""
    try:
        record = decode_exposure(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return record if record.items and len(record.items) == len(record.scores) else None


def query_of(record: ExposureRecord) -> Query:
    """What was asked, as far as the record has it: ids and context."""
    return Query(
        domain=record.domain,
        user_id=record.user,
        user_features={},
        history=None,
        context=record.context,
        item_ids=record.items,
        item_features={},
        by_column=True,
    )


def exposure_files(path: Path) -> list[Path]:
    """The files of a folder by name, which is by time; or the one that is named.

    Raises:
        ReplayError: There is none.
    """
    if path.is_file():
        return [path]
    found = sorted([*path.glob(f"{EXPOSURES}-*.jsonl"), *path.glob(f"{EXPOSURES}-*{OPEN}")])
    if not found:
        raise ReplayError(f"{path}: no {EXPOSURES}-*.jsonl file there")
    return found


def lines_of(paths: Iterable[Path]) -> Iterator[bytes]:
    """Lines of files in order, with their line ends."""
    for path in paths:
        with path.open("rb") as file:
            yield from file


def rank_correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float | None:
    """Spearman's rank correlation of two (N,) float64, ties at their mean rank.

    None where it has no value: fewer than two candidates, or one side with a single score for all.
    """
    ranks = [_ranks(values) for values in (first, second)]
    moved = [own - own.mean() for own in ranks]
    scale = float(np.sqrt((moved[0] ** 2).sum() * (moved[1] ** 2).sum()))
    return None if scale == 0.0 else float((moved[0] * moved[1]).sum()) / scale


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) float64 ranks from 1, ties at the mean of the places that they share."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2
    ranks: NDArray[np.float64] = mean_rank[place]
    return ranks


__all__ = [
    "REASONS",
    "Group",
    "Replay",
    "ReplayResult",
    "exposure_files",
    "lines_of",
    "query_of",
    "rank_correlation",
    "read_record",
]
