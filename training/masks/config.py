"""The `masks` part of a training config, and the rules that follow from it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from training.masks.schedule import SearchSchedule
from training.masks.search import SearchMode
from training.masks.tuning import TuningRules

MaskMethod = Literal["search", "random", "none"]
MaskStart = Literal["gates", "clusters"]

AUTO_INTERVAL_ROWS = 2_048_000


class MaskConfig(BaseModel):
    """Which experts of an aread model each domain uses, and how that is found out (AREAD, arXiv 2412.11905).

    Attributes:
        enabled: Whether masks are found while the model trains; needs a model of type aread.
        method: `search`; to compare with: `random`, one random mask per domain of the wanted density, drawn
            after the warm-up, or `none`, every edge for every domain.
        mode: Of the search: `cheap` tunes gates, pyramid and heads of candidates on cached readings of the
            base; `plain` tunes the whole model, one candidate after the other.
        start: What a domain has before the first update: nothing but what its `gates` point at, or one random
            mask for all domains of a cluster, for runs with `clustering.version: two_stage`.
        warmup_batches: Steps with every edge, trained by the mean of the heads, before the first update.
        update_interval: Steps between updates; `auto` is as many as read 2,048,000 rows, the 2,000 batches of
            1,024 of the paper, which keeps the search within a tenth of training at some hundred domains.
        max_updates: Updates at most; null for no limit.
        settle_ratio: Share of the planned steps, the last ones, without updates, so that experts settle.
        min_rows: A domain with fewer train rows is not searched and keeps every edge.
        tuning_steps: Steps that a candidate is tuned for.
        tuning_lr: Learning rate of these steps.
        rows: Rows of each of these steps and of each scoring batch.
        eval_batches: Batches that a candidate is scored on.
        candidates: Z, candidates per domain, and its decay per update.
        sigma: Deviation of the flip rate, and its decay per update.
        active: q, share of edges that gates propose, its decay per update, and its floor.
        prune_quantile: Share of the weaker level's gates that a prune deletes.
        target_density: Share of edges that masks are pruned to; 1 prunes in tuning steps only.
        target_updates: Updates over which the wanted density falls from 1 to that.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = False
    method: MaskMethod = "search"
    mode: SearchMode = "cheap"
    start: MaskStart = "gates"
    warmup_batches: NonNegativeInt = 100
    update_interval: PositiveInt | Literal["auto"] = "auto"
    max_updates: PositiveInt | None = None
    settle_ratio: float = Field(default=0.1, ge=0, lt=1)
    min_rows: PositiveInt = 50

    tuning_steps: PositiveInt = 5
    tuning_lr: PositiveFloat = 1e-2
    rows: PositiveInt = 32
    eval_batches: PositiveInt = 5

    candidates: PositiveInt = 10
    candidates_decay: float = Field(default=0.99, gt=0, le=1)
    sigma: PositiveFloat = 0.2
    sigma_decay: float = Field(default=0.99, gt=0, le=1)
    active: float = Field(default=0.7, gt=0, lt=1)
    active_decay: float = Field(default=0.95, gt=0, le=1)
    active_floor: float = Field(default=0.1, gt=0, lt=1)
    prune_quantile: float = Field(default=0.05, ge=0, lt=1)
    target_density: float = Field(default=0.5, gt=0, le=1)
    target_updates: PositiveInt = 5

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.start == "clusters" and self.method != "search":
            raise ValueError(f"start clusters is where a search begins; method {self.method} has none")
        return self

    def interval_steps(self, batch_size: int) -> int:
        """Steps between updates, at least 1.

        Args:
            batch_size: Rows of a step.
        """
        if self.update_interval != "auto":
            return self.update_interval
        return max(1, AUTO_INTERVAL_ROWS // batch_size)

    @property
    def searches(self) -> bool:
        """Whether there is a search at all."""
        return self.enabled and self.method == "search"

    @property
    def schedule(self) -> SearchSchedule:
        """Settings by the number of the update."""
        return SearchSchedule(
            sigma=self.sigma,
            sigma_decay=self.sigma_decay,
            active=self.active,
            active_decay=self.active_decay,
            active_floor=self.active_floor,
            candidates=self.candidates,
            candidates_decay=self.candidates_decay,
            target_density=self.target_density,
            target_updates=self.target_updates,
        )

    @property
    def tuning(self) -> TuningRules:
        """Of candidates."""
        return TuningRules(
            steps=self.tuning_steps,
            lr=self.tuning_lr,
            rows=self.rows,
            eval_batches=self.eval_batches,
            prune_quantile=self.prune_quantile,
        )
