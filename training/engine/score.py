"""Score a split with a model, by one process or shared out over ranks.

Invariant: however many ranks there are, the first has every row once, in the reader's order.
"""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import torch

from training.data.dataset import RankShare, RowReader
from training.data.prepared import PreparedDataset
from training.engine.distributed import ALONE, RankGroup
from training.engine.evaluate import Predictions, predict
from training.models.base import CtrModel
from training.track import Quiet, Watcher


def predict_split(
    model: CtrModel,
    prepared: PreparedDataset,
    split: str,
    *,
    batch_size: int,
    device: torch.device,
    watcher: Watcher | None = None,
    group: RankGroup = ALONE,
) -> Predictions:
    """Score all rows of a split in the reader's order.

    Args:
        model: On `device`, equal on all ranks.
        prepared: The data.
        split: Its name.
        batch_size: Rows at once, over all ranks.
        device: Where to compute.
        watcher: Shows progress.
        group: Whose ranks share the rows out.

    Returns:
        All rows on the first rank; on another, those that it scored.

    Raises:
        EngineError: No rows, or a logit that is not finite.
    """
    watcher = watcher or Quiet()
    reader = RowReader(prepared, split)
    watcher.start(f"score {split}", reader.num_rows)
    batches = reader.batches(batch_size, rank=group.rank, world_size=group.world_size)
    own = predict(
        model, batches, device=device, on_rows=lambda rows: watcher.advance(rows * group.world_size)
    )
    parts = group.gather(own)
    if len(parts) < group.world_size or group.is_alone:
        return own
    shares = (RankShare(reader.num_rows, batch_size, r, group.world_size) for r in range(group.world_size))
    place = np.concatenate([share.places(0, reader.num_rows) for share in shares])
    back = np.argsort(place)
    names = [f.name for f in fields(Predictions)]
    return Predictions(**{name: np.concatenate([getattr(p, name) for p in parts])[back] for name in names})
