"""Steps between updates: as set, the authors' rows, or as many as keep the cost within its share."""

from __future__ import annotations

import pytest

from training.clustering.config import ClusteringConfig
from training.clustering.interval import LEAST_ROWS, steps_between_updates
from training.clustering.lookahead_cost import LookaheadSize, estimate_cost


def size(num_domains: int) -> LookaheadSize:
    D = num_domains
    return LookaheadSize(
        num_domains=D,
        num_sets=1 + 3 * D + max(50, D),
        train_rows=128 * D,
        eval_rows=128 * D,
        num_dense=100_000,
        width=300,
        interval_rows=LEAST_ROWS,
    )


def test_a_number_is_taken_as_it_is():
    assert steps_between_updates(ClusteringConfig(update_interval=70), size(300), batch_size=512) == 70


@pytest.mark.parametrize(("batch_size", "steps"), [(1024, 1000), (512, 2000), (1000, 1024)])
def test_few_domains_are_updated_after_the_authors_number_of_rows(batch_size: int, steps: int):
    """A thousand batches of 1,024 rows, in whatever batches they come."""
    assert steps_between_updates(ClusteringConfig(), size(20), batch_size=batch_size) == steps


@pytest.mark.parametrize("share", [0.02, 0.05, 0.1])
def test_many_domains_wait_until_an_update_is_within_its_share(share: float):
    """One row fewer would be too few, by the estimate itself."""
    settings = ClusteringConfig(max_overhead_ratio=share)
    rows = steps_between_updates(settings, size(300), batch_size=1)
    assert rows > LEAST_ROWS

    def cost(interval: int) -> float:
        known = LookaheadSize(**(vars(size(300)) | {"interval_rows": interval}))
        return estimate_cost(known, mode="first_order", max_share=share).first_order_share

    assert cost(rows) <= share < cost(rows - 1)
