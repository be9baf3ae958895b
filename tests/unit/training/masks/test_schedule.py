"""Settings by the number of the update."""

import pytest

from training.masks.errors import MaskSearchError
from training.masks.schedule import SearchSchedule


def test_published_constants_after_one_update():
    first = SearchSchedule().at(1)

    assert first.sigma == pytest.approx(0.198)
    assert first.active == pytest.approx(0.665)
    assert first.num_candidates == 9  # int(9.9)


def test_candidates_and_edges_have_a_floor():
    late = SearchSchedule().at(1000)

    assert late.num_candidates == 1
    assert late.active == 0.1


def test_wanted_density_falls_in_equal_steps_and_stays():
    schedule = SearchSchedule(target_density=0.4, target_updates=3)

    assert [schedule.at(k).target_density for k in (1, 2, 3, 4)] == pytest.approx([0.8, 0.6, 0.4, 0.4])


def test_updates_are_numbered_from_one():
    with pytest.raises(MaskSearchError, match="mask update 0; updates are numbered from 1"):
        SearchSchedule().at(0)
