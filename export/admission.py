"""The gate for lower precision: how much worse scores may get on the validation part.

Reads labels and two sets of scores of the same rows. Invariant: what is admitted keeps the AUC of every
domain with enough rows, the overall AUC and the calibration of fp32 within the limits, and says by how much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from training.metrics.auc import auc
from training.metrics.calibration import expected_calibration_error

MAX_DOMAIN_AUC_LOSS = 1e-3
MAX_AUC_LOSS = 2e-4
MAX_ECE_CHANGE = 2e-3
MIN_ROWS = 1000
MIN_OF_CLASS = 30
"""Clicks, and rows without one, that a domain needs for its AUC to say something."""


@dataclass(frozen=True)
class Verdict:
    """What the gate saw.

    Attributes:
        admitted: Whether scores stay within the limits.
        reason: In words, with the figure that decided.
        num_rows: Compared.
        num_domains: Domains with enough rows.
        auc_fp32, auc: Over all rows.
        ece_fp32, ece: Over all rows.
        worst_domain: The one whose AUC fell most; "" where none has enough rows.
        worst_domain_loss: By how much.
        max_change: Largest |dp| of a row.
    """

    admitted: bool
    reason: str
    num_rows: int = 0
    num_domains: int = 0
    auc_fp32: float = 0.0
    auc: float = 0.0
    ece_fp32: float = 0.0
    ece: float = 0.0
    worst_domain: str = ""
    worst_domain_loss: float = 0.0
    max_change: float = 0.0

    def told(self) -> dict[str, JsonValue]:
        """For the manifest."""
        return asdict(self)


def judge(
    *,
    labels: NDArray[np.float32],
    domains: NDArray[np.int64],
    names: Sequence[str],
    reference: NDArray[np.float32],
    scores: NDArray[np.float32],
    overall: bool = True,
) -> Verdict:
    """Compare scores with those of fp32.

    Args:
        labels: (B,) 0 or 1.
        domains: (B,) index of each row's domain.
        names: Of the domains.
        reference: (B,) of fp32.
        scores: (B,) of the lower precision.
        overall: Whether the limits over all rows count too; not where rows are those of a few domains.
    """
    if min(labels.sum(), len(labels) - labels.sum()) < MIN_OF_CLASS:
        return Verdict(
            admitted=False,
            reason=f"{len(labels)} validation rows with {int(labels.sum())} clicks; "
            f"at least {MIN_OF_CLASS} of each class are needed",
            num_rows=len(labels),
        )
    losses = _domain_losses(labels, domains, names, reference, scores)
    worst = max(losses, key=lambda name: losses[name], default="")
    found = Verdict(
        admitted=False,
        reason="",
        num_rows=len(labels),
        num_domains=len(losses),
        auc_fp32=auc(labels, reference),
        auc=auc(labels, scores),
        ece_fp32=expected_calibration_error(labels, reference),
        ece=expected_calibration_error(labels, scores),
        worst_domain=worst,
        worst_domain_loss=losses.get(worst, 0.0),
        max_change=float(np.abs(scores - reference).max()),
    )
    reason = _objection(found, overall=overall)
    said = reason or "every limit is kept"
    return Verdict(**{**asdict(found), "admitted": not reason, "reason": said})


def _objection(found: Verdict, *, overall: bool) -> str:
    """The first limit that is broken, in words; empty where none is."""
    limits = [(f"AUC of domain '{found.worst_domain}'", found.worst_domain_loss, MAX_DOMAIN_AUC_LOSS)]
    if overall:
        limits += [
            ("overall AUC", found.auc_fp32 - found.auc, MAX_AUC_LOSS),
            ("ECE", found.ece - found.ece_fp32, MAX_ECE_CHANGE),
        ]
    for what, change, limit in limits:
        if not change <= limit:
            return f"{what} is {change:.2g} worse, at most {limit:g} is allowed"
    return ""


def _domain_losses(
    labels: NDArray[np.float32],
    domains: NDArray[np.int64],
    names: Sequence[str],
    reference: NDArray[np.float32],
    scores: NDArray[np.float32],
) -> dict[str, float]:
    losses = {}
    for d in np.unique(domains).tolist():
        rows = domains == d
        clicks = int(labels[rows].sum())
        if rows.sum() >= MIN_ROWS and min(clicks, rows.sum() - clicks) >= MIN_OF_CLASS:
            name = names[d] if d < len(names) else "(unknown)"
            losses[name] = auc(labels[rows], reference[rows]) - auc(labels[rows], scores[rows])
    return losses
