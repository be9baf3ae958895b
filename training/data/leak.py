"""Refuse inputs that alone tell the label.

Works on a sample of encoded train rows: numbers are ranked as they are, ids by the click rate of their value
in the other half of the sample (so that an id seen once cannot look like a leak). Pure.
Invariant: an input whose single-feature AUC exceeds `MAX_AUC` never reaches a prepared folder.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.contract.encode import EncodedBlock
from service.contract.layout import Slot, entity_layout
from service.contract.schema import Entity, FeatureSchema
from training.data.errors import LeakError
from training.metrics.auc import auc

MAX_AUC = 0.98
SAMPLE_ROWS = 100_000
MIN_OF_EACH_LABEL = 30
"""Below this many clicks or non-clicks chance alone can reach `MAX_AUC`, so nothing is tested."""
_SMOOTHING = 10.0


@dataclass
class RowSample:
    """Every `stride`-th train row: slots of user and item, encoded context, label."""

    stride: int
    seen: int = 0
    parts: list[tuple[NDArray[np.int64], NDArray[np.int64], EncodedBlock, NDArray[np.int8]]] = field(
        default_factory=list
    )

    def add(
        self,
        user: NDArray[np.int64],
        item: NDArray[np.int64],
        context: EncodedBlock,
        label: NDArray[np.int8],
    ) -> None:
        """Take in the train rows of one batch."""
        keep = slice((-self.seen) % self.stride, None, self.stride)
        self.seen += len(label)
        # Copies: a view would keep every row of the batch in memory.
        block = EncodedBlock(context.ints[keep].copy(), context.floats[keep].copy())
        self.parts.append((user[keep].copy(), item[keep].copy(), block, label[keep].copy()))


def check_inputs(
    schema: FeatureSchema, blocks: dict[Entity, EncodedBlock], sample: RowSample
) -> dict[str, float]:
    """Single-feature AUC of every described input.

    Args:
        schema: Of the described features.
        blocks: All rows of users and items.
        sample: Train rows.

    Returns:
        AUC per feature, folded to at least 0.5, largest first; empty when the sample is too small to tell.

    Raises:
        LeakError: Names the feature that tells the label.
    """
    user, item, label = (np.concatenate([part[i] for part in sample.parts]) for i in (0, 1, 3))
    context = EncodedBlock(
        np.concatenate([part[2].ints for part in sample.parts]),
        np.concatenate([part[2].floats for part in sample.parts]),
    )
    found: dict[str, float] = {}
    clicks = int(label.sum())
    if min(clicks, len(label) - clicks) >= MIN_OF_EACH_LABEL:
        for entity, rows in ((Entity.USER, user), (Entity.ITEM, item), (Entity.CONTEXT, None)):
            layout = entity_layout(schema, entity)
            for slot in layout.slots:
                block = context if rows is None else blocks[entity]
                for column in _columns(slot, block, rows):
                    score = _auc(column, label)
                    found[slot.feature] = max(score, found.get(slot.feature, 0.5))
    for name, score in found.items():
        if score > MAX_AUC:
            told = "equals the label" if score == 1.0 else "all but equals the label"
            raise LeakError(
                f"feature '{name}' {told}: its AUC alone is {score:.4f} on train, allowed is {MAX_AUC}; "
                "if it is recorded after the exposure, list its column under `outcomes`"
            )
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def _columns(slot: Slot, block: EncodedBlock, rows: NDArray[np.int64] | None) -> list[NDArray[Any]]:
    """What to test of one slot: the single column, or of a list its first id and its length."""
    values = block.ints if slot.block == "int" else block.floats
    taken = values[:, slot.columns] if rows is None else values[rows, slot.columns]
    if slot.block == "float":
        return [taken[:, c].astype(np.float64) for c in range(min(slot.size, 64))]
    first: list[NDArray[Any]] = [taken[:, 0]]
    return first if slot.shape == () else [*first, (taken != 0).sum(axis=1).astype(np.float64)]


def _auc(column: NDArray[Any], label: NDArray[np.int8]) -> float:
    scores = column if column.dtype.kind == "f" else _out_of_fold(column, label)
    value = auc(label, scores)
    return max(value, 1.0 - value)


def _out_of_fold(ids: NDArray[np.int32], label: NDArray[np.int8]) -> NDArray[np.float64]:
    """Shrunk click rate of each row's id in the other half of the rows."""
    half = np.arange(len(ids)) % 2
    size = int(ids.max()) + 1
    base = float(label.mean())
    scores = np.empty(len(ids))
    for side in (0, 1):
        other = half != side
        rows = np.bincount(ids[other], minlength=size)
        clicks = np.bincount(ids[other], weights=label[other], minlength=size)
        rate = (clicks + _SMOOTHING * base) / (rows + _SMOOTHING)
        scores[half == side] = rate[ids[half == side]]
    return scores
