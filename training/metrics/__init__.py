"""Offline metrics of click models: AUC, log loss, calibration, per-domain evaluation and ranking.

Pure functions over numpy arrays, without torch or scikit-learn; `evaluate` is what a report starts from.
Invariant: bad input raises `MetricError` with the offending value; an undefined metric is nan.
"""

from training.metrics.auc import GroupedAuc, auc, gauc, grouped_auc
from training.metrics.calibration import (
    ReliabilityCurve,
    calibration_ratio,
    expected_calibration_error,
    reliability_curve,
)
from training.metrics.errors import MetricError
from training.metrics.evaluation import HEADLINE, DomainMetrics, DomainMetricsJson, Evaluation, EvaluationJson
from training.metrics.interval import AucInterval, auc_interval
from training.metrics.loss import logloss, logloss_from_logits
from training.metrics.per_domain import evaluate
from training.metrics.ranking import hit_rate_at_k, mrr, ndcg_at_k, ranks_of_positive
from training.metrics.streaming import StreamedMetrics, batch_sums, equal_mass_edges, values_of_sums

__all__ = [
    "HEADLINE",
    "AucInterval",
    "DomainMetrics",
    "DomainMetricsJson",
    "Evaluation",
    "EvaluationJson",
    "GroupedAuc",
    "MetricError",
    "ReliabilityCurve",
    "StreamedMetrics",
    "auc",
    "auc_interval",
    "batch_sums",
    "calibration_ratio",
    "equal_mass_edges",
    "evaluate",
    "expected_calibration_error",
    "gauc",
    "grouped_auc",
    "hit_rate_at_k",
    "logloss",
    "logloss_from_logits",
    "mrr",
    "ndcg_at_k",
    "ranks_of_positive",
    "reliability_curve",
    "values_of_sums",
]
