"""Golden rows: written and read unchanged, and any wrong score is named."""

import numpy as np
import pytest

from service.errors import GoldenError
from service.scoring.golden import check_golden, read_golden, write_golden

ROWS = {
    "a": ({"x": np.arange(6, dtype=np.int32).reshape(3, 2)}, np.array([0.1, 0.2, 0.3], np.float32)),
    "cluster-2": ({"x": np.zeros((1, 2), np.int32)}, np.array([0.5], np.float32)),
}


class Fixed:
    def __init__(self, scores):
        self.scores = np.array(scores, np.float32)

    def run(self, inputs):
        return self.scores


@pytest.fixture
def golden(tmp_path):
    write_golden(tmp_path / "golden.npz", ROWS)
    return read_golden(tmp_path / "golden.npz")


def test_what_was_written_is_read_and_writes_the_same_bytes(tmp_path, golden):
    assert set(golden) == set(ROWS)
    np.testing.assert_array_equal(golden["a"].inputs["x"], ROWS["a"][0]["x"])
    np.testing.assert_array_equal(golden["a"].expected, ROWS["a"][1])
    write_golden(tmp_path / "again.npz", ROWS)
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "golden.npz").read_bytes()


def test_errors_are_reported_by_graph(golden):
    found = check_golden({"a": Fixed([0.1, 0.2, 0.300004]), "cluster-2": Fixed([0.5])}, golden)
    assert found["a"] == pytest.approx(4e-6, rel=0.02)
    assert found["cluster-2"] == 0


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([0.1, 0.25, 0.3], r"graph 'a': golden row 1 scores 0\.25, expected 0\.2"),
        ([0.1, float("nan"), 0.3], "graph 'a': golden row 1 scores nan"),
        ([0.1, 0.2], r"graph 'a': \(2,\) scores for \(3,\) golden rows"),
    ],
)
def test_a_wrong_score_names_graph_and_row(golden, scores, message):
    with pytest.raises(GoldenError, match=message):
        check_golden({"a": Fixed(scores), "cluster-2": Fixed([0.5])}, golden)


def test_a_graph_without_rows_is_refused(golden):
    with pytest.raises(GoldenError, match=r"do not match: \['cluster-2'\]"):
        check_golden({"a": Fixed([0.1, 0.2, 0.3])}, golden)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({}, "no graph has golden rows"),
        ({"a": ({"x/y": np.zeros(1)}, np.zeros(1, np.float32))}, "'x/y' cannot name an input"),
        ({"a": ({}, np.zeros(1))}, "must be .N,. float32"),
        ({"a": ({}, np.array([np.nan], np.float32))}, "expected score of row 0 is not finite"),
    ],
)
def test_unusable_rows_are_not_written(tmp_path, rows, message):
    with pytest.raises(GoldenError, match=message):
        write_golden(tmp_path / "g.npz", rows)


def test_a_file_that_is_no_archive_and_one_without_scores_are_refused(tmp_path):
    (tmp_path / "g.npz").write_bytes(b"not an archive")
    with pytest.raises(GoldenError, match="cannot be read as golden rows"):
        read_golden(tmp_path / "g.npz")
    np.savez(tmp_path / "h.npz", **{"a/x": np.zeros(1)})
    with pytest.raises(GoldenError, match="graph 'a' has inputs but no 'expected'"):
        read_golden(tmp_path / "h.npz")
