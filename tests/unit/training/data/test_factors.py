"""Factor vectors and sums of item vectors by hand."""

import math

import numpy as np
import pytest

from training.data.factors import singular_vectors, sum_of_items, unit_length


def test_singular_vectors_rebuild_the_degree_normalised_matrix():
    left, right = singular_vectors(np.array([0, 0, 1]), np.array([0, 1, 1]), (3, 3), 2)

    # Marks (0,0), (0,1), (1,1), each over the roots of its row's and its column's number of marks.
    expected = [[1 / math.sqrt(2), 1 / 2, 0], [0, 1 / math.sqrt(2), 0], [0, 0, 0]]
    assert left @ right.T == pytest.approx(np.array(expected), abs=1e-6)


def test_missing_ranks_are_zero():
    left, right = singular_vectors(np.array([0]), np.array([0]), (2, 2), 4)

    assert left.shape == right.shape == (2, 4)
    assert np.abs(left[:, 1:]).max() == pytest.approx(0, abs=1e-9)


def test_no_marks_give_zeros():
    none = np.zeros(0, dtype=np.int64)

    left, right = singular_vectors(none, none, (2, 3), 2)

    assert not left.any()
    assert not right.any()


def test_unit_length_leaves_zero_rows():
    assert unit_length(np.array([[3.0, 4.0], [0.0, 0.0]])) == pytest.approx(np.array([[0.6, 0.8], [0, 0]]))


def test_sum_of_items_divides_by_the_root_of_their_number():
    vectors = np.array([[1.0, 0.0], [0.0, 2.0]])

    found = sum_of_items(np.array([0, 0, 2]), np.array([0, 1, 1]), np.array([1.0, -0.5, 3.0]), vectors, 3)

    root = math.sqrt(2)
    assert found == pytest.approx(np.array([[1 / root, -1 / root], [0, 0], [0, 6]]))
