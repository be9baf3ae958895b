"""`evaluate` and the JSON form of an evaluation against the specification and hand-built domains."""

import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from training.metrics import Evaluation, MetricError, evaluate

# A worked example: three domains of 6, 4 and 3 rows.
D7: dict[str, Any] = {
    "labels": [1, 0, 1, 0, 0, 1, 1, 0, 0, 1, 0, 0, 0],
    "scores": [0.9, 0.2, 0.4, 0.5, 0.1, 0.8, 0.6, 0.7, 0.2, 0.65, 0.3, 0.1, 0.2],
    "domains": [0] * 6 + [1] * 4 + [2] * 3,
    "domain_names": ["d0", "d1", "d2"],
}

RIGHT, TIED, WRONG = (0.2, 0.8), (0.5, 0.5), (0.8, 0.2)
"""Scores of a (no click, click) pair that give AUC 1, 1/2 and 0."""


def evaluate_pairs(domains: list[tuple[tuple[float, float], int]], **options: Any) -> Evaluation:
    """Evaluate domains made of copies of one (no click, click) pair each; (pair, copies) per domain."""
    scores = [score for pair, copies in domains for score in pair * copies]
    ids = [index for index, (_, copies) in enumerate(domains) for _ in range(2 * copies)]
    names = [f"d{index}" for index in range(len(domains))]
    return evaluate(
        labels=[0, 1] * (len(ids) // 2), scores=scores, domains=ids, domain_names=names, **options
    )


def test_spec_d7() -> None:
    """AUC .888889 and .5, d2 undefined and counted, DomainAUC .733333, TotalAUC .9."""
    result = evaluate(**D7)
    assert result.domains["d0"].auc == pytest.approx(0.888889, abs=1e-6)
    assert result.domains["d1"].auc == pytest.approx(0.5, abs=1e-12)
    assert np.isnan(
        [result.domains["d2"].auc, result.domains["d2"].auc_low, result.domains["d2"].auc_high]
    ).all()
    assert result.domain_auc == pytest.approx(0.733333, abs=1e-6)
    assert result.total_auc == pytest.approx(0.9, abs=1e-12)
    assert (result.rows, result.positives, result.skipped_domains) == (13, 5, 1)


def test_train_weights_come_from_train_counts() -> None:
    """With train counts 1 and 3 for the defined domains: (8/9 + 3 * .5) / 4; the undefined one drops out."""
    result = evaluate(**D7, train_counts=[1, 3, 1000])
    assert result.domain_auc_train_weighted == pytest.approx((8 / 9 + 1.5) / 4, abs=1e-12)
    assert result.domain_auc == pytest.approx(0.733333, abs=1e-6)


def test_train_weighted_mean_without_train_counts_is_nan() -> None:
    """Train weights are never replaced by something else."""
    assert np.isnan(evaluate(**D7).domain_auc_train_weighted)


def test_metrics_of_one_domain_by_hand() -> None:
    """Domain d2 (no clicks, scores .3 .1 .2) has every number that needs no click."""
    domain = evaluate(**D7).domains["d2"]
    assert (domain.rows, domain.positives, domain.mean_label) == (3, 0, 0.0)
    assert domain.mean_score == pytest.approx(0.2, abs=1e-12)
    assert domain.logloss == pytest.approx(-np.log(0.7 * 0.9 * 0.8) / 3, abs=1e-12)
    assert domain.ece == pytest.approx(0.2, abs=1e-12)
    assert np.isnan(domain.calibration_ratio)


def test_interval_of_one_domain_by_hand() -> None:
    """The bounds of d0 are DeLong's: 8/9 - 1.96 * sqrt(2) / 9 = .580910, and 1."""
    domain = evaluate(**D7).domains["d0"]
    assert domain.auc_low == pytest.approx(8 / 9 - 1.959964 * 2**0.5 / 9, abs=1e-6)
    assert domain.auc_high == 1.0


def test_num_bins_reaches_every_ece() -> None:
    """With one bin, ECE is |mean score - mean label|, pooled and per domain."""
    result = evaluate(**D7, num_bins=1)
    assert result.ece == pytest.approx(abs(np.mean(D7["scores"]) - 5 / 13), abs=1e-12)
    assert result.domains["d0"].ece == pytest.approx(abs(2.9 / 6 - 0.5), abs=1e-12)


def test_pooled_calibration_by_hand() -> None:
    """The scores of D7 sum to 5.65 and 5 rows are clicks."""
    assert evaluate(**D7).calibration_ratio == pytest.approx(5.65 / 5, abs=1e-12)


def test_row_order_does_not_matter() -> None:
    """Rows of a domain need not lie together."""
    order = np.random.default_rng(0).permutation(13)
    rows: dict[str, Any] = {name: np.array(D7[name])[order] for name in ("labels", "scores", "domains")}
    shuffled = evaluate(**rows, domain_names=D7["domain_names"]).to_json_dict()
    expected = evaluate(**D7).to_json_dict()
    assert shuffled["domain_auc"] == pytest.approx(expected["domain_auc"], abs=1e-12)
    for name in D7["domain_names"]:
        assert shuffled["domains"][name] == pytest.approx(expected["domains"][name], abs=1e-12)


def test_major_and_minor_pick_by_evaluated_rows() -> None:
    """Of 12 domains with 1 .. 12 pairs, the five largest have AUC 1 and the two smallest 0."""
    pairs = [WRONG, WRONG] + [TIED] * 5 + [RIGHT] * 5
    result = evaluate_pairs([(pair, index + 1) for index, pair in enumerate(pairs)])
    assert result.major5_auc == 1.0
    # The ten smallest have 1 .. 10 pairs: 3 of AUC 0, 25 of AUC 1/2 and 8, 9, 10 of AUC 1; 55 in all.
    assert result.minor10_auc == pytest.approx((25 / 2 + 27) / 55, abs=1e-12)


def test_train_counts_pick_major_and_minor_but_evaluated_rows_weigh_them() -> None:
    """The domain with the fewest train rows is out of the major five however many rows it is tested on."""
    domains = [(WRONG, 50), (RIGHT, 3), (RIGHT, 1), (RIGHT, 1), (RIGHT, 1), (TIED, 2)]
    result = evaluate_pairs(domains, train_counts=[1, 60, 50, 40, 30, 20])
    assert result.major5_auc == pytest.approx((3 + 1 + 1 + 1 + 2 / 2) / 8, abs=1e-12)
    assert result.minor10_auc == pytest.approx(result.domain_auc, abs=1e-12)


def test_of_equal_sizes_the_first_named_is_larger() -> None:
    """Six equal domains: the last one is the one left out of the major five."""
    assert evaluate_pairs([(RIGHT, 1)] * 5 + [(WRONG, 1)]).major5_auc == 1.0
    assert evaluate_pairs([(RIGHT, 1)] + [(WRONG, 1)] * 10).minor10_auc == 0.0


def test_undefined_domains_keep_their_place_among_the_minor() -> None:
    """A small one-class domain drops out of the mean but lets no larger domain in."""
    labels = [0] + [0, 1] * 10
    scores = [0.3] + list(RIGHT) * 9 + list(WRONG)
    domains = [0] + [index for index in range(1, 11) for _ in range(2)]
    names = [f"d{index}" for index in range(11)]
    # By train counts d1 .. d10 grow, d10 (the wrong one) is the largest and stays out of the ten smallest.
    result = evaluate(
        labels=labels, scores=scores, domains=domains, domain_names=names, train_counts=list(range(11))
    )
    assert result.minor10_auc == 1.0
    assert result.skipped_domains == 1


def test_named_domains_without_rows_are_shown_and_skipped() -> None:
    """A domain nobody was evaluated on appears with 0 rows and undefined metrics, and counts as skipped."""
    names = ["empty", "d0", "d1", "d2"]
    rows = {**D7, "domains": [index + 1 for index in D7["domains"]], "domain_names": names}
    result = evaluate(**rows)
    assert list(result.domains) == names
    assert (result.domains["empty"].rows, result.domains["empty"].positives) == (0, 0)
    assert np.isnan(result.domains["empty"].logloss)
    assert result.skipped_domains == 2


def test_named_domains_without_rows_take_no_minor_slot() -> None:
    """With one empty domain and ten of 1 .. 10 pairs, the ten are the minor domains, the largest included."""
    domains = [(RIGHT, 0)] + [(RIGHT, copies) for copies in range(1, 10)] + [(WRONG, 10)]
    assert evaluate_pairs(domains).minor10_auc == pytest.approx(45 / 55, abs=1e-12)


def test_no_domain_with_both_classes_leaves_the_means_undefined() -> None:
    """Means over no domain are nan, while pooled AUC may exist."""
    result = evaluate(labels=[0, 1], scores=[0.1, 0.9], domains=[0, 1], domain_names=["a", "b"])
    assert np.isnan([result.domain_auc, result.major5_auc, result.minor10_auc]).all()
    assert (result.total_auc, result.skipped_domains) == (1.0, 2)


def test_users_give_gauc() -> None:
    """One user AUC of 1/2 over 3 rows and one of 3/4 over 4 give .642857; without users it is nan."""
    rows: dict[str, Any] = {
        "labels": [1, 0, 0, 1, 1, 0, 0],
        "scores": [0.9, 0.2, 0.95, 0.8, 0.3, 0.4, 0.1],
        "domains": [0] * 7,
        "domain_names": ["all"],
    }
    assert evaluate(**rows, users=["u1"] * 3 + ["u2"] * 4).gauc == pytest.approx(0.642857, abs=1e-6)
    assert np.isnan(evaluate(**rows).gauc)


def test_json_form_has_exactly_the_published_keys() -> None:
    """Reports and bundles read these names; nan becomes None, so strict JSON takes it."""
    document = evaluate(**D7).to_json_dict()
    assert list(document) == [
        "total_auc", "domain_auc", "domain_auc_train_weighted", "major5_auc", "minor10_auc", "gauc",
        "logloss", "ece", "calibration_ratio", "rows", "positives", "skipped_domains", "domains",
    ]  # fmt: skip
    assert set(document["domains"]["d0"]) == {
        "auc", "auc_low", "auc_high", "rows", "positives", "ece", "logloss", "calibration_ratio",
        "mean_score",
    }  # fmt: skip
    assert document["gauc"] is None
    assert document["domain_auc_train_weighted"] is None
    assert document["domains"]["d2"]["auc"] is None
    assert document["domains"]["d2"]["calibration_ratio"] is None
    assert json.loads(json.dumps(document, allow_nan=False)) == document


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [1] * 12}, r"^labels has 12 rows but scores has 13$"),
        ({"labels": [3] * 13}, r"^labels must be 0 or 1, got 3.0 at row 0$"),
        ({"scores": [0.5] * 12 + [2.0]}, r"^scores must lie in \[0, 1\], got 2.0 at row 12$"),
        ({"scores": [np.nan] * 13}, r"^scores must not be NaN, got nan at row 0$"),
        ({"domains": [0] * 12}, r"^labels has 13 rows but domains has 12$"),
        ({"domains": [0] * 12 + [3]}, r"^domains must lie in \[0, 3\), got 3 at row 12$"),
        ({"domains": [-1] * 13}, r"^domains must lie in \[0, 3\), got -1 at row 0$"),
        ({"domains": ["d0"] * 13}, r"^domains must be integers, got dtype <U2$"),
        ({"domain_names": ["a", "b", "a"]}, r"^domain_names must be distinct, got 'a' more than once$"),
        ({"users": [1, 2]}, r"^labels has 13 rows but users has 2$"),
        ({"train_counts": [1, 2]}, r"^train_counts has 2 entries but there are 3 domain_names$"),
        ({"train_counts": [1, -2, 1]}, r"^train_counts must lie in \[0, \d+\), got -2 at row 1$"),
        ({"num_bins": 0}, r"^num_bins must be at least 1, got 0$"),
        ({"labels": [], "scores": [], "domains": []}, r"^labels has no rows; a metric needs at least one$"),
    ],
)
def test_evaluate_refuses_unusable_input(change: dict[str, Any], message: str) -> None:
    """Every unusable argument is named, with the offending value and what is allowed."""
    with pytest.raises(MetricError, match=message):
        evaluate(**{**D7, **change})


def test_import_needs_neither_torch_nor_scikit_learn() -> None:
    """Metrics run where only numpy is installed."""
    program = (
        "import sys, training.metrics; print([m for m in ('torch', 'sklearn', 'scipy') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path) or "."}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == "[]"
