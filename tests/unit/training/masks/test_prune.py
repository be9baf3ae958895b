"""Pruning: the worked example, numpy's own quantile as a second formula, and where it stops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.masks.prune import pruned, pruned_to, thresholds
from training.models.mask import PyramidShape, density, has_output, random_mask, validated_bits

EXAMPLE = (
    np.array([[0.9, 0.6, 0.25], [0.1, 0.4, 0.75]]),
    np.array([[0.50, 0.05], [0.30, 0.15], [0.20, 0.80]]),
)
SMALL = PyramidShape((2, 3, 2))


def _one(gates):
    return [level[None] for level in gates]


def _full(shape, count=1):
    return np.ones((count, shape.num_edges), dtype=bool)


@pytest.mark.parametrize(
    ("quantile", "expected", "gone"),
    [(0.05, 0.075, {0.05}), (0.25, 0.1625, {0.05, 0.1, 0.15})],
)
def test_threshold_is_the_lower_of_the_levels_quantiles(quantile, expected, gone):
    edges = [np.ones_like(level, dtype=bool) for level in _one(EXAMPLE)]

    found = thresholds(_one(EXAMPLE), edges, quantile=quantile)
    after = pruned(_full(SMALL), _one(EXAMPLE), SMALL, quantile=quantile)

    assert found == pytest.approx([expected])
    inner = SMALL.split(after[0])[1:-1]
    assert {v for level, kept in zip(EXAMPLE, inner, strict=True) for v in level[~kept]} == gone


def _random_gates(shape, count, rng):
    made = []
    for below, above in shape.edge_shapes[1:-1]:
        raw = np.exp(rng.normal(size=(count, below, above)))
        made.append(raw / raw.sum(axis=1, keepdims=True))
    return made


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.0, 0.5))
def test_thresholds_agree_with_numpy(seed, quantile):
    rng = np.random.default_rng(seed)
    shape = PyramidShape((2, 4, 3))
    gates = _random_gates(shape, 6, rng)
    bits = np.stack([random_mask(shape, 0.6, rng).bits for _ in range(6)])
    edges = shape.split(bits)[1:-1]

    expected = [
        min(np.quantile(level[c][mask[c]], quantile) for level, mask in zip(gates, edges, strict=True))
        for c in range(6)
    ]

    np.testing.assert_allclose(thresholds(gates, edges, quantile=quantile), expected, rtol=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_pruned_masks_are_valid_smaller_and_have_an_output(seed):
    rng = np.random.default_rng(seed)
    shape = PyramidShape((3, 4, 5))
    gates = _random_gates(shape, 8, rng)
    bits = np.stack([random_mask(shape, w, rng).bits for w in np.linspace(0.05, 1.0, 8)])

    after = pruned(bits, gates, shape, quantile=0.05)
    far = pruned_to(bits, gates, shape, quantile=0.05, target_density=0.3)

    for found in (after, far):
        np.testing.assert_array_equal(validated_bits(found, shape), found)
        assert has_output(found, shape).all()
        assert not (found & ~bits).any()


def test_pruning_goes_on_to_the_target_and_not_beyond_one_step():
    shape = PyramidShape()
    gates = _random_gates(shape, 20, np.random.default_rng(0))

    found = pruned_to(_full(shape, 20), gates, shape, quantile=0.05, target_density=0.5)

    assert (density(found) <= 0.5).all()
    assert (density(found) > 0.4).all()  # one step takes about 5 % of one level's edges, and their dead ends


def test_masks_at_the_target_stay():
    shape = PyramidShape()
    rng = np.random.default_rng(1)
    sparse = random_mask(shape, 0.3, rng).bits[None]

    found = pruned_to(sparse, _random_gates(shape, 1, rng), shape, quantile=0.05, target_density=0.5)

    np.testing.assert_array_equal(found, sparse)


def test_the_last_path_is_never_cut():
    shape = PyramidShape((3, 6, 12))
    gates = _random_gates(shape, 1, np.random.default_rng(2))

    found = pruned_to(_full(shape), gates, shape, quantile=0.05, target_density=0.0)

    assert has_output(found, shape).all()
    again = pruned(found, gates, shape, quantile=0.05)
    np.testing.assert_array_equal(again, found)


def test_equal_gates_leave_nothing_to_prune():
    gates = [np.full((1, 2, 3), 0.5), np.full((1, 3, 2), 0.5)]

    found = pruned_to(_full(SMALL), gates, SMALL, quantile=0.05, target_density=0.2)

    np.testing.assert_array_equal(found, _full(SMALL))


def test_gates_of_zero_set_no_threshold_but_go():
    gates = [np.array([[[0.0, 0.4, 0.5], [1.0, 0.6, 0.5]]]), np.array([[[0.6, 0.5], [0.2, 0.3], [0.2, 0.2]]])]
    edges = [np.ones_like(level, dtype=bool) for level in gates]

    assert thresholds(gates, edges, quantile=0.0) == pytest.approx([0.2])
    after = SMALL.split(pruned(_full(SMALL), gates, SMALL, quantile=0.0))
    assert after[1][0].tolist() == [[False, True, True], [True, True, True]]


def test_a_level_without_gates_sets_no_threshold():
    gates = [np.full((1, 2, 3), 0.5), np.full((1, 3, 2), 0.25)]
    edges = [np.ones((1, 2, 3), dtype=bool), np.zeros((1, 3, 2), dtype=bool)]

    assert thresholds(gates, edges, quantile=0.05) == pytest.approx([0.5])
