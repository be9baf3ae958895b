"""Draw realistic graph inputs from a feature snapshot, for parity checks and golden rows.

Deterministic in its seed. Every draw can be asked to hold what usually breaks: unknown users and
items, the unknown domain, empty and full histories, several requests in one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.contract.encode import EncodedBlock
from service.contract.layout import entity_layout
from service.contract.schema import MISSING_ID, Entity, FeatureSchema, MultiFeature, SequenceFeature

GraphArrays = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Snapshot:
    """Encoded rows to draw from: stored users and items, and contexts as seen in the log."""

    user: EncodedBlock
    item: EncodedBlock
    context: EncodedBlock


class RowSampler:
    """Draws requests.

    Args:
        schema: Layout of the rows.
        snapshot: At least one row of each entity.
        seed: Of the draws.
    """

    def __init__(self, schema: FeatureSchema, snapshot: Snapshot, *, seed: int) -> None:
        self._schema = schema
        self._snapshot = snapshot
        self._random = np.random.default_rng(seed)
        self._defaults = {
            entity: (layout.default_ints, layout.default_floats)
            for entity, layout in ((e, entity_layout(schema, e)) for e in Entity)
        }

    def draw(
        self, *, domain: int, num_rows: int, num_requests: int = 1, unknown_rate: float = 0.1
    ) -> GraphArrays:
        """Random requests of one domain.

        Args:
            domain: Domain index, D for unknown.
            num_rows: Candidates in all, spread over the requests at random.
            num_requests: Requests.
            unknown_rate: Share of users and items replaced by the row of an unknown entity.

        Returns:
            All inputs of `ScoringGraph.forward` by name.
        """
        users = self._random.integers(0, len(self._snapshot.user), num_requests)
        items = self._random.integers(0, len(self._snapshot.item), num_rows)
        index = np.sort(self._random.integers(0, num_requests, num_rows)).astype(np.int64)
        return self._inputs(
            users=np.where(self._random.random(num_requests) < unknown_rate, -1, users),
            items=np.where(self._random.random(num_rows) < unknown_rate, -1, items),
            index=index,
            domain=np.full(num_requests, domain, np.int64),
        )

    def golden(self, domains: Sequence[int], *, rows_per_domain: int = 4) -> GraphArrays:
        """One call that holds every domain given, unknown ids, empty and full histories.

        Args:
            domains: Domain indices, D for the unknown domain; at least one.
            rows_per_domain: Candidates of each.
        """
        random_users = self._random.integers(0, len(self._snapshot.user), len(domains))
        fill = self._list_fill()
        users = np.concatenate([random_users, [-1, int(np.argmin(fill)), int(np.argmax(fill))]])
        some = int(self._random.choice(domains))
        domain = np.asarray([*domains, some, some, some], dtype=np.int64)
        index = np.repeat(np.arange(len(users)), rows_per_domain).astype(np.int64)
        items = self._random.integers(0, len(self._snapshot.item), len(index))
        items[::11] = -1
        return self._inputs(users=users, items=items, index=index, domain=domain)

    def _list_fill(self) -> NDArray[np.int64]:
        """Present entries in the lists of each stored user, (num_users,)."""
        lists = {
            f.name
            for f in self._schema.of_entity(Entity.USER)
            if isinstance(f, MultiFeature | SequenceFeature)
        }
        slots = [s for s in entity_layout(self._schema, Entity.USER).slots if s.feature in lists]
        fill = np.zeros(len(self._snapshot.user), np.int64)
        for slot in slots:
            if slot.block == "int":
                fill += (self._snapshot.user.ints[:, slot.columns] != MISSING_ID).sum(axis=1)
        return fill

    def _inputs(
        self,
        *,
        users: NDArray[np.int64],
        items: NDArray[np.int64],
        index: NDArray[np.int64],
        domain: NDArray[np.int64],
    ) -> GraphArrays:
        contexts = self._random.integers(0, len(self._snapshot.context), len(users))
        user_ints, user_floats = self._gather(Entity.USER, self._snapshot.user, users)
        item_ints, item_floats = self._gather(Entity.ITEM, self._snapshot.item, items)
        context_ints, context_floats = self._gather(Entity.CONTEXT, self._snapshot.context, contexts)
        return {
            "user_ints": user_ints,
            "user_floats": user_floats,
            "context_ints": context_ints,
            "context_floats": context_floats,
            "domain": domain,
            "item_ints": item_ints,
            "item_floats": item_floats,
            "request_index": index,
        }

    def _gather(
        self, entity: Entity, block: EncodedBlock, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Rows of a block, the entity's defaults where the row is -1."""
        default_ints, default_floats = self._defaults[entity]
        missing = (rows < 0)[:, None]
        ints = np.where(missing, default_ints, np.asarray(block.ints[np.maximum(rows, 0)]))
        floats = np.where(missing, default_floats, np.asarray(block.floats[np.maximum(rows, 0)]))
        return ints.astype(np.int32), floats.astype(np.float32)
