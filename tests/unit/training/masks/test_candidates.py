"""Candidates: gates, flips, and what every candidate keeps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.masks.candidates import candidate, flip_rate, gated_edges
from training.masks.errors import MaskSearchError
from training.models.mask import PyramidMask, PyramidShape, random_mask

SMALL = PyramidShape((2, 3, 2))
GATES = (
    np.array([[0.9, 0.6, 0.25], [0.1, 0.4, 0.75]]),
    np.array([[0.50, 0.05], [0.30, 0.15], [0.20, 0.80]]),
)


def test_gated_edges_by_hand():
    # Quantiles at 1 - .5: level 1 (.1 .25 .4 .6 .75 .9) .5, level 2 (.05 .15 .2 .3 .5 .8) .25: theta .25.
    found = PyramidMask(SMALL, gated_edges(GATES, SMALL, active=0.5))

    expected = PyramidMask.from_arrays(
        SMALL,
        [
            np.array([[True, True]]),
            np.array([[True, True, True], [False, True, True]]),
            np.array([[True, False], [True, False], [False, True]]),
            np.array([[True], [True]]),
        ],
    )
    assert found == expected


def test_edges_of_base_experts_are_all_proposed():
    shape = PyramidShape((2, 3, 2), base_width=2)

    found = PyramidMask(shape, gated_edges(GATES, shape, active=0.5))

    assert found.arrays[1].all()
    assert found.arrays[2].tolist() == [[True, True, True], [False, True, True]]


def test_flip_rate_is_the_size_of_a_normal_draw():
    rates = [flip_rate(np.random.default_rng(seed), 0.2) for seed in range(2000)]

    assert min(rates) >= 0
    # The mean of |N(0, s)| is s * sqrt(2 / pi).
    assert np.mean(rates) == pytest.approx(0.2 * np.sqrt(2 / np.pi), rel=0.05)
    assert flip_rate(np.random.default_rng(0), 1e9) == 1.0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 0.9), st.floats(1e-6, 1.0), st.booleans())
def test_candidates_are_valid_and_new(seed, active, sigma, first):
    rng = np.random.default_rng(seed)
    shape = PyramidShape()
    proposed = random_mask(shape, active, rng).bits
    current = None if first else random_mask(shape, float(rng.random()), rng)

    found = candidate(current, proposed, shape, active=active, sigma=sigma, rng=rng)

    assert found.is_valid
    own = proposed if current is None else current.bits
    assert not np.array_equal(found.bits, own)
    if own.mean() <= active:  # flips only add
        assert not (own & ~found.bits).any()


def test_dense_masks_may_lose_edges():
    shape = PyramidShape()
    full = PyramidMask.full(shape)

    found = candidate(full, full.bits, shape, active=0.5, sigma=0.2, rng=np.random.default_rng(0))

    assert found.density < 1


def test_a_vanishing_flip_rate_still_gives_a_candidate():
    shape = PyramidShape()
    full = PyramidMask.full(shape)

    found = candidate(full, full.bits, shape, active=0.5, sigma=1e-300, rng=np.random.default_rng(0))

    assert found != full


def test_a_pyramid_of_one_path_is_refused():
    shape = PyramidShape((1, 1))
    full = PyramidMask.full(shape)

    with pytest.raises(MaskSearchError, match=r"100 draws made no mask other than the 3 of 3 edges"):
        candidate(full, full.bits, shape, active=0.5, sigma=0.2, rng=np.random.default_rng(0))
