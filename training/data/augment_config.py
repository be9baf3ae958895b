"""The `augment` part of a training config: whether and how clicks are copied into small domains.

Invariant: a value of `AugmentConfig` gives valid rules, or its error names the field.
"""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from training.data.augment import AugmentRules


class AugmentConfig(BaseModel):
    """Popularity-based counterfactual augmentation of train rows (AREAD, arXiv 2412.11905).

    Attributes:
        ratio: Copies per train row, 0 for none; the paper tries 0.05, 0.1 and 0.15.
        cold_exposures: An item is cold with at most this many train rows.
        cold_popularity: An item is cold with a smoothed click rate below this; setting it replaces
            `cold_exposures`.
        small_share: Domains with at most this share of the train rows get copies.
        large_share: Domains with more than this share give them.
        in_training: Whether the model trains on copies too, with weights that keep each domain's click rate.
            Otherwise only the search of masks sees them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    ratio: float = Field(default=0.0, ge=0, le=1)
    cold_exposures: int = Field(default=4, ge=1)
    cold_popularity: float | None = Field(default=None, gt=0, le=1)
    small_share: float = Field(default=0.02, ge=0, le=1)
    large_share: float = Field(default=0.03, ge=0, le=1)
    in_training: bool = False

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        if self.small_share > self.large_share:
            raise ValueError(f"small_share {self.small_share} is above large_share {self.large_share}")
        if self.in_training and self.ratio == 0:
            raise ValueError("in_training needs a ratio above 0")
        return self

    def rules(self) -> AugmentRules:
        """The same as flat values."""
        return AugmentRules(
            ratio=self.ratio,
            cold_exposures=self.cold_exposures if self.cold_popularity is None else None,
            cold_popularity=self.cold_popularity,
            small_share=self.small_share,
            large_share=self.large_share,
        )
