"""Batches of training windows: both views of each, their targets with negatives, and what aligns them.

A user's train events are cut, from the newest back, into windows of at most T + 1: the first T are read, all
are predicted. Invariants: batches are a function of log, settings, seed, epoch and number; a negative is of
its target's domain and, where the domain has such an item, none of the user's train events.

Letters: B windows, n most events read (at least 1), P targets, Q groups with an input, S sequences of a
bucket.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.contract.schema import MISSING_ID
from training.models.syncrec_net import EventRows
from training.sequences.align import Alignment, align
from training.sequences.log import EventLog, Ints

SingleView = Literal["compact", "in_place"]
BUCKET_EDGES = (4, 12, 24)
NEGATIVE_DRAWS = 10


@dataclass(frozen=True)
class SequenceBatch:
    """One batch, sorted by domain.

    Attributes:
        mixed: What the mixed view reads, B windows.
        singles: What the single view reads, by length.
        item, negative, domain: (P,) int64 targets.
        cross_at, single_at: (P + Q,) int64 flat positions. For each domain first those that predict its
            targets, then those after the last event that both views of a user and domain have read.
        sizes: P targets by domain.
        agree_sizes: Q last events by domain.
    """

    mixed: EventRows
    singles: tuple[EventRows, ...]
    item: Tensor
    negative: Tensor
    domain: Tensor
    cross_at: Tensor
    single_at: Tensor
    sizes: tuple[int, ...]
    agree_sizes: tuple[int, ...]

    def split(self, vectors: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Part vectors (P + Q, r) into those of targets (P, r) and, by domain, those of last events."""
        pairs = zip(self.sizes, self.agree_sizes, strict=True)
        parts = torch.split(vectors, [size for pair in pairs for size in pair])
        return torch.cat(parts[::2]), parts[1::2]

    @property
    def position_sizes(self) -> tuple[int, ...]:
        """Positions of each domain."""
        return tuple(p + q for p, q in zip(self.sizes, self.agree_sizes, strict=True))


