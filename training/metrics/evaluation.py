"""The records an evaluation is handed on in, and their JSON form.

Values only; `evaluate` in `per_domain.py` computes them. Invariant: the JSON form has exactly the keys of
`EvaluationJson`, and an undefined value is nan in the record and None in JSON, which knows no nan.
"""

from dataclasses import dataclass
from typing import TypedDict

import numpy as np

HEADLINE = (
    "total_auc",
    "domain_auc",
    "major5_auc",
    "minor10_auc",
    "gauc",
    "logloss",
    "ece",
    "calibration_ratio",
)
"""Figures of a whole evaluation that reports, cards and studies show, in their order."""


class DomainMetricsJson(TypedDict):
    """One domain in the JSON form; None stands for an undefined value."""

    auc: float | None
    auc_low: float | None
    auc_high: float | None
    rows: int
    positives: int
    ece: float | None
    logloss: float | None
    calibration_ratio: float | None
    mean_score: float | None


class EvaluationJson(TypedDict):
    """An evaluation in its JSON form; None stands for an undefined value."""

    total_auc: float | None
    domain_auc: float | None
    domain_auc_train_weighted: float | None
    major5_auc: float | None
    minor10_auc: float | None
    gauc: float | None
    logloss: float | None
    ece: float | None
    calibration_ratio: float | None
    rows: int
    positives: int
    skipped_domains: int
    domains: dict[str, DomainMetricsJson]


@dataclass(frozen=True)
class DomainMetrics:
    """Metrics of one domain's rows; with no rows every float is nan."""

    rows: int
    positives: int
    auc: float
    """nan when a class is missing; so are its bounds."""
    auc_low: float
    """Lower end of the 95 % interval of `auc`, see `auc_interval`."""
    auc_high: float
    logloss: float
    """Nats per row."""
    calibration_ratio: float
    """Predicted clicks / observed clicks; nan when none was observed."""
    ece: float
    mean_score: float
    mean_label: float

    def to_json_dict(self) -> DomainMetricsJson:
        """Give the published fields, nan as None."""
        return DomainMetricsJson(
            auc=_none_if_nan(self.auc),
            auc_low=_none_if_nan(self.auc_low),
            auc_high=_none_if_nan(self.auc_high),
            rows=self.rows,
            positives=self.positives,
            ece=_none_if_nan(self.ece),
            logloss=_none_if_nan(self.logloss),
            calibration_ratio=_none_if_nan(self.calibration_ratio),
            mean_score=_none_if_nan(self.mean_score),
        )


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one model on one set of rows; undefined values are nan."""

    total_auc: float
    """AUC of all rows pooled; mixes the domains' base rates, so read it next to `domain_auc`."""
    domain_auc: float
    """Mean of domain AUC weighted by evaluated rows."""
    domain_auc_train_weighted: float
    """Mean of domain AUC weighted by train rows; nan when train counts were not given."""
    major5_auc: float
    """`domain_auc` over the 5 largest domains (by train rows where given, else evaluated rows)."""
    minor10_auc: float
    """`domain_auc` over the 10 smallest domains, same sizes and weights as `major5_auc`."""
    gauc: float
    """Mean of user AUC weighted by impressions; nan when users were not given."""
    logloss: float
    """Nats per row."""
    ece: float
    calibration_ratio: float
    """Predicted clicks / observed clicks; nan when none was observed."""
    rows: int
    positives: int
    skipped_domains: int
    """Named domains with undefined AUC, those without rows included."""
    domains: dict[str, DomainMetrics]
    """Every named domain, in the order of the names."""

    def to_json_dict(self) -> EvaluationJson:
        """Give the published fields, nan as None, domains nested by name."""
        return EvaluationJson(
            total_auc=_none_if_nan(self.total_auc),
            domain_auc=_none_if_nan(self.domain_auc),
            domain_auc_train_weighted=_none_if_nan(self.domain_auc_train_weighted),
            major5_auc=_none_if_nan(self.major5_auc),
            minor10_auc=_none_if_nan(self.minor10_auc),
            gauc=_none_if_nan(self.gauc),
            logloss=_none_if_nan(self.logloss),
            ece=_none_if_nan(self.ece),
            calibration_ratio=_none_if_nan(self.calibration_ratio),
            rows=self.rows,
            positives=self.positives,
            skipped_domains=self.skipped_domains,
            domains={name: metrics.to_json_dict() for name, metrics in self.domains.items()},
        )


def _none_if_nan(value: float) -> float | None:
    return None if np.isnan(value) else value
