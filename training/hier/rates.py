"""How often items and users are clicked, beside what the domains they were shown in make one expect.

An item or a user has a log odds ratio: ln((c + a) / (e + a)) - ln((s - c + a) / (s - e + a)), with s
impressions, c clicks, e clicks if each impression had its domain's rate, and a, the prior, as much evidence
for neither. So a video from a tab where all is clicked does not pass for a good one. Not part of HIER: these
are counts beside its score. Invariant: without an impression the ratio is 0, and what is said of rows in
time order is read off the rows before each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.hier.clicks import Impressions
from training.hier.ragged import IntArray

FloatArray = NDArray[np.float64]

DEFAULT_PRIOR = 5.0
COUNTED = ("popularity", "item_elsewhere", "user_elsewhere", "item_here", "user_here")
"""Columns that counts give to the head, see `Counted`."""


def log_odds(shown: FloatArray, clicks: FloatArray, expected: FloatArray, *, prior: float) -> FloatArray:
    """(n,) log odds ratios of impressions, clicks and expected clicks (n,), shrunk by a prior above 0."""
    more = np.log((clicks + prior) / (expected + prior))
    return more - np.log((shown - clicks + prior) / (shown - expected + prior))


def expected_clicks(rows: Impressions) -> FloatArray:
    """(n,) click rate of each row's domain among the rows."""
    if not len(rows):
        return np.zeros(0)
    shown = np.bincount(rows.domain)
    clicks = np.bincount(rows.domain, weights=rows.label)
    return np.asarray((clicks / np.maximum(shown, 1))[rows.domain])


def rates(keys: IntArray, rows: Impressions, *, size: int, prior: float) -> FloatArray:
    """(size,) log odds ratios by key: `keys` (n,) are the rows' items or users, -1 is left out."""
    known = keys >= 0
    sums = [
        np.asarray(np.bincount(keys[known], weights=weights[known], minlength=size), dtype=np.float64)
        for weights in (np.ones(len(rows)), rows.label.astype(np.float64), expected_clicks(rows))
    ]
    return log_odds(*sums, prior=prior)


def sums_before(keys: IntArray, values: FloatArray) -> FloatArray:
    """(n,) sum of the `values` (n,) of the rows before each row with the same key."""
    order = np.argsort(keys, kind="stable")
    sorted_keys = keys[order]
    before = np.cumsum(values[order]) - values[order]
    first = np.ones(len(keys), dtype=np.bool_)
    first[1:] = sorted_keys[1:] != sorted_keys[:-1]
    starts = np.flatnonzero(first)
    base = np.repeat(before[starts], np.diff(np.append(starts, len(keys))))
    result = np.empty(len(keys))
    result[order] = before - base
    return result


def rates_before(keys: IntArray, rows: Impressions, *, prior: float) -> FloatArray:
    """(n,) log odds ratio of each row's key in the rows before it; 0 for keys of -1."""
    sums = [
        sums_before(keys, values)
        for values in (np.ones(len(rows)), rows.label.astype(np.float64), expected_clicks(rows))
    ]
    return np.where(keys >= 0, log_odds(*sums, prior=prior), 0.0)


@dataclass(frozen=True, eq=False)
class Elsewhere:
    """What the sources say of V items and U users: log odds ratios `items` (V,) and `users` (U,)."""

    items: FloatArray
    users: FloatArray

    @staticmethod
    def count(rows: Impressions, *, num_items: int, num_users: int, prior: float) -> Elsewhere:
        """From the rows of the sources."""
        return Elsewhere(
            rates(rows.item, rows, size=num_items, prior=prior),
            rates(rows.user, rows, size=num_users, prior=prior),
        )


@dataclass(frozen=True, eq=False)
class Counted:
    """What counts say of one domain.

    Attributes:
        popularity: (V,) log(1 + clicks in the domain).
        elsewhere: Of the sources.
        items_here, users_here: (V,) and (U,) log odds ratios within the domain's own rows.
    """

    popularity: FloatArray
    elsewhere: Elsewhere
    items_here: FloatArray
    users_here: FloatArray

    @staticmethod
    def of(rows: Impressions, elsewhere: Elsewhere, *, prior: float) -> Counted:
        """After some rows of the domain; there may be none."""
        num_items, num_users = len(elsewhere.items), len(elsewhere.users)
        clicks = np.bincount(rows.item[rows.label > 0], minlength=num_items)
        return Counted(
            np.log1p(clicks.astype(np.float64)),
            elsewhere,
            rates(rows.item, rows, size=num_items, prior=prior),
            rates(rows.user, rows, size=num_users, prior=prior),
        )

    def columns(self, users: IntArray, items: IntArray) -> FloatArray:
        """(n, 5) columns, named by `COUNTED`, of users (n,), -1 where not known, and items (n,)."""
        return np.column_stack(
            [
                self.popularity[items],
                self.elsewhere.items[items],
                _of_users(self.elsewhere.users, users),
                self.items_here[items],
                _of_users(self.users_here, users),
            ]
        )


def columns_before(rows: Impressions, elsewhere: Elsewhere, *, prior: float) -> FloatArray:
    """(n, 5) columns of a domain's rows in time order, each by the rows before it."""
    clicks = sums_before(rows.item, rows.label.astype(np.float64))
    return np.column_stack(
        [
            np.log1p(clicks),
            elsewhere.items[rows.item],
            _of_users(elsewhere.users, rows.user),
            rates_before(rows.item, rows, prior=prior),
            rates_before(rows.user, rows, prior=prior),
        ]
    )


def _of_users(values: FloatArray, users: IntArray) -> FloatArray:
    if not len(values):
        return np.zeros(len(users))
    return np.where(users >= 0, values[np.maximum(users, 0)], 0.0)