class TrainBatches:
    """Batches of a log's train events.

    Args:
        log: The events.
        max_len: T.
        batch_size: Windows at once.
        seed: Of order and negatives.
        single_view: Single sequences with only their domain's events (`compact`), or the mixed one with holes
            in the place of the others (`in_place`).
    """

    def __init__(
        self, log: EventLog, *, max_len: int, batch_size: int, seed: int, single_view: SingleView = "compact"
    ) -> None:
        self._log = log
        self._seed = seed
        self._batch_size = batch_size
        self._single_view = single_view
        self._start, self._stop = train_windows(log, max_len=max_len)
        self._pool = np.concatenate(log.pools)
        sizes = np.array([len(pool) for pool in log.pools])
        self._pool_size = sizes
        self._pool_start = np.cumsum(sizes) - sizes

    def __len__(self) -> int:
        """Batches of an epoch."""
        return math.ceil(len(self._start) / self._batch_size)

    def epoch(self, number: int) -> Iterator[SequenceBatch]:
        """All windows once."""
        order = np.random.default_rng((self._seed, number)).permutation(len(self._start))
        for place in range(len(self)):
            chosen = order[place * self._batch_size : (place + 1) * self._batch_size]
            yield self.batch(chosen, np.random.default_rng((self._seed, number, place)))

    def batch(self, windows: Ints, rng: np.random.Generator) -> SequenceBatch:
        """The batch of some windows."""
        start, length = self._start[windows], self._stop[windows] - self._start[windows]
        event = start[:, None] + np.minimum(np.arange(max(2, int(length.max()))), length[:, None] - 1)
        item, domain = self._log.item[event], self._log.domain[event]
        aligned = align(domain, length, num_domains=self._log.num_domains)
        singles, base = self._singles(aligned, item, length)
        width = event.shape[1]
        target_domain = domain[aligned.window, aligned.place]
        own = item[aligned.window, aligned.place]
        users = self._log.user_of_event[start][aligned.window]
        negative = self._negatives(users, target_domain, rng)
        by_domain = np.argsort(target_domain, kind="stable")
        last = last_inputs(aligned)
        last_domain = aligned.group_domain[aligned.group[last]]
        place = aligned.rank if self._single_view == "compact" else aligned.place
        cross_at = aligned.window * width + aligned.place
        single_at = base[aligned.group] + place
        order = np.argsort(np.concatenate([2 * target_domain, 2 * last_domain + 1]), kind="stable")
        return SequenceBatch(
            mixed=_rows(item[:, :-1], domain[:, :-1], length - 1),
            singles=singles,
            item=_tensor(own[by_domain]),
            negative=_tensor(negative[by_domain]),
            domain=_tensor(target_domain[by_domain]),
            # The position after an event follows the one that predicts it.
            cross_at=_tensor(np.concatenate([cross_at, cross_at[last] + 1])[order]),
            single_at=_tensor(np.concatenate([single_at, single_at[last] + 1])[order]),
            sizes=self._sizes(target_domain),
            agree_sizes=self._sizes(last_domain),
        )

    def _sizes(self, domain: Ints) -> tuple[int, ...]:
        return tuple(np.bincount(domain, minlength=self._log.num_domains).tolist())

    def _singles(self, aligned: Alignment, item: Ints, length: Ints) -> tuple[tuple[EventRows, ...], Ints]:
        """Single sequences in buckets, and (G,) the flat position of each group's start mark."""
        if self._single_view == "in_place":
            return _in_place(aligned, item, length)
        base = np.zeros(len(aligned.group_inputs), np.int64)
        buckets: list[EventRows] = []
        offset = 0
        bucket_of = np.searchsorted(BUCKET_EDGES, aligned.group_inputs)
        for bucket in np.unique(bucket_of).tolist():
            groups = np.flatnonzero(bucket_of == bucket)
            size = max(1, int(aligned.group_inputs[groups].max()))
            place_of = np.full(len(base), -1)
            place_of[groups] = np.arange(len(groups))
            mine = np.flatnonzero(aligned.is_input & (bucket_of[aligned.group] == bucket))
            rows = np.full((len(groups), size), MISSING_ID, np.int64)
            rows[place_of[aligned.group[mine]], aligned.rank[mine]] = item[
                aligned.window[mine], aligned.place[mine]
            ]
            domains = np.repeat(aligned.group_domain[groups][:, None], size, axis=1)
            buckets.append(_rows(rows, domains, aligned.group_inputs[groups]))
            base[groups] = offset + np.arange(len(groups)) * (size + 1)
            offset += len(groups) * (size + 1)
        return tuple(buckets), base

    def _negatives(self, user: Ints, domain: Ints, rng: np.random.Generator) -> Ints:
        """One item of the same domain for each target; drawn anew while the user has met it."""
        negative = np.zeros(len(user), np.int64)
        left = np.arange(len(user))
        for _ in range(NEGATIVE_DRAWS):
            size = self._pool_size[domain[left]]
            draw = (rng.random(len(left)) * size).astype(np.int64)
            negative[left] = self._pool[self._pool_start[domain[left]] + draw]
            left = left[self._log.has_seen(user[left], negative[left])]
            if not len(left):
                break
        return negative


def train_windows(log: EventLog, *, max_len: int) -> tuple[Ints, Ints]:
    """First event and end of each window; users' events are cut from the newest back."""
    starts: list[Ints] = []
    stops: list[Ints] = []
    for first, stop in zip(log.start[:-1].tolist(), log.train_stop.tolist(), strict=True):
        ends = np.arange(stop, first, -(max_len + 1))
        stops.append(ends)
        starts.append(np.maximum(ends - (max_len + 1), first))
    return np.concatenate(starts), np.concatenate(stops)


def last_inputs(aligned: Alignment) -> Ints:
    """The last event that both views read, of each group that has one: indices into the alignment."""
    inputs = np.flatnonzero(aligned.is_input)
    last = np.full(len(aligned.group_inputs), -1)
    last[aligned.group[inputs]] = inputs  # in time order: a later one takes the place of an earlier one
    return last[last >= 0]


def _in_place(aligned: Alignment, item: Ints, length: Ints) -> tuple[tuple[EventRows, ...], Ints]:
    size = item.shape[1] - 1
    mine = np.flatnonzero(aligned.is_input)
    rows = np.full((len(aligned.group_inputs), size), MISSING_ID, np.int64)
    where = (aligned.window[mine], aligned.place[mine])
    rows[aligned.group[mine], aligned.place[mine]] = item[where]
    domains = np.repeat(aligned.group_domain[:, None], size, axis=1)
    whole = _rows(rows, domains, length[aligned.group_window] - 1)
    return (whole._replace(with_holes=True),), np.arange(len(rows)) * (size + 1)


def _rows(item: Ints, domain: Ints, length: Ints) -> EventRows:
    """Sequences as tensors, with what stands after the end as padding."""
    inside: NDArray[np.bool_] = np.arange(item.shape[1]) < length[:, None]
    return EventRows(_tensor(np.where(inside, item, MISSING_ID)), _tensor(domain), _tensor(length))


def _tensor(values: Ints) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64))
