"""Every setting of the matrix part of CDC, with the product's defaults.

Invariant: a value of `CdcRules` is one that an update can run with, whatever the data.
"""

import math
from dataclasses import dataclass, field

from training.clustering.affinity import MhScale
from training.clustering.causal import DISTANCE_KINDS, DistanceKind
from training.clustering.errors import RulesError
from training.clustering.source_sets import SourceRules
from training.clustering.treatments import MAX_SIZE, MIN_SIZE, TreatmentDraw

MIN_CLUSTERS = 3
"""Two clusters are never the default: depcon cannot see two groups."""

DOMAINS_PER_CLUSTER = 8


def default_num_clusters(num_domains: int) -> int:
    """K = max(3, round(D / 8)), at most D."""
    return min(num_domains, max(MIN_CLUSTERS, round(num_domains / DOMAINS_PER_CLUSTER)))


@dataclass(frozen=True)
class CdcRules:
    """Settings of an update.

    Attributes:
        num_clusters: K.
        history_weight: alpha, weight of the old MI and MH, in [0, 1).
        prior_weight: rho_0, weight of the first source sets' preference.
        prior_decay: beta; rho_t = rho_0 beta^t with t >= 1 at first use.
        source: Rules of Algorithm 1.
        distance: Causal distance.
        fallback: Whether `signed` stands in for a blind `depcon`.
        num_treatments: R; None for max(50, D).
        min_treatment_size: Smallest treatment.
        max_treatment_size: Largest treatment; None for D - 1.
        treatment_draw: How members are drawn.
        mh_scale: Whether MH is multiplied by |M_u|.
        floor_ratio: e as a share of the global loss.
        hysteresis: Margin of a move, see `Stickiness`; 0 is the paper.
        freeze_updates: Updates for which a domain that moved may not move again; 0 is the paper.
        tail_share: Hysteresis and freeze hold for domains with at most this share of rows; 1 for all.
        seed: Of K-means and of the treatments.

    Raises:
        RulesError: a value outside its range.
    """

    num_clusters: int
    history_weight: float = 0.3
    prior_weight: float = 0.01
    prior_decay: float = 0.95
    source: SourceRules = field(default_factory=SourceRules)
    distance: DistanceKind = "depcon"
    fallback: bool = True
    num_treatments: int | None = None
    min_treatment_size: int = MIN_SIZE
    max_treatment_size: int | None = MAX_SIZE
    treatment_draw: TreatmentDraw = "uniform"
    mh_scale: MhScale = "none"
    floor_ratio: float = 0.1
    hysteresis: float = 0.0
    freeze_updates: int = 0
    tail_share: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_clusters < 1:
            raise RulesError(f"num_clusters is {self.num_clusters}; it must be at least 1")
        if self.freeze_updates < 0 or self.seed < 0:
            raise RulesError(f"freeze_updates {self.freeze_updates} and seed {self.seed} must be from 0 up")
        if self.distance not in DISTANCE_KINDS:
            raise RulesError(f"distance {self.distance!r}; it must be one of {', '.join(DISTANCE_KINDS)}")
        if not 0 <= self.history_weight < 1:
            raise RulesError(f"history_weight is {self.history_weight}; it must be in [0, 1)")
        for name, high in (
            ("prior_weight", math.inf),
            ("prior_decay", 1.0),
            ("floor_ratio", math.inf),
            ("hysteresis", math.inf),
            ("tail_share", 1.0),
        ):
            value = getattr(self, name)
            if not (math.isfinite(value) and 0 <= value <= high):
                raise RulesError(f"{name} is {value}; it must be a number from 0 to {high}")

    def prior_at(self, t: int) -> float:
        """rho_t = rho_0 beta^t; 0 at t = 0, where there is no S_k^0 yet."""
        return self.prior_weight * self.prior_decay**t if t > 0 else 0.0
