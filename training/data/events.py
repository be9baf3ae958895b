"""Recorded histories as flat event lists, and what every maker of history features reads.

Pure values. Invariant: slots are those of the entity tables, -1 stands for an item that no table has.

Letters: U users, I items, E events.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from service.contract.encode import EncodedBlock
from service.contract.schema import Entity, FeatureSchema, NumericFeature
from service.contract.values import standardise
from training.data.columns import Floats, Ints
from training.data.entities import EntityTable
from training.data.made import MadeFeature, no_ints, weighted_rms, zero_preserving
from training.data.table import DatasetDescription


@dataclass(frozen=True)
class Events:
    """One history of every user, flat.

    Attributes:
        user: (E,) int64 slot of the user.
        item: (E,) int64 slot of the item, -1 where it is not known.
        length: (U,) int64 events per user.
    """

    user: Ints
    item: Ints
    length: Ints

    def known(self) -> tuple[Ints, Ints]:
        """User and item slots of the events whose item is known."""
        keep = self.item >= 0
        return self.user[keep], self.item[keep]

    def pairs(self, num_items: int) -> Ints:
        """Distinct (user, item) of known events as user * num_items + item, rising."""
        user, item = self.known()
        return np.unique(user * num_items + item)


@dataclass(frozen=True)
class HistoryInputs:
    """What the makers read: tables, base schema and the encoded items."""

    description: DatasetDescription
    schema: FeatureSchema
    users: EntityTable
    items: EntityTable
    item_block: EncodedBlock
    events: dict[str, Events]


def entity_number(
    name: str, entity: Entity, values: Floats, train_rows: Ints, description: str, clip: float = 8.0
) -> MadeFeature:
    """One number per entity, divided by its root mean square over train rows."""
    encoder = zero_preserving(weighted_rms(values, train_rows.astype(np.float64)), clip)
    feature = NumericFeature(
        name=name, entity=entity, source="statistic", encoder=name, description=description
    )
    return MadeFeature(feature, no_ints(len(values)), standardise(values, encoder).reshape(-1, 1), encoder)


def entity_vector(
    name: str, entity: Entity, vectors: Floats, train_rows: Ints, description: str
) -> MadeFeature:
    """(n, width) numbers with one common scale over train rows, for dot products.

    Vectors of unit RMS have dot products of size sqrt(width); a fourth root on each side brings that to 1.
    The clip is wide so that dot products stay linear.
    """
    width = vectors.shape[1]
    mass = np.repeat(train_rows.astype(np.float64), width)
    rms = weighted_rms(vectors.reshape(-1), mass)
    encoder = zero_preserving(rms * float(width) ** 0.25, clip=64.0)
    feature = NumericFeature(
        name=name, entity=entity, source="statistic", encoder=name, width=width, description=description
    )
    return MadeFeature(feature, no_ints(len(vectors)), standardise(vectors, encoder), encoder)
