"""The log as HIER reads it: who was shown what, in which domain, and whether it was clicked.

Invariant: `without` leaves no row of a held-out domain, so what is made from its result cannot know one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.contract.layout import IDS
from service.contract.schema import FIRST_ID, CategoricalFeature, Entity, MultiFeature, SequenceFeature
from training.data.prepared import PreparedDataset
from training.hier.errors import GraphError
from training.hier.ragged import IntArray


@dataclass(frozen=True, eq=False)
class Impressions:
    """n rows of the log in time order.

    Attributes:
        user, item: (n,) int64 slots; a user of -1 is not known.
        domain: (n,) int64 index, D for unknown domains.
        label: (n,) float32, 1 for a click.
    """

    user: IntArray
    item: IntArray
    domain: IntArray
    label: NDArray[np.float32]

    @staticmethod
    def read(prepared: PreparedDataset, split: str) -> Impressions:
        """All rows of a split whose item is known, sorted by time."""
        file = prepared.row_file(split)
        parts = [file.read_group(group) for group in range(len(file.group_rows))]
        file.close()
        names = ("user_slot", "item_slot", "domain", "label", "time_ms")
        rows = {name: np.concatenate([np.zeros(0), *(part[name] for part in parts)]) for name in names}
        order = np.argsort(rows["time_ms"], kind="stable")
        order = order[rows["item_slot"][order] >= 0]
        user, item, domain = (rows[name][order].astype(np.int64) for name in names[:3])
        return Impressions(user, item, domain, rows["label"][order].astype(np.float32))

    def __len__(self) -> int:
        return len(self.user)

    def where(self, kept: NDArray[np.bool_] | IntArray) -> Impressions:
        """Some rows, by mask or index."""
        return Impressions(self.user[kept], self.item[kept], self.domain[kept], self.label[kept])

    def clicks(self) -> Impressions:
        """Rows that were clicked, of known users."""
        return self.where((self.label > 0) & (self.user >= 0))

    def plus(self, other: Impressions) -> Impressions:
        """These rows, then those."""
        return Impressions(
            np.concatenate([self.user, other.user]),
            np.concatenate([self.item, other.item]),
            np.concatenate([self.domain, other.domain]),
            np.concatenate([self.label, other.label]),
        )

    def of(self, domain: int) -> Impressions:
        """Rows of one domain."""
        return self.where(self.domain == domain)

    def without(self, *domains: int | None) -> Impressions:
        """Rows of all other domains; None takes none out."""
        out = [domain for domain in domains if domain is not None]
        return self.where(~np.isin(self.domain, out)) if out else self


def listed_items(prepared: PreparedDataset, features: Sequence[str]) -> Impressions:
    """Items that users' own lists name, as clicks of no domain (index D).

    Args:
        prepared: The data.
        features: Multi or sequence features of users that hold ids of items (of a sequence, one field).

    Raises:
        GraphError: A feature is not such a list.
    """
    schema, items = prepared.schema, prepared.entities[Entity.ITEM]
    own = [f for f in schema.of_entity(Entity.ITEM) if isinstance(f, CategoricalFeature) and f.is_id]
    encoder = own[0].encoder if own else ""
    ids = items.ints[:, items.layout.slot(own[0].name).start] if own else np.zeros(0, dtype=np.int32)
    blocks = [_list_ids(prepared, name, encoder) for name in features]
    size = max((int(block.max(initial=0)) for block in (ids, *blocks)), default=0)
    slot_of = np.full(max(size + 1, FIRST_ID), -1, dtype=np.int64)
    slot_of[ids] = np.arange(len(ids))
    slot_of[:FIRST_ID] = -1
    users: list[IntArray] = [np.zeros(0, dtype=np.int64)]
    found: list[IntArray] = [np.zeros(0, dtype=np.int64)]
    for block in blocks:
        slots = slot_of[block]
        users.append(np.nonzero(slots >= 0)[0].astype(np.int64))
        found.append(slots[slots >= 0])
    user, item = np.concatenate(users), np.concatenate(found)
    domain = np.full(len(user), schema.num_domains, dtype=np.int64)
    return Impressions(user, item, domain, np.ones(len(user), dtype=np.float32))


def _list_ids(prepared: PreparedDataset, name: str, encoder: str) -> NDArray[np.int32]:
    """(U, L) int32 ids of a user's list."""
    rows = prepared.entities[Entity.USER]
    feature = next((f for f in prepared.schema.of_entity(Entity.USER) if f.name == name), None)
    if isinstance(feature, MultiFeature) and feature.encoder == encoder:
        return np.asarray(rows.ints[:, rows.layout.slot(name, IDS).columns])
    if isinstance(feature, SequenceFeature):
        for field in feature.fields:
            if field.encoder == encoder:
                return np.asarray(rows.ints[:, rows.layout.slot(name, field.name).columns])
    raise GraphError(f"graph.user_lists names '{name}', which is no list of item ids of a user")
