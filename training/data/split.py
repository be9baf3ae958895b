"""Cut a log in time, and refuse splits that do not follow each other.

Invariant: unless overlap is allowed, no train row is later than a valid row, and no valid row later than a
test row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from training.data.columns import Ints
from training.data.errors import DescriptionError, LeakError, TableError
from training.data.log import SPLITS, Cuts, Log
from training.data.table import TimeColumn

_BINS = 1 << 20
_UNIT_MS = {"s": 1000.0, "ms": 1.0, "step": 1.0, "us": 0.001}


def plan_cuts(log: Log) -> Cuts | None:
    """Where to cut the log; None when it has a split column.

    Shares are met to one part in 2^20 of the log's span, in bounded memory (two passes over the time column).
    """
    rule, columns = log.description.split, log.description.columns
    if columns.split is not None:
        return None
    if rule.valid_from is not None and rule.test_from is not None:
        cuts = Cuts(moment_ms(rule.valid_from, columns.time), moment_ms(rule.test_from, columns.time))
        if cuts.valid_from_ms >= cuts.test_from_ms:
            raise DescriptionError(
                f"split: valid_from {rule.valid_from} must be before test_from {rule.test_from}"
            )
        return cuts
    name = columns.time.column
    spans = [(int(t.min()), int(t.max())) for t in (b.time_ms() for b in log.batches([name])) if len(t)]
    first, last = min(s[0] for s in spans), max(s[1] for s in spans)
    width = max(1, -(-(last - first + 1) // _BINS))
    counts = np.zeros(_BINS, dtype=np.int64)
    for batch in log.batches([name]):
        counts += np.bincount((batch.time_ms() - first) // width, minlength=_BINS)
    share = np.cumsum(counts) / counts.sum()
    test, valid = rule.test_fraction or 0.0, rule.valid_fraction or 0.0
    edges = [first + width * (int(np.searchsorted(share, 1 - part)) + 1) for part in (valid + test, test)]
    return Cuts(*edges)


def moment_ms(moment: int | str, time: TimeColumn) -> int:
    """A moment of the description as ms since 1970 UTC; text without a zone is in the column's local time.

    Raises:
        DescriptionError: Text that is not ISO 8601.
    """
    if isinstance(moment, int):
        return round(moment * _UNIT_MS[time.unit])
    try:
        parsed = datetime.fromisoformat(moment)
    except ValueError:
        raise DescriptionError(f"split: {moment!r} is no moment; allowed: an integer or ISO 8601") from None
    if parsed.tzinfo is not None:
        return round(parsed.timestamp() * 1000)
    return round(parsed.replace(tzinfo=UTC).timestamp() * 1000 - time.timezone_offset_h * 3_600_000)


@dataclass
class Spans:
    """Rows and time span of each split, gathered batch by batch."""

    rows: Ints = field(default_factory=lambda: np.zeros(len(SPLITS), dtype=np.int64))
    first_ms: Ints = field(default_factory=lambda: np.full(len(SPLITS), np.iinfo(np.int64).max))
    last_ms: Ints = field(default_factory=lambda: np.full(len(SPLITS), np.iinfo(np.int64).min))

    def add(self, split: NDArray[np.int8], time_ms: Ints) -> None:
        """Take in the rows of one batch."""
        for index in range(len(SPLITS)):
            times = time_ms[split == index]
            if len(times):
                self.rows[index] += len(times)
                self.first_ms[index] = min(self.first_ms[index], times.min())
                self.last_ms[index] = max(self.last_ms[index], times.max())

    def check(self, *, allow_overlap: bool) -> bool:
        """Whether the splits follow each other in time.

        Raises:
            TableError: A split has no rows.
            LeakError: They overlap, and that is not allowed.
        """
        for name, rows in zip(SPLITS, self.rows.tolist(), strict=True):
            if rows == 0:
                counts = dict(zip(SPLITS, self.rows.tolist(), strict=True))
                raise TableError(f"split: no {name} rows; found {counts}")
        for a in range(len(SPLITS) - 1):
            if self.last_ms[a] > self.first_ms[a + 1]:
                if allow_overlap:
                    return False
                raise LeakError(
                    f"split: {SPLITS[a]} reaches to {self.last_ms[a]} ms, after {SPLITS[a + 1]} starts at "
                    f"{self.first_ms[a + 1]} ms; splits must follow each other in time "
                    "(split: {allow_overlap: true} takes them as they are)"
                )
        return True
