"""Causal distance between domains from the treatment matrix MT.

Reads MT (R, D): relative gain of every domain after one step on each of R random sets of domains. Gives MC
(D, D). Invariant: MC is symmetric, finite, with a diagonal of exactly 0; `depcon` lies in [0, pi/2],
`cosine` and `signed` in [0, pi].

`depcon` is the dependence contribution kernel (Markham et al. 2022, as CDC calls it). It is not
positive definite, so kappa exceeds 1 for real and the clip is part of the definition. Two exact groups, two
domains, or any strong anti-alignment give distance 0; then `signed` stands in, with a warning.
"""

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np

from training.clustering.arrays import FloatArray, as_finite
from training.clustering.errors import DistanceFallbackWarning, RulesError, TreatmentError

DistanceKind = Literal["depcon", "cosine", "signed"]
DISTANCE_KINDS: tuple[DistanceKind, ...] = ("depcon", "cosine", "signed")

MIN_TREATMENTS = 2
"""Treatments that must tell domains apart."""

MAX_CLIPPED_RATIO = 0.5
"""Share of clipped off-diagonal kappa above which `signed` takes over."""

_SAME = 1e-12

_ROUNDING = 64 * np.finfo(np.float64).eps


@dataclass(frozen=True, eq=False)
class CausalDistance:
    """MC and how it was reached.

    Attributes:
        mc: (D, D) distances in radians.
        kind: The distance that was used, `signed` after a fallback.
        fell_back: Whether `signed` stood in for `depcon`.
        clipped_ratio: Share of off-diagonal kappa above 1, in [0, 1]; 0 for other kinds.
        num_treatments: Treatments used.
        num_dropped: Treatments with the same effect on all domains, left out.
    """

    mc: FloatArray
    kind: DistanceKind
    fell_back: bool
    clipped_ratio: float
    num_treatments: int
    num_dropped: int


def informative_treatments(MT: FloatArray) -> FloatArray:
    """Leave out treatments whose effect on all domains is the same up to rounding.

    Args:
        MT: (R, D) gains.

    Returns:
        (R', D), R' <= R, in the same order.
    """
    spread = np.ptp(MT, axis=1)
    size = np.abs(MT).max(axis=1)
    kept: FloatArray = MT[spread > _ROUNDING * size]
    return kept


def centred_spacing(row: FloatArray) -> FloatArray:
    """Z of one treatment: doubly centred |MT[u] - MT[v]| over its mean.

    Args:
        row: (D,) gains of one treatment, not all equal.

    Returns:
        (D, D) symmetric; rows sum to 0.
    """
    unit = row / np.abs(row).max()
    spacing = np.abs(unit[:, None] - unit[None, :])
    rows = spacing.mean(axis=1)
    mean = rows.mean()
    centred: FloatArray = (spacing - rows[:, None] - rows[None, :] + mean) / mean
    return centred


def dependence_gram(MT: FloatArray) -> FloatArray:
    """G = sum_r Z_r @ Z_r, accumulated one treatment at a time: D^2 memory, R*D^3 multiply-adds.

    Args:
        MT: (R, D) informative treatments.

    Returns:
        (D, D) symmetric positive semi-definite.
    """
    num_domains = MT.shape[1]
    gram = np.zeros((num_domains, num_domains))
    for row in MT:
        centred = centred_spacing(row)
        gram += centred @ centred
    symmetric: FloatArray = (gram + gram.T) / 2
    return symmetric


def dependence_gamma(gram: FloatArray, num_treatments: int) -> FloatArray:
    """Un-normalised kernel gamma = G^2 - 2G + sqrt(R), entrywise, at least sqrt(R) - 1."""
    gamma: FloatArray = gram**2 - 2 * gram + np.sqrt(num_treatments)
    return gamma


def normalised(matrix: FloatArray) -> FloatArray:
    """Divide a symmetric matrix by the root of its diagonal's products; 0 where a diagonal entry is 0."""
    root = np.sqrt(np.maximum(np.diagonal(matrix), 0.0))
    scale = root[:, None] * root[None, :]
    cosines: FloatArray = np.divide(matrix, scale, out=np.zeros_like(matrix), where=scale > 0)
    return cosines


def angles(cosines: FloatArray) -> FloatArray:
    """Arccos of (D, D) cosines clipped to [-1, 1], with a diagonal of exactly 0."""
    distance: FloatArray = np.arccos(np.clip(cosines, -1.0, 1.0))
    np.fill_diagonal(distance, 0.0)
    return distance


def causal_distance(
    treatments: FloatArray, *, kind: DistanceKind = "depcon", fallback: bool = True
) -> CausalDistance:
    """Distance between domains in what treatments do to them.

    Args:
        treatments: MT (R, D) relative gains, rows treatments, columns domains.
        kind: `depcon` (the paper), `cosine` of the columns (the paper's ablation without causality), or
            `signed` (ours: the centred Gram matrix without the squaring).
        fallback: Whether `signed` stands in when `depcon` tells nothing apart: every off-diagonal distance
            0, or more than half of the off-diagonal kappa clipped. False only to reproduce the paper.

    Raises:
        MatrixError: `treatments` is not (R, D) of finite numbers.
        RulesError: `kind` is not one of `DISTANCE_KINDS`.
        TreatmentError: fewer than two treatments tell domains apart.
    """
    if kind not in DISTANCE_KINDS:
        raise RulesError(f"distance {kind!r}; it must be one of {', '.join(DISTANCE_KINDS)}")
    given = as_finite("MT", treatments, (None, None))
    num_domains = given.shape[1]
    if num_domains == 1:
        return CausalDistance(np.zeros((1, 1)), kind, False, 0.0, len(given), 0)  # noqa: FBT003 - field order
    kept = given[np.any(given != 0, axis=1)] if kind == "cosine" else informative_treatments(given)
    if len(kept) < MIN_TREATMENTS:
        raise TreatmentError(
            f"{len(kept)} of {len(given)} treatments tell domains apart; at least {MIN_TREATMENTS} must"
        )
    counts = {"num_treatments": len(kept), "num_dropped": len(given) - len(kept)}
    if kind == "cosine":
        mc = angles(normalised(kept.T @ kept))
        return CausalDistance(mc=mc, kind=kind, fell_back=False, clipped_ratio=0.0, **counts)
    gram = dependence_gram(kept)
    if kind == "signed":
        mc = angles(normalised(gram))
        return CausalDistance(mc=mc, kind=kind, fell_back=False, clipped_ratio=0.0, **counts)
    kappa = normalised(dependence_gamma(gram, len(kept)))
    # Domains that treatments never tell apart have kappa 1: rounding must neither clip them nor part them.
    kappa[np.abs(kappa - 1) < _SAME] = 1.0
    off_diagonal = ~np.eye(num_domains, dtype=bool)
    clipped_ratio = float(np.mean(kappa[off_diagonal] > 1))
    mc = angles(kappa)
    blind = clipped_ratio > MAX_CLIPPED_RATIO or not mc[off_diagonal].any()
    if not (blind and fallback):
        return CausalDistance(mc=mc, kind=kind, fell_back=False, clipped_ratio=clipped_ratio, **counts)
    warnings.warn(
        f"depcon clipped {clipped_ratio:.0%} of the pairs of {num_domains} domains; "
        "using signed for this update",
        DistanceFallbackWarning,
        stacklevel=2,
    )
    mc = angles(normalised(gram))
    return CausalDistance(mc=mc, kind="signed", fell_back=True, clipped_ratio=clipped_ratio, **counts)
