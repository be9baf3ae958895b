"""The `clustering` part of a training config, and the rules that follow from it.

Invariant: a value of `ClusteringConfig` names a version and a method that go together.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from training.clustering.causal import DistanceKind
from training.clustering.rules import CdcRules
from training.clustering.source_sets import SourceRules
from training.clustering.treatments import TreatmentDraw

Version = Literal["none", "end_to_end", "two_stage", "split"]
Method = Literal["cdc", "tag", "random", "manual", "one_cluster", "one_per_domain"]
Mode = Literal["auto", "exact", "first_order"]

MEASURED: tuple[Method, ...] = ("cdc", "tag")
"""Methods that need a lookahead."""


class ClusteringConfig(BaseModel):
    """Which domains share a tower or a model, and how that is found out (CDC, arXiv 2507.06877).

    Attributes:
        version: `none`; `end_to_end`, towers re-clustered while the model trains; `two_stage`, a fresh model
            with one tower per cluster of a fixed assignment; `split`, one model per cluster, trained on S_k,
            judged on T_k.
        method: `cdc`, or a grouping to compare it with.
        num_clusters: K; `auto` scans (cdc, tag) and takes max(3, D / 8) for `random`.
        assignment: assignment.json (or its folder) to use instead of finding one; two_stage and split only.
        groups: Yaml or json file of `manual`.
        warmup_batches: W, steps before the first update, trained with the mean of the towers.
        update_interval: Steps between updates; `auto` for 1,000 batches of 1,024 rows, or more where an
            update would cost more than `max_overhead_ratio` of the training in between.
        max_updates: Updates of an end-to-end run at most; null for as many as the run holds.
        cluster_updates: Updates of `ctr-train cluster`.
        mode: Of the lookahead: `exact` steps, `first_order` reads gradients; `auto` goes by the cost.
        max_overhead_ratio: Share of training that `auto`, of mode and interval, may spend on updates.
        step_method: Whether the lookahead's step is scaled like the optimiser's (`adaptive`) or not (`sgd`).
        frozen_rows: Encoders with more rows than this stand still in the lookahead; null freezes none.
        step_size: eta of the lookahead's step; null takes the dense learning rate.
        step_rows: Rows of B_u, the step of a domain.
        eval_rows: Rows of E_v at most, held out of the train split by domain.
        held_out_ratio: Share of a domain's train rows held out at most.
        train_on_held_out: Whether end-to-end training sees E_v all the same.
        min_train_rows: A domain with fewer rows is left out of the matrices and attached to the default.
        min_eval_rows: The same for rows of E_v.
        history_weight: alpha, weight of the old MI and MH.
        prior_weight: rho_0.
        prior_decay: beta.
        num_seeds: N, domains that a source set starts with.
        min_gain: Smallest score that still adds a domain to a source set.
        distance: Causal distance.
        fallback: Whether `signed` stands in for a blind `depcon`.
        num_treatments: R; null for max(50, D).
        min_treatment_size: Smallest treatment.
        max_treatment_size: Largest treatment; null for D - 1.
        treatment_draw: How members of treatments are drawn.
        mh_scale: `size` multiplies row u of MH by |M_u|.
        floor_ratio: Floor of the gains as a share of the global loss.
        hysteresis: Margin that a move of a domain must win by; 0 is the paper.
        freeze_updates: Updates for which a domain that moved stays; 0 is the paper.
        tail_share: Hysteresis and freeze hold for domains with at most this share of rows.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Version = "none"
    method: Method = "cdc"
    num_clusters: int | Literal["auto"] = "auto"
    assignment: str | None = None
    groups: str | None = None

    warmup_batches: NonNegativeInt = 1000
    update_interval: PositiveInt | Literal["auto"] = "auto"
    max_updates: PositiveInt | None = None
    cluster_updates: PositiveInt = 5

    mode: Mode = "auto"
    max_overhead_ratio: PositiveFloat = 0.1
    step_method: Literal["adaptive", "sgd"] = "adaptive"
    frozen_rows: PositiveInt | None = None
    step_size: PositiveFloat | None = None
    step_rows: PositiveInt = 128
    eval_rows: PositiveInt = 128
    held_out_ratio: float = Field(default=0.2, gt=0, lt=1)
    train_on_held_out: bool = False
    min_train_rows: PositiveInt = 500
    min_eval_rows: PositiveInt = 100

    history_weight: float = Field(default=0.3, ge=0, lt=1)
    prior_weight: NonNegativeFloat = 0.01
    prior_decay: float = Field(default=0.95, ge=0, le=1)
    num_seeds: PositiveInt = 2
    min_gain: float = Field(default=0.0, allow_inf_nan=False)
    distance: DistanceKind = "depcon"
    fallback: bool = True
    num_treatments: PositiveInt | None = None
    min_treatment_size: PositiveInt = 2
    max_treatment_size: PositiveInt | None = 16
    treatment_draw: TreatmentDraw = "uniform"
    mh_scale: Literal["none", "size"] = "none"
    floor_ratio: NonNegativeFloat = 0.1
    hysteresis: NonNegativeFloat = 0.0
    freeze_updates: NonNegativeInt = 0
    tail_share: float = Field(default=1.0, ge=0, le=1)

    @field_validator("num_clusters", mode="plain")
    @classmethod
    def _auto_or_count(cls, value: object) -> int | Literal["auto"]:
        if value == "auto":
            return "auto"
        if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
            return value
        raise ValueError("it must be auto or a whole number from 1 up")

    @field_validator("assignment")
    @classmethod
    def _needs_a_fixed_version(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("version") not in ("two_stage", "split"):
            raise ValueError("it goes with version two_stage or split only")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.version == "end_to_end" and self.method != "cdc":
            raise ValueError(
                f"version end_to_end re-clusters by cdc; method {self.method} needs two_stage or split"
            )
        if self.version != "none" and self.method == "manual" and self.groups is self.assignment is None:
            raise ValueError("method manual needs groups, a file of lists of domain names")
        return self

    @property
    def needs_lookahead(self) -> bool:
        """Whether clusters must be measured before they can be used."""
        return self.method in MEASURED and self.assignment is None

    def rules(self, num_clusters: int, *, seed: int) -> CdcRules:
        """Settings of an update with K clusters.

        Raises:
            RulesError: a combination that cannot work.
        """
        return CdcRules(
            num_clusters=num_clusters,
            history_weight=self.history_weight,
            prior_weight=self.prior_weight,
            prior_decay=self.prior_decay,
            source=SourceRules(num_seeds=self.num_seeds, min_gain=self.min_gain),
            distance=self.distance,
            fallback=self.fallback,
            num_treatments=self.num_treatments,
            min_treatment_size=self.min_treatment_size,
            max_treatment_size=self.max_treatment_size,
            treatment_draw=self.treatment_draw,
            mh_scale=self.mh_scale,
            floor_ratio=self.floor_ratio,
            hysteresis=self.hysteresis,
            freeze_updates=self.freeze_updates,
            tail_share=self.tail_share,
            seed=seed,
        )
