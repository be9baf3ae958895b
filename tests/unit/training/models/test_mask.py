"""Masks of the expert pyramid: worked examples, and properties against a definition by paths."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.models.mask import (
    MaskError,
    PyramidMask,
    PyramidShape,
    density,
    has_output,
    random_mask,
    validated_bits,
)


def _rows(*rows):
    return np.array(rows, dtype=bool)


def _mask(shape, *arrays):
    return PyramidMask.from_arrays(shape, [_rows(*array) for array in arrays])


SMALL = PyramidShape((2, 3, 2))


@st.composite
def shaped_bits(draw):
    """A pyramid of two to five levels, base experts or not, and any bits."""
    widths = tuple(draw(st.lists(st.integers(1, 4), min_size=2, max_size=5)))
    shape = PyramidShape(widths, base_width=draw(st.sampled_from([0, 0, 2])))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    share = draw(st.sampled_from([0.1, 0.3, 0.5, 0.8]))
    return shape, rng.random(shape.num_edges) < share


def _by_paths(bits, shape):
    """Keep the inner edges of every path from the lowest level to the highest, by listing all paths."""
    first, *inner, last = shape.split(bits)
    kept = [np.zeros_like(edges) for edges in inner]
    for path in itertools.product(*(range(width) for width in shape.levels)):
        if all(edges[a, b] for edges, a, b in zip(inner, path[:-1], path[1:], strict=True)):
            for edges, a, b in zip(kept, path[:-1], path[1:], strict=True):
                edges[a, b] = True
    inputs = first | inner[0].any(axis=1)[None]
    return shape.join([inputs, *kept, kept[-1].any(axis=0)[:, None]]), last


def test_published_pyramid_has_105_edges():
    shape = PyramidShape()

    assert shape.edge_shapes == ((1, 3), (3, 6), (6, 12), (12, 1))
    assert shape.num_edges == 3 + 18 + 72 + 12 == 105
    assert PyramidMask.full(shape).density == 1.0


def test_validate_gives_inputs_and_outputs_and_deletes_dead_ends():
    given_mask = _mask(SMALL, [[0, 0]], [[1, 0, 0], [0, 0, 1]], [[1, 0], [0, 1], [0, 0]], [[0], [0]])
    expected = _mask(SMALL, [[1, 1]], [[1, 0, 0], [0, 0, 0]], [[1, 0], [0, 0], [0, 0]], [[1], [0]])

    found = given_mask.validate()

    assert found == expected
    assert found.inputs.tolist() == [True, True]  # the input of an expert that nothing reads stays
    assert found.num_used == (1, 1, 1)
    assert found.is_valid
    assert not given_mask.is_valid


def test_validate_deletes_level_by_level_until_stable():
    given_mask = _mask(SMALL, [[1, 1]], [[1, 1, 0], [0, 1, 0]], [[0, 0], [0, 1], [1, 0]], [[1], [0]])
    expected = _mask(SMALL, [[1, 1]], [[0, 1, 0], [0, 1, 0]], [[0, 0], [0, 1], [0, 0]], [[0], [1]])

    assert given_mask.validate() == expected


@settings(max_examples=200, deadline=None)
@given(shaped_bits())
def test_validated_masks_are_what_paths_define(case):
    shape, bits = case

    expected, _ = _by_paths(bits, shape)

    np.testing.assert_array_equal(expected, validated_bits(bits, shape))


@settings(max_examples=200, deadline=None)
@given(shaped_bits())
def test_validate_is_idempotent_and_only_deletes_inner_edges(case):
    shape, bits = case
    once = validated_bits(bits, shape)

    np.testing.assert_array_equal(once, validated_bits(once, shape))
    inner = slice(shape.spans[0].stop, shape.spans[-1].start)
    assert not (once[inner] & ~bits[inner]).any()
    assert not (bits[shape.spans[0]] & ~once[shape.spans[0]]).any()


@settings(max_examples=200, deadline=None)
@given(shaped_bits())
def test_inner_experts_have_an_input_exactly_where_they_have_an_output(case):
    shape, bits = case
    mask = PyramidMask(shape, validated_bits(bits, shape))

    for active, used in zip(mask.active[1:], mask.used[1:], strict=True):
        np.testing.assert_array_equal(active, used)


@settings(max_examples=50, deadline=None)
@given(shaped_bits(), st.integers(0, 2**32 - 1))
def test_many_masks_at_once_equal_one_at_a_time(case, seed):
    shape, _ = case
    batch = np.random.default_rng(seed).random((3, 4, shape.num_edges)) < 0.4
    found = validated_bits(batch, shape)

    for place in np.ndindex(3, 4):
        np.testing.assert_array_equal(validated_bits(batch[place], shape), found[place])
        assert has_output(found, shape)[place] == shape.split(found[place])[-1].any()
        assert density(found)[place] == pytest.approx(found[place].sum() / shape.num_edges)


def test_four_levels_leave_no_dangling_expert():
    shape = PyramidShape((3, 6, 12, 24))
    bits = validated_bits(np.random.default_rng(0).random((500, shape.num_edges)) < 0.2, shape)

    for found in bits:
        mask = PyramidMask(shape, found)
        for active, used in zip(mask.active[1:], mask.used[1:], strict=True):
            np.testing.assert_array_equal(active, used)


def test_base_experts_are_one_more_level():
    shape = PyramidShape((2, 2), base_width=3)
    mask = _mask(shape, [[0, 0, 1]], [[1, 0], [0, 0], [0, 1]], [[1, 0], [0, 0]], [[0], [0]]).validate()

    assert shape.edge_shapes == ((1, 3), (3, 2), (2, 2), (2, 1))
    assert mask == _mask(shape, [[1, 0, 1]], [[1, 0], [0, 0], [0, 0]], [[1, 0], [0, 0]], [[1], [0]])
    assert mask.inputs.tolist() == [True, False]
    assert mask.num_used == (1, 1, 1)


def test_arrays_and_flat_bits_are_one_thing():
    shape = PyramidShape((2, 3))
    bits = np.arange(shape.num_edges) % 3 == 0
    mask = PyramidMask(shape, bits)

    assert PyramidMask.from_arrays(shape, mask.arrays) == mask
    assert hash(PyramidMask(shape, bits.copy())) == hash(mask)
    assert mask != PyramidMask.full(shape)
    assert mask != "a mask"
    assert mask.num_edges == int(bits.sum())
    with pytest.raises(ValueError, match="read-only"):
        mask.bits[0] = False


@pytest.mark.parametrize("wanted", [0.1, 0.3, 0.5, 0.7, 1.0])
def test_random_masks_are_valid_and_about_as_dense_as_wanted(wanted):
    shape = PyramidShape()
    for seed in range(20):
        mask = random_mask(shape, wanted, np.random.default_rng(seed))

        assert mask.is_valid
        np.testing.assert_array_equal(mask.used[0], mask.inputs)
        # The first input of an expert wakes up to 12 edges above it, so that the nearer side is within 8.
        assert abs(mask.density - wanted) <= 8 / shape.num_edges


def test_sparsest_random_mask_is_one_path():
    mask = random_mask(PyramidShape(), 0.0, np.random.default_rng(3))

    assert mask.num_used == (1, 1, 1)
    assert mask.num_edges == 4


def test_mask_without_a_path_is_refused():
    mask = _mask(SMALL, [[1, 1]], [[1, 0, 0], [0, 0, 0]], [[0, 0], [0, 1], [0, 0]], [[1], [1]])

    with pytest.raises(MaskError, match=r"a mask of \[2, 1, 1, 2\] edges by level has no path .* at least 1"):
        mask.validate()
    assert not mask.is_valid


def test_wrong_bits_are_refused():
    with pytest.raises(MaskError, match=r"int64 of shape \(105,\); a pyramid \(3, 6, 12\) needs bool"):
        PyramidMask(PyramidShape(), np.ones(105, dtype=np.int64))
    with pytest.raises(MaskError, match=r"bool of shape \(4,\).* of shape \(105,\)"):
        PyramidMask(PyramidShape(), np.ones(4, dtype=bool))


def test_wrong_arrays_are_refused():
    with pytest.raises(MaskError, match=r"shapes \(\(1, 2\),\); a pyramid \(2, 3, 2\) has \(\(1, 2\), "):
        _mask(SMALL, [[1, 1]])


@pytest.mark.parametrize("widths", [(), (3,)])
def test_pyramids_of_one_level_are_refused(widths):
    with pytest.raises(MaskError, match=r"it needs at least 2 levels"):
        PyramidShape(widths)


def test_levels_without_experts_are_refused():
    with pytest.raises(MaskError, match=r"levels \[3, 0\] over 0 base experts; every level needs at least 1"):
        PyramidShape((3, 0))
    with pytest.raises(MaskError, match=r"over -1 base experts"):
        PyramidShape((3, 2), base_width=-1)
