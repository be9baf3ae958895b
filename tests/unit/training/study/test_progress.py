"""What is left: runs of a known variant take its mean, others the mean of all."""

import pytest

from training.study.run import Progress
from training.track import duration


def test_the_time_left_goes_by_variant():
    progress = Progress(["a", "b", "a", "b", "c"], 5, jobs=1)
    assert progress.left_s() == 0.0
    assert progress.finish("a", 10.0).startswith("1 of 5 runs done, 0 s passed, about 40 s left")
    progress.finish("b", 20.0)
    assert progress.left_s() == pytest.approx(10 + 20 + 15)


def test_jobs_share_what_is_left_and_the_last_run_leaves_nothing():
    progress = Progress(["a", "a", "a"], 3, jobs=2)
    progress.finish("a", 10.0)
    assert progress.left_s() == pytest.approx(10.0)
    progress.finish("a", 10.0)
    assert progress.left_s() == pytest.approx(10.0)
    assert progress.finish("a", 10.0).endswith("passed")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (61, "1 min 01 s"), (3600, "1 h 00 min"), (7380, "2 h 03 min")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
