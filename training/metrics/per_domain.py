"""Evaluate one model's click probabilities: pooled, per domain and over domains.

Reads labels, probabilities and domain ids of the same rows; gives one frozen `Evaluation`.
Invariant: a domain whose AUC is undefined (no rows, or one class) drops out of every mean over
domains together with its weight, and is counted in `skipped_domains`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from training.metrics.auc import auc, gauc, weighted_mean_auc
from training.metrics.calibration import DEFAULT_NUM_BINS, calibration_ratio, expected_calibration_error
from training.metrics.errors import MetricError
from training.metrics.evaluation import DomainMetrics, Evaluation
from training.metrics.inputs import (
    BoolArray,
    FloatArray,
    IntArray,
    as_indices,
    as_labels,
    as_probabilities,
    require_same_rows,
)
from training.metrics.interval import auc_interval
from training.metrics.loss import logloss

NUM_MAJOR = 5
"""How many of the largest domains `major5_auc` covers."""
NUM_MINOR = 10
"""How many of the smallest domains `minor10_auc` covers."""


class _DomainMeans(NamedTuple):
    """Means of domain AUC, each nan where no domain it covers has a defined one."""

    by_rows: float
    by_train_rows: float
    major: float
    minor: float


def evaluate(
    *,
    labels: ArrayLike,
    scores: ArrayLike,
    domains: ArrayLike,
    domain_names: Sequence[str],
    users: ArrayLike | None = None,
    train_counts: ArrayLike | None = None,
    num_bins: int = DEFAULT_NUM_BINS,
) -> Evaluation:
    """Compute every metric of one model on B rows over D domains.

    Source: CDC (DomainAUC, TotalAUC, Major5AUC, Minor10AUC). The paper does not name the split its domain
    sizes come from and its code weighs by train rows; we report both weightings.

    Args:
        labels: (B,) 0 or 1.
        scores: (B,) click probabilities, in [0, 1].
        domains: (B,) integers in [0, D).
        domain_names: D distinct names.
        users: (B,) integer or string user ids; None leaves GAUC undefined.
        train_counts: (D,) integers, train rows of each domain; None sizes domains by evaluated rows.
        num_bins: Bins of each ECE, at least 1.

    Raises:
        MetricError: empty, of different lengths, labels not 0 or 1, scores NaN or outside [0, 1], domains out
            of range, names repeated, train counts negative or not one per domain, num_bins below 1.
    """
    is_positive, chances = as_labels(labels), as_probabilities(scores, name="scores")
    domain_of_row = as_indices(domains, size=len(domain_names), name="domains")
    require_same_rows(labels=is_positive, scores=chances, domains=domain_of_row)
    _require_distinct(domain_names)
    train_rows = None if train_counts is None else _as_train_counts(train_counts, domain_names)
    rows = np.bincount(domain_of_row, minlength=len(domain_names))
    row_blocks = np.split(np.argsort(domain_of_row, kind="stable"), np.cumsum(rows)[:-1])
    metrics = [_domain_metrics(is_positive[block], chances[block], num_bins=num_bins) for block in row_blocks]
    domain_aucs = np.array([domain.auc for domain in metrics])
    means = _domain_means(domain_aucs, rows=rows, train_rows=train_rows)
    return Evaluation(
        total_auc=auc(is_positive, chances),
        domain_auc=means.by_rows,
        domain_auc_train_weighted=means.by_train_rows,
        major5_auc=means.major,
        minor10_auc=means.minor,
        gauc=float("nan") if users is None else gauc(is_positive, chances, users),
        logloss=logloss(is_positive, chances),
        ece=expected_calibration_error(is_positive, chances, num_bins=num_bins),
        calibration_ratio=calibration_ratio(is_positive, chances),
        rows=len(is_positive),
        positives=int(is_positive.sum()),
        skipped_domains=int(np.isnan(domain_aucs).sum()),
        domains=dict(zip(domain_names, metrics, strict=True)),
    )


def _domain_metrics(labels: BoolArray, scores: FloatArray, *, num_bins: int) -> DomainMetrics:
    if len(labels) == 0:
        nan = float("nan")
        return DomainMetrics(0, 0, nan, nan, nan, nan, nan, nan, nan, nan)
    interval = auc_interval(labels, scores)
    return DomainMetrics(
        rows=len(labels),
        positives=int(labels.sum()),
        auc=interval.auc,
        auc_low=interval.low,
        auc_high=interval.high,
        logloss=logloss(labels, scores),
        calibration_ratio=calibration_ratio(labels, scores),
        ece=expected_calibration_error(labels, scores, num_bins=num_bins),
        mean_score=float(scores.mean()),
        mean_label=float(labels.mean()),
    )


def _domain_means(domain_aucs: FloatArray, *, rows: IntArray, train_rows: IntArray | None) -> _DomainMeans:
    """Average domain AUC (D,) over all domains, the major and the minor ones.

    Major and minor are picked by train rows (evaluated rows where those are unknown) among domains with
    evaluated rows, before AUC is looked at, so that every model of a data set is judged on the same ones;
    their AUC is weighed by evaluated rows. Of equal sizes, the domain named first counts as the larger.
    """
    sizes = rows if train_rows is None else train_rows
    evaluated = np.flatnonzero(rows)[::-1]
    by_size = evaluated[np.argsort(sizes[evaluated], kind="stable")]
    major, minor = by_size[::-1][:NUM_MAJOR], by_size[:NUM_MINOR]
    return _DomainMeans(
        by_rows=weighted_mean_auc(domain_aucs, rows),
        by_train_rows=float("nan") if train_rows is None else weighted_mean_auc(domain_aucs, train_rows),
        major=weighted_mean_auc(domain_aucs[major], rows[major]),
        minor=weighted_mean_auc(domain_aucs[minor], rows[minor]),
    )


def _as_train_counts(train_counts: ArrayLike, domain_names: Sequence[str]) -> IntArray:
    counts = as_indices(train_counts, size=np.iinfo(np.int64).max, name="train_counts")
    if len(counts) != len(domain_names):
        raise MetricError(
            f"train_counts has {len(counts)} entries but there are {len(domain_names)} domain_names"
        )
    return counts


def _require_distinct(domain_names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in domain_names:
        if name in seen:
            raise MetricError(f"domain_names must be distinct, got {name!r} more than once")
        seen.add(name)
