"""Which ids may stand in each column of an entity's encoded row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.contract.layout import EntityLayout
from service.contract.schema import FeatureSchema, StandardiseEncoder


def id_limits(schema: FeatureSchema, layout: EntityLayout) -> NDArray[np.int64]:
    """Exclusive upper bound of every int column, shape (int_width,) int64."""
    limits = np.zeros(layout.int_width, dtype=np.int64)
    for slot in layout.slots:
        if slot.block == "int":
            encoder = schema.encoder(slot.encoder)
            if not isinstance(encoder, StandardiseEncoder):  # whose slots are never ints
                limits[slot.columns] = encoder.num_rows
    return limits


__all__ = ["id_limits"]
