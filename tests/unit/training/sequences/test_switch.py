"""The switch to single views: by a limit, and by a limit that validation events choose."""

from __future__ import annotations

import math

import numpy as np
import pytest

from training.sequences.judge import Judged, ViewRanks
from training.sequences.switch import LIMITS, Transfer, chosen_limit, limit_worths, switches, transfer


def view(ranks: list[int], losses: list[float]) -> ViewRanks:
    """One view of one domain, of events ranked among 100."""
    return ViewRanks(np.array(ranks), np.array(losses), len(ranks), 100)


def two_views(cross: ViewRanks, single: ViewRanks) -> Judged:
    """Of a single domain."""
    return {"cross": (cross,), "single": (single,)}


MISLED = two_views(view([0] * 40, [1.0, 1.2] * 20), view([50] * 40, [0.5, 0.9] * 20))
"""The mixed view has the higher loss, by .4 with a standard error of .016, and yet the better ranks."""
HARMED = two_views(view([50] * 40, [1.0, 1.2] * 20), view([0] * 40, [0.5, 0.9] * 20))


def test_transfer_is_the_paired_difference() -> None:
    """Single less cross: .2 .4 .6 has mean .4 and standard error .2 / sqrt 3; one event has none."""
    cross, single = view([0, 0, 0], [0.1, 0.1, 0.1]), view([0, 0, 0], [0.3, 0.5, 0.7])
    alone = view([0], [0.5])
    found = transfer({"cross": (cross, alone), "single": (single, alone)})

    assert found is not None
    assert found[1] is None
    assert found[0] is not None
    assert found[0].phi == pytest.approx(0.4)
    assert found[0].error == pytest.approx(0.2 / math.sqrt(3))
    assert not found[0].hurts(deviations=2.0)
    assert transfer({"cross": (cross,)}) is None


def test_a_domain_is_switched_beyond_noise_only() -> None:
    """Worse by more than two standard errors; never without both views or a limit."""
    found = (Transfer(-0.3, 0.1), Transfer(-0.1, 0.1), Transfer(0.3, 0.1), None)

    assert switches(2.0, found, num_domains=4) == (True, False, False, False)
    assert switches(2.0, None, num_domains=2) == (False, False)
    assert switches(None, found, num_domains=4) == (False,) * 4


def test_a_limit_is_worth_what_its_views_are_worth_elsewhere() -> None:
    """Switched under every limit but none: NDCG 1 or 0, as the view that is then served has it."""
    assert limit_worths(HARMED, seed=0).tolist() == [0.0, 1.0, 1.0, 1.0, 1.0]
    assert limit_worths(MISLED, seed=0).tolist() == [1.0, 0.0, 0.0, 0.0, 0.0]


def test_the_best_limit_is_chosen_and_of_equals_the_one_that_switches_least() -> None:
    """Never, where losses mislead; two errors, where every limit switches; a given limit stays."""
    even = two_views(view([3] * 40, [1.0] * 40), view([3] * 40, [1.0] * 40))

    assert chosen_limit("halves", MISLED, seed=0) is None
    assert chosen_limit("halves", HARMED, seed=0) == LIMITS[1] == 2.0
    assert chosen_limit("halves", even, seed=0) is None
    assert chosen_limit(1.5, MISLED, seed=0) == 1.5
    assert chosen_limit(None, HARMED, seed=0) is None
    assert chosen_limit("halves", {"cross": HARMED["cross"]}, seed=0) is None


def test_a_limit_is_found_where_it_matters() -> None:
    """A loss that is worse by one standard error is beyond 0 on most halves, beyond 2 on few."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0.0, 1.0, 500)
    noise += -1.0 / np.sqrt(500) - noise.mean()
    found = two_views(view([50] * 500, [0.0] * 500), view([0] * 500, noise.tolist()))
    worths = limit_worths(found, seed=0)

    assert transfer(found) == (
        Transfer(pytest.approx(-1 / np.sqrt(500)), pytest.approx(1 / np.sqrt(500), 0.1)),
    )  # type: ignore[arg-type]
    assert (np.diff(worths) > 0).all()
    assert chosen_limit("halves", found, seed=0) == 0.0


def test_domains_with_too_few_events_choose_nothing() -> None:
    """Nor does a domain without any."""
    few: Judged = {"cross": (view([0], [1.0]), None), "single": (view([9], [0.5]), None)}

    assert limit_worths(few, seed=0).tolist() == [0.0] * len(LIMITS)
    assert transfer(few) == (None, None)
