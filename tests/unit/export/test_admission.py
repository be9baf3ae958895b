"""The gate for lower precision: limits by hand-made scores, and refusals that say which figure decided."""

from __future__ import annotations

import numpy as np
import pytest

from export.admission import MIN_OF_CLASS, Verdict, judge

ROWS = 3000


def verdict(scores: np.ndarray, *, overall: bool = True, rows: int = ROWS) -> Verdict:
    """Of scores for two domains of `rows` rows each, every other row a click; fp32 separates them."""
    labels = np.tile(np.float32([0, 1]), rows)
    reference = labels * np.float32(0.8) + np.float32(0.1)
    domains = np.repeat(np.int64([0, 1]), rows)
    return judge(
        labels=labels,
        domains=domains,
        names=("home", "cart"),
        reference=reference,
        scores=scores.astype(np.float32),
        overall=overall,
    )


def perfect(rows: int = ROWS) -> np.ndarray:
    """Scores that are those of fp32."""
    return np.tile(np.float32([0, 1]), rows) * 0.8 + 0.1


def test_the_same_scores_are_admitted():
    """Nothing lost, figures of both sides told."""
    found = verdict(perfect())

    assert found.admitted
    assert (found.auc_fp32, found.auc, found.num_domains, found.num_rows) == (1.0, 1.0, 2, 2 * ROWS)
    assert found.told()["reason"] == "every limit is kept"


def test_a_domain_that_loses_is_named():
    """A click of cart below all rows without one loses 1/1500 of the pairs; that is allowed, two are not."""
    scores = perfect()
    scores[ROWS + 1] = 0.05
    assert verdict(scores, overall=False).admitted
    scores[ROWS + 3] = 0.05
    found = verdict(scores, overall=False)

    assert not found.admitted
    assert found.worst_domain == "cart"
    assert found.worst_domain_loss == pytest.approx(2 / 1500)
    assert found.reason == "AUC of domain 'cart' is 0.0013 worse, at most 0.001 is allowed"


def test_calibration_counts_over_all_rows_only():
    """Scores in the same order, 0.01 too high: AUC stays, ECE does not."""
    moved = perfect() + 0.01 * (perfect() > 0.5)
    labels_mean = verdict(moved, overall=False)

    assert labels_mean.admitted
    assert abs(labels_mean.ece - labels_mean.ece_fp32) > 0.002


def test_rows_of_one_class_admit_nothing():
    """Too few clicks to judge is said, not passed over."""
    few = MIN_OF_CLASS - 1
    found = judge(
        labels=np.float32([1] * few + [0] * 500),
        domains=np.zeros(few + 500, np.int64),
        names=("home",),
        reference=np.full(few + 500, 0.1, np.float32),
        scores=np.full(few + 500, 0.1, np.float32),
    )

    assert not found.admitted
    assert found.reason == "529 validation rows with 29 clicks; at least 30 of each class are needed"
