"""The masks part of a config: what follows from its values."""

import pytest

from training.masks.config import MaskConfig


@pytest.mark.parametrize(("batch_size", "steps"), [(1024, 2000), (512, 4000), (4_000_000, 1)])
def test_the_automatic_interval_reads_as_many_rows_whatever_the_batch_size(batch_size, steps):
    assert MaskConfig().interval_steps(batch_size) == steps


def test_an_interval_that_is_set_is_in_steps():
    assert MaskConfig(update_interval=250).interval_steps(512) == 250
