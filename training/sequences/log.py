"""An event log in memory: who did what where, in time order; and how it is cut into train, valid and test.

The last events of each user are held out: the newest for test, those before them for validation. Invariants:
items get rows from train events alone, so that an item first met in a held-out event is unknown; an event is
in exactly one part; a user's events keep the log's order, ties as they stand in the file.

Letters: E events, U users, D domains, V known items.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from service.contract.schema import FIRST_ID, UNKNOWN_ID
from training.sequences.errors import SequenceError

Ints = NDArray[np.int64]
_PLACE = "place in the list"


@dataclass(frozen=True)
class EventColumns:
    """Names of the columns of an event table.

    Attributes:
        user, item, domain: Ids of any type; they become text.
        order: What a user's events are ordered by; equal values keep the file's order.
        time: When it happened, for cuts in time; the order column where there is none.
        as_lists: Whether a row is a user, with lists of items and domains, the oldest event first; then
            neither order nor time is read.
    """

    user: str
    item: str
    domain: str
    order: str
    time: str | None = None
    as_lists: bool = False

    @property
    def names(self) -> list[str]:
        """Columns that are read."""
        listed = [self.user, self.item, self.domain]
        return listed if self.as_lists else [*listed, *dict.fromkeys([self.order, self.time or self.order])]


@dataclass(frozen=True, eq=False)
class EventLog:
    """Events of all users, one user after the other, each in time order.

    Attributes:
        users: U ids.
        domains: D names.
        items: V ids of the items of train events; item i has row FIRST_ID + i.
        start: (U + 1,) first event of each user.
        item: (E,) rows, UNKNOWN_ID for items without train event.
        domain: (E,) in [0, D).
        time: (E,) in the unit of the log.
        num_valid, num_test: Held out of each user's end.
    """

    users: tuple[str, ...]
    domains: tuple[str, ...]
    items: tuple[str, ...]
    start: Ints
    item: Ints
    domain: Ints
    time: Ints
    num_valid: int
    num_test: int

    @property
    def num_domains(self) -> int:
        """D."""
        return len(self.domains)

    @property
    def num_rows(self) -> int:
        """Rows of an item table: missing, unknown, and V known."""
        return FIRST_ID + len(self.items)

    @cached_property
    def train_stop(self) -> Ints:
        """(U,) end of each user's train events; where too few are left to hold any out, all are."""
        length = np.diff(self.start)
        out = np.where(length > self.num_valid + self.num_test, self.num_valid + self.num_test, 0)
        return self.start[1:] - out

    @cached_property
    def train_events(self) -> Ints:
        """Indices of all train events, in order."""
        place = np.arange(len(self.item)) - np.repeat(self.start[:-1], np.diff(self.start))
        return np.flatnonzero(place < np.repeat(self.train_stop - self.start[:-1], np.diff(self.start)))

    def held_out(self, split: str) -> Ints:
        """Indices of the events of `valid` or `test`."""
        stop, end = self.train_stop, self.start[1:]
        has = end > stop
        if split == "valid":
            first, count = stop[has], self.num_valid
        elif split == "test":
            first, count = stop[has] + self.num_valid, self.num_test
        else:
            raise SequenceError(f"split {split!r}; allowed are valid and test")
        return (first[:, None] + np.arange(count)).reshape(-1)

    @cached_property
    def user_of_event(self) -> Ints:
        """(E,)."""
        return np.repeat(np.arange(len(self.users)), np.diff(self.start))

    @cached_property
    def pools(self) -> tuple[Ints, ...]:
        """Rows of the items of each domain's train events, sorted."""
        events = self.train_events
        item, domain = self.item[events], self.domain[events]
        return tuple(np.unique(item[domain == d]) for d in range(self.num_domains))

    @cached_property
    def seen(self) -> Ints:
        """Sorted keys user * num_rows + item of the train events."""
        events = self.train_events
        return np.unique(self.user_of_event[events] * self.num_rows + self.item[events])

    def has_seen(self, user: Ints, item: Ints) -> NDArray[np.bool_]:
        """Whether items stand in users' train events; both of one shape."""
        key = user * self.num_rows + item
        place = np.minimum(np.searchsorted(self.seen, key), len(self.seen) - 1)
        return np.asarray(self.seen[place] == key)

    @cached_property
    def digest(self) -> str:
        """Sha256 (hex) of everything that training reads."""
        digest = hashlib.sha256(repr((self.domains, self.num_valid, self.num_test)).encode())
        digest.update("\n".join(self.items).encode())
        for array in (self.start, self.item, self.domain, self.time):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def read_log(
    path: Path,
    columns: EventColumns,
    *,
    num_valid: int,
    num_test: int,
    domain_names: dict[str, str] | None = None,
) -> EventLog:
    """Read a parquet table of events.

    Args:
        path: The file.
        columns: Its columns.
        num_valid: Events to hold out of each user's end for validation.
        num_test: For test, the newest.
        domain_names: Names by domain id; None takes the ids.

    Raises:
        SequenceError: The file or a column is missing, a value is null, or there is no event.
    """
    wanted = columns.names
    try:
        table = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise SequenceError(f"{path}: cannot be read as parquet: {error}") from error
    if missing := sorted(set(wanted) - set(table.columns)):
        raise SequenceError(f"{path}: no column {missing[0]!r}; it has {', '.join(table.columns)}")
    if columns.as_lists:
        table = _unrolled(table, columns)
        columns = replace(columns, order=_PLACE, time=None, as_lists=False)
        wanted = columns.names
    if not len(table):
        raise SequenceError(f"{path}: holds no event")
    if nulls := [name for name in wanted if table[name].null_count()]:
        raise SequenceError(f"{path}: column {nulls[0]!r} has {table[nulls[0]].null_count()} empty values")
    table = table.with_columns(pl.col(columns.user, columns.item, columns.domain).cast(pl.String))
    table = table.sort(columns.user, columns.order, maintain_order=True)
    domain = table[columns.domain]
    if domain_names is not None:
        if unnamed := sorted(set(domain.unique().to_list()) - set(domain_names)):
            raise SequenceError(
                f"{path}: domain {unnamed[0]!r} has no name; named are {sorted(domain_names)}"
            )
        domain = domain.replace_strict(domain_names)
    return _log(
        user=table[columns.user],
        item=table[columns.item],
        domain=domain,
        time=table[columns.time or columns.order].to_physical().cast(pl.Int64).to_numpy(),
        num_valid=num_valid,
        num_test=num_test,
    )


