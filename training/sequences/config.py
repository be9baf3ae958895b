"""The config of a sequence run: a typed tree read from YAML.

Reads `training/configs/sequences/*.yaml` plus overrides; writes the resolved tree to `OUT/config.yaml`.
Invariant: a key that nothing reads is refused; the resolved file, read again, gives an equal digest.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from training.config import Part, Root
from training.models.acmoe import GateInput
from training.sequences.batches import SingleView
from training.sequences.losses import AgreementForm, PairLoss


class DomainNames(Part):
    """A csv file with the names of domains by their ids."""

    file: str
    key: str
    name: str


class EventsConfig(Part):
    """The event table, a parquet file in the data folder.

    Attributes:
        file: Its name.
        user, item, domain, order, time: Columns; without `time`, `order` is the time.
        time_unit: Of `time`, since 1970; null where it is no clock time.
        as_lists: The table has a row per user, and lists of items and domains, the oldest event first;
            `order` and `time` are not read.
        domain_names: Names of the domains; null takes their ids.
        num_valid, num_test: Newest events of each user to hold out.
    """

    file: str = "events.parquet"
    user: str = "user_id"
    item: str = "item_id"
    domain: str = "domain_id"
    order: str = "position"
    time: str | None = None
    time_unit: Literal["s", "ms"] | None = None
    as_lists: bool = False
    domain_names: DomainNames | None = None
    num_valid: PositiveInt = 1
    num_test: PositiveInt = 1


class EncoderConfig(Part):
    """What all encoders have: width r, most events T, layers, heads."""

    width: int = Field(default=64, ge=1, le=1024)
    max_len: int = Field(default=50, ge=1, le=512)
    num_layers: int = Field(default=2, ge=1, le=16)
    num_heads: int = Field(default=1, ge=1, le=16)
    dropout: float = Field(default=0.2, ge=0, lt=1)

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.width % self.num_heads:
            raise ValueError(f"width is {self.width}, not a multiple of num_heads, {self.num_heads}")
        return self


class SyncrecEncoderConfig(EncoderConfig):
    """SyNCRec (arXiv 2407.11245).

    Attributes:
        num_experts: K.
        num_cross_experts: Experts that learn from the mixed sequence; the others from single domains.
        stop_gradient: Whether an expert learns from its own side only; without, all learn from both.
        gate: Gates that read the mean of what came before, or the published ones, which see the future.
        single_view: Single sequences packed, or the mixed one with holes.
        eta: Share of the predictions in the loss, against the agreement of views.
        agreement: Its form.
        delta, floor, decay: Temperature, floor and running mean of the domains' weights.
        switch_deviations: A domain is served by its single view where the mixed one is worse on validation
            by more than so many standard errors; `halves` finds how many on halves of the validation events;
            null never.
    """

    type: Literal["syncrec"] = "syncrec"
    num_experts: int = Field(default=3, ge=2, le=32)
    num_cross_experts: int = Field(default=2, ge=1, le=31)
    stop_gradient: bool = True
    gate: GateInput = "prefix_mean"
    single_view: SingleView = "compact"
    eta: float = Field(default=0.9, gt=0, le=1)
    agreement: AgreementForm = "infonce"
    delta: PositiveFloat = 1.0
    floor: float = Field(default=0.3, ge=0, le=1)
    decay: float = Field(default=0.95, ge=0, lt=1)
    switch_deviations: Annotated[float, Field(ge=0)] | Literal["halves"] | None = 2.0

    @model_validator(mode="after")
    def _both_sides(self) -> Self:
        if self.num_cross_experts >= self.num_experts:
            raise ValueError(
                f"num_cross_experts is {self.num_cross_experts}; with num_experts {self.num_experts} at most "
                f"{self.num_experts - 1} may be"
            )
        return self


class SasrecEncoderConfig(EncoderConfig):
    """SASRec (ICDM 2018): one encoder of mixed sequences, or one for each domain's own events."""

    type: Literal["sasrec"] = "sasrec"
    view: Literal["mixed", "single"] = "mixed"


SequenceEncoderConfig = Annotated[SyncrecEncoderConfig | SasrecEncoderConfig, Field(discriminator="type")]


class SequenceTrainingConfig(Part):
    """The loop.

    Attributes:
        epochs: Passes over all windows at most.
        batch_size: Windows at once.
        seed: Of weights, order, negatives and dropout.
        lr: Of all weights, by Adam.
        loss: Of a positive and a negative.
        patience: Epochs without a new best on validation after which training stops.
        num_threads: CPU threads of torch; null leaves torch's choice.
        device: `auto` takes CUDA where there is one.
    """

    epochs: PositiveInt = 30
    batch_size: PositiveInt = 128
    seed: int = Field(default=0, ge=0, lt=2**32)
    lr: PositiveFloat = 1e-3
    loss: PairLoss = "bce"
    patience: PositiveInt = 3
    num_threads: PositiveInt | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"


class RankingConfig(Part):
    """What held-out events are ranked among.

    Attributes:
        negatives: Fixed draw of so many items of the domain for each; `full` takes all its items.
        seed: Of the draw.
    """

    negatives: PositiveInt | Literal["full"] = 100
    seed: int = Field(default=0, ge=0)


class SequenceConfig(Root):
    """Everything that decides the result of a sequence run, given the data."""

    events: EventsConfig = EventsConfig()
    model: SequenceEncoderConfig
    training: SequenceTrainingConfig = SequenceTrainingConfig()
    ranking: RankingConfig = RankingConfig()
