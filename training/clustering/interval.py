"""How many steps apart clusters are updated when the config leaves it open.

Never closer than the authors' 1,000 batches of 1,024 rows; farther where the estimate says that an update
would cost more than its share of the training in between. Invariant: the number depends on sizes alone, never
on a clock, so that a run that was killed goes on as the unbroken one would have.
"""

from __future__ import annotations

import math

from training.clustering.config import ClusteringConfig
from training.clustering.lookahead_cost import LookaheadSize, estimate_cost
from training.clustering.measured import RowPool
from training.clustering.treatments import default_count
from training.config import RunConfig
from training.models.base import CtrModel

LEAST_ROWS = 1_000 * 1_024
"""Rows between updates in the authors' code, whatever the batch size."""


def steps_between_updates(settings: ClusteringConfig, size: LookaheadSize, *, batch_size: int) -> int:
    """Steps from one update to the next.

    Args:
        settings: Of the clusters; a number given there is taken.
        size: Of a lookahead; its `interval_rows` is not read.
        batch_size: Rows of a step.
    """
    if settings.update_interval != "auto":
        return settings.update_interval
    estimate = estimate_cost(size, mode=settings.mode, max_share=settings.max_overhead_ratio)
    rows = max(LEAST_ROWS, estimate.interval_rows_for(size, settings.max_overhead_ratio))
    return math.ceil(rows / batch_size)


def lookahead_size(config: RunConfig, model: CtrModel, rows: RowPool) -> LookaheadSize:
    """Size of an update of this model, with the interval of the authors.

    Args:
        config: Of the run.
        model: May be on the meta device: only shapes are read.
        rows: What the lookahead reads.
    """
    D = len(rows.domains.ids)
    treatments = config.clustering.num_treatments or default_count(D)
    return LookaheadSize(
        num_domains=D,
        num_sets=1 + 3 * D + treatments,
        train_rows=rows.num_step_rows,
        eval_rows=rows.num_eval_rows,
        num_dense=sum(p.numel() for p in model.dense_parameters()),
        width=model.inputs.request_width + model.inputs.row_width,
        interval_rows=LEAST_ROWS,
    )