def _unrolled(table: pl.DataFrame, columns: EventColumns) -> pl.DataFrame:
    """One row per event of a table of lists."""
    lists = (columns.item, columns.domain)
    place = pl.int_ranges(pl.col(columns.item).list.len()).alias(_PLACE)
    table = table.select(columns.user, *lists, place).filter(pl.col(_PLACE).list.len() > 0)
    return table.explode(*lists, _PLACE)


def _log(
    *, user: pl.Series, item: pl.Series, domain: pl.Series, time: Ints, num_valid: int, num_test: int
) -> EventLog:
    users = user.unique(maintain_order=True)
    start = np.searchsorted(_codes(user, users), np.arange(len(users) + 1))
    domains = domain.unique().sort()
    bare = EventLog(
        users=tuple(users.to_list()),
        domains=tuple(domains.to_list()),
        items=(),
        start=start.astype(np.int64),
        item=np.zeros(len(item), np.int64),
        domain=_codes(domain, domains),
        time=time,
        num_valid=num_valid,
        num_test=num_test,
    )
    known = item[bare.train_events].unique().sort()
    rows = item.replace_strict(
        known, np.arange(len(known)) + FIRST_ID, default=UNKNOWN_ID, return_dtype=pl.Int64
    )
    return replace(bare, items=tuple(known.to_list()), item=rows.to_numpy())


def _codes(values: pl.Series, order: pl.Series) -> Ints:
    codes: Ints = values.cast(pl.Enum(order)).to_physical().cast(pl.Int64).to_numpy()
    return codes


def log_of_arrays(
    *,
    user: Ints,
    item: Ints,
    domain: Ints,
    domains: tuple[str, ...],
    num_valid: int,
    num_test: int,
) -> EventLog:
    """A log of events that are numbers already, sorted by user and time.

    Args:
        user: (E,) rising.
        item: (E,) ids.
        domain: (E,) in [0, D).
        domains: D names.
        num_valid: Held out of each user's end for validation.
        num_test: For test, the newest.
    """
    log = _log(
        user=pl.Series(user).cast(pl.String),
        item=pl.Series(item).cast(pl.String),
        domain=pl.Series([domains[d] for d in domain]),
        time=np.arange(len(user)),
        num_valid=num_valid,
        num_test=num_test,
    )
    if log.domains != domains:
        raise SequenceError(f"domains {domains} must be sorted and each have an event; found {log.domains}")
    return log
