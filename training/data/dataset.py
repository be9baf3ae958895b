"""Batches of a prepared split, shuffled, resumable and shared out over ranks, in bounded memory.

The rows of an epoch form one stream, a pure function of (seed, epoch): row groups in permuted order are
read into buffers of at least `buffer_rows` rows, each buffer is permuted, and the buffers follow each
other. Step s takes the next B rows of the stream, whatever the number of ranks W; each rank gathers its part
of them, B / W rows give or take one. Invariant: every row is in exactly one batch of one rank, all ranks have
equally many batches, those of all ranks together are those of one process, and starting at a batch gives what
an unbroken run gives from there.

Letters: B rows of a step, W ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.contract.layout import IDS, VALUES, WEIGHTS
from service.contract.schema import Entity
from training.data.errors import PreparedError
from training.data.prepared import PreparedDataset
from training.data.row_files import BLOCKS, SCALARS, Rows

Int32s = NDArray[np.int32]
Float32s = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Batch:
    """B rows, encoded as the service encodes them.

    Attributes:
        user_ints: (B, Iu) int32; user_floats: (B, Fu) float32; likewise context and item.
        pairs: (B, P) float32, all pairs of the schema in order.
        domain: (B,) int32 index, D for unknown.
        label: (B,) float32, 0 or 1; weight: (B,) float32.
        user_code: (B,) int32, one per user, unknown users too.
        true_probability: (B,) float32, nan where the truth is not known.
    """

    user_ints: Int32s
    user_floats: Float32s
    context_ints: Int32s
    context_floats: Float32s
    item_ints: Int32s
    item_floats: Float32s
    pairs: Float32s
    domain: Int32s
    label: Float32s
    weight: Float32s
    user_code: Int32s
    true_probability: Float32s

    def __len__(self) -> int:
        return len(self.label)


class RowReader:
    """Reads one split of a prepared data set."""

    def __init__(self, prepared: PreparedDataset, split: str) -> None:
        self.prepared, self.split = prepared, split
        self._file = prepared.row_file(split)
        self._entities = prepared.entities
        self._stats = {
            entity: np.array(
                [rows.layout.slot(name, VALUES).start for name in prepared.stat_columns(entity)],
                dtype=np.int64,
            )
            for entity, rows in self._entities.items()
        }
        self._blanked = self._frozen_maps() if split == "train" else {}

    @property
    def num_rows(self) -> int:
        """Rows of the split."""
        return sum(self._file.group_rows)

    def num_batches(self, batch_size: int) -> int:
        """Steps of an epoch, hence batches on each rank."""
        return -(-self.num_rows // batch_size)

    def batches(
        self,
        batch_size: int,
        *,
        seed: int = 0,
        epoch: int = 0,
        shuffle: bool = False,
        start_batch: int = 0,
        rank: int = 0,
        world_size: int = 1,
        buffer_rows: int = 262_144,
    ) -> Iterator[Batch]:
        """Yield the batches of one epoch on one rank.

        Args:
            batch_size: B, over all ranks. The last step may have fewer rows; a rank may get none of a step.
            seed: With `epoch`, decides the order; unused without `shuffle`.
            epoch: Number of the epoch, from 0.
            shuffle: False keeps the order of the log.
            start_batch: Batches to skip; only the buffer it falls into is read again.
            rank: Of this process.
            world_size: W. Every rank reads all row groups, and shuffles and encodes only its own rows.
            buffer_rows: Rows shuffled together; also the bound on memory.

        Raises:
            PreparedError: A size or rank out of range.
        """
        self._check(batch_size, start_batch, rank, world_size, buffer_rows)
        share = RankShare(self.num_rows, batch_size, rank, world_size)
        pending: Rows = {}
        number, held_to = start_batch, 0
        for groups in self._plan(seed, epoch, buffer_rows, shuffle=shuffle):
            count = sum(self._file.group_rows[g] for g in groups)
            first, held_to = held_to, held_to + count
            if held_to <= start_batch * batch_size:
                continue
            places = share.places(max(first, start_batch * batch_size), held_to) - first
            if shuffle:
                places = _rng(seed, epoch, 1 + groups[0]).permutation(count)[places]
            rows = {name: column[places] for name, column in self._read(groups).items()}
            if pending:
                rows = {name: np.concatenate([pending[name], rows[name]]) for name in rows}
            start, last = 0, held_to == self.num_rows
            while (number + 1) * batch_size <= held_to or (last and number * batch_size < held_to):
                size = share.size(number)
                yield self._batch(rows, slice(start, start + size))
                start, number = start + size, number + 1
            # A copy, so that the buffer itself can be freed.
            pending = {name: column[start:].copy() for name, column in rows.items()}

    @staticmethod
    def _check(batch_size: int, start_batch: int, rank: int, world_size: int, buffer_rows: int) -> None:
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("start_batch", start_batch, 0),
            ("world_size", world_size, 1),
            ("buffer_rows", buffer_rows, 1),
        ):
            if value < least:
                raise PreparedError(f"{name} is {value}; allowed: {least} and more")
        if not 0 <= rank < world_size:
            raise PreparedError(f"rank is {rank}; allowed: 0 to {world_size - 1}")

    def _plan(self, seed: int, epoch: int, buffer_rows: int, *, shuffle: bool) -> list[list[int]]:
        """Row groups of each buffer, in order."""
        order = np.arange(len(self._file.group_rows))
        if shuffle:
            order = _rng(seed, epoch, 0).permutation(order)
        buffers: list[list[int]] = []
        room = 0
        for group in order.tolist():
            if room <= 0:
                buffers.append([])
                room = buffer_rows
            buffers[-1].append(group)
            room -= self._file.group_rows[group]
        return buffers

    def _read(self, groups: list[int]) -> Rows:
        parts = [self._file.read_group(group) for group in groups]
        return {name: np.concatenate([part[name] for part in parts]) for name in (*SCALARS, *BLOCKS)}

    def batch_of(self, rows: Rows) -> Batch:
        """Encode rows of this split that somebody else gathered."""
        return self._batch(rows, slice(None))

    def _batch(self, rows: Rows, place: slice) -> Batch:
        part = {name: column[place] for name, column in rows.items()}
        user = self._entities[Entity.USER].take(part["user_slot"])
        item = self._entities[Entity.ITEM].take(part["item_slot"])
        for entity, block in ((Entity.USER, user), (Entity.ITEM, item)):
            block.floats[:, self._stats[entity]] = part[f"{entity}_stats"]
            for ints, floats in self._blanked.get(entity, ()):
                block.ints[:, ints] = 0
                block.floats[:, floats] = 0.0
        return Batch(
            user_ints=user.ints,
            user_floats=user.floats,
            context_ints=part["context_ints"].copy(),
            context_floats=part["context_floats"].copy(),
            item_ints=item.ints,
            item_floats=item.floats,
            pairs=part["pairs"].copy(),
            domain=part["domain"].copy(),
            label=part["label"].copy(),
            weight=part["weight"].copy(),
            user_code=part["user_code"].copy(),
            true_probability=part["true_probability"].copy(),
        )

    def _frozen_maps(self) -> dict[Entity, list[tuple[slice, slice]]]:
        """Columns of maps over train clicks: they know the end of train, so train rows must not see them."""
        found: dict[Entity, list[tuple[slice, slice]]] = {}
        for name in self.prepared.info["columns"]["maps_of_train_clicks"]:
            entity = self.prepared.schema.feature(name).entity
            layout = self._entities[entity].layout
            columns = (layout.slot(name, IDS).columns, layout.slot(name, WEIGHTS).columns)
            found.setdefault(entity, []).append(columns)
        return found


@dataclass(frozen=True, slots=True)
class RankShare:
    """Which rows of an epoch's stream belong to one rank.

    Attributes:
        num_rows: Of the stream.
        batch_size: B, rows of a step over all ranks.
        rank: Of the process.
        world_size: W.
    """

    num_rows: int
    batch_size: int
    rank: int
    world_size: int

    def size(self, step: int) -> int:
        """Rows of the rank in one step; sizes of ranks differ by at most one."""
        total = min(self.batch_size, self.num_rows - step * self.batch_size)
        part = rank_slice(total, self.rank, self.world_size)
        return int(part.stop - part.start)

    def places(self, first: int, last: int) -> NDArray[np.int64]:
        """(n,) the rank's rows among `first` to `last` - 1 of the stream, ascending."""
        place = np.arange(first, last, dtype=np.int64)
        if self.world_size == 1:
            return place
        start = place // self.batch_size * self.batch_size
        total = np.minimum(self.batch_size, self.num_rows - start)
        low, high = (total * (self.rank + more) // self.world_size for more in (0, 1))
        return place[(place - start >= low) & (place - start < high)]


def rank_slice(size: int, rank: int, world_size: int) -> slice:
    """Rows of one rank among the `size` rows of a step; sizes differ by at most one."""
    return slice(size * rank // world_size, size * (rank + 1) // world_size)


def _rng(seed: int, epoch: int, part: int) -> np.random.Generator:
    return np.random.default_rng([seed, epoch, part])
