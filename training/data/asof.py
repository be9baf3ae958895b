"""Counts per key as of any moment: what was known strictly before a period began.

`CountBuilder` takes rows in any order; `AsOfCounts` answers by two binary searches into running sums.
Invariant: an answer for period t adds up only rows whose period is below t, so neither the row itself nor
anything of its own period or later can change it. Counts are int64 and exact.

Letters: n rows, C distinct codes, P entries (distinct code and period), M measures (rows, then each target).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from training.data.columns import Ints

END = np.iinfo(np.int64).max
"""A period after every other: the end of train."""
_MERGE_ROWS = 500_000


@dataclass
class CountBuilder:
    """Sums of M measures per (code, period); holds one row per distinct pair and a bounded tail."""

    num_measures: int
    _parts: list[tuple[Ints, Ints, Ints]] = field(default_factory=list)
    _pending: int = 0

    def add(self, codes: Ints, periods: Ints, measures: Ints) -> None:
        """Take in rows; codes below 0 (no key) are left out.

        Args:
            codes: (n,) int64.
            periods: (n,) int64.
            measures: (n, M) integers.
        """
        known = codes >= 0
        part = _summed(codes[known], periods[known], measures[known].astype(np.int64))
        self._parts.append(part)
        self._pending += len(part[0])
        if self._pending > _MERGE_ROWS + len(self._parts[0][0]):
            self._merge()

    def _merge(self) -> None:
        self._parts = [_summed(*(np.concatenate(column) for column in zip(*self._parts, strict=True)))]
        self._pending = 0

    def build(self) -> AsOfCounts:
        """The finished counts."""
        if not self._parts:
            empty = np.zeros(0, dtype=np.int64)
            self.add(empty, empty, np.zeros((0, self.num_measures), dtype=np.int64))
        self._merge()
        return AsOfCounts(*self._parts[0])


def _summed(codes: Ints, periods: Ints, measures: Ints) -> tuple[Ints, Ints, Ints]:
    """Sort by (code, period) and add up equal ones."""
    order = np.lexsort((periods, codes))
    codes, periods, measures = codes[order], periods[order], measures[order]
    if not len(codes):
        return codes, periods, measures
    first = np.flatnonzero(np.append(True, (np.diff(codes) != 0) | (np.diff(periods) != 0)))
    return codes[first], periods[first], np.add.reduceat(measures, first, axis=0)


class AsOfCounts:
    """Counts of the train rows per code, as of any period.

    Attributes:
        codes: (C,) int64, rising.
        entry_codes: (P,) int64, rising; entry_periods: (P,) int64, rising within a code.
        own: (P, M) int64, sums of each entry.
    """

    def __init__(self, entry_codes: Ints, entry_periods: Ints, own: Ints) -> None:
        self.entry_codes, self.entry_periods, self.own = entry_codes, entry_periods, own
        self.codes, self._starts = np.unique(entry_codes, return_index=True)
        self._periods = np.unique(entry_periods)
        running = np.cumsum(own, axis=0)
        self._running = np.concatenate([np.zeros((1, own.shape[1]), dtype=np.int64), running])
        index = np.searchsorted(self.codes, entry_codes)
        self._keys = index * (len(self._periods) + 1) + np.searchsorted(self._periods, entry_periods)

    def before(self, codes: Ints, periods: Ints) -> Ints:
        """Sums over strictly earlier periods.

        Args:
            codes: (n,) int64; unknown or negative codes get 0.
            periods: (n,) int64.

        Returns:
            (n, M) int64.
        """
        if not len(self.codes):
            return np.zeros((len(codes), self.own.shape[1]), dtype=np.int64)
        index = np.minimum(np.searchsorted(self.codes, codes), len(self.codes) - 1)
        known = self.codes[index] == codes
        keys = index * (len(self._periods) + 1) + np.searchsorted(self._periods, periods)
        stops = np.searchsorted(self._keys, keys)
        sums = self._running[stops] - self._running[self._starts[index]]
        sums[~known] = 0
        return np.asarray(sums)

    def totals(self) -> Ints:
        """(C, M) int64 sums per code over all of train."""
        return self.before(self.codes, np.full(len(self.codes), END))
