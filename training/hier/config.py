"""The config of a pre-training run: a typed tree read from YAML.

Reads `training/configs/hier/*.yaml` plus overrides such as `training.seed=3`; the resolved tree goes to
`OUT/config.yaml`. Invariant: a key that nothing reads is refused, with its path.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from training.config import DataConfig, Part, Root, load_tree
from training.hier.bags import DEFAULT_TOP
from training.models.config import HierConfig


class GraphConfig(Part):
    """What entities are made of.

    Attributes:
        attributes: Item features; null takes all categorical and multi ones, an empty list none.
        triples: File of (head, relation, tail) rows, relative to the raw data; null for none.
        item_prefix: What precedes an item's id in a head of the triples.
        min_items: Items that an entity must be in.
        max_share: Share of all items that an entity may be in.
        max_entities: Entities of an item that count.
        top: Entities of a user that count.
        user_lists: User features that list items from before the log; they count as clicks of no domain.
    """

    attributes: tuple[str, ...] | None = None
    triples: str | None = None
    item_prefix: str = ""
    min_items: int = Field(default=2, ge=1)
    max_share: float = Field(default=0.2, gt=0, le=1)
    max_entities: int = Field(default=32, ge=1, le=512)
    top: int = Field(default=DEFAULT_TOP, ge=1, le=4096)
    user_lists: tuple[str, ...] = ()


class LossConfig(Part):
    """Weights of the loss; see `training.hier.pretrain.LossWeights`."""

    intent: float = Field(default=1.0, ge=0)
    information: float = Field(default=0.02, ge=0)
    exemplar: float = Field(default=0.1, ge=0)
    open_gates: float = Field(default=1e-4, ge=0)
    l2: float = Field(default=1e-5, ge=0)
    temperature: float = Field(default=0.2, gt=0)


class LoopConfig(Part):
    """The loop; see `training.hier.pretrain.PretrainPlan`.

    Attributes:
        validation_rows: Validation clicks of each source domain at most.
        num_threads: CPU threads of torch.
    """

    max_steps: int = Field(default=1500, ge=1)
    batch_size: int = Field(default=1024, ge=1)
    evaluate_every: int = Field(default=100, ge=1)
    patience: int = Field(default=4, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    seed: int = Field(default=0, ge=0, lt=2**32)
    domain_power: float = Field(default=0.5, ge=0, le=1)
    validation_rows: int = Field(default=1000, ge=1)
    num_threads: int = Field(default=1, ge=1)


class PretrainConfig(Root):
    """Everything that decides the result of a pre-training, given the data.

    Attributes:
        hold_out: Domain whose clicks are not read; null holds none out.
        rehearsals: Largest sources that in turn play a new domain, each for a pre-training more; from two on
            they make the head that new domains start from. 0 starts them from the score alone.
    """

    data: DataConfig = DataConfig()
    hold_out: str | None = None
    rehearsals: int = Field(default=0, ge=0, le=64)
    graph: GraphConfig = GraphConfig()
    model: HierConfig = HierConfig()
    loss: LossConfig = LossConfig()
    training: LoopConfig = LoopConfig()


def load_pretrain_config(path: Path, overrides: Sequence[str] = ()) -> PretrainConfig:
    """Read the config of a pre-training; arguments and errors are those of `load_tree`."""
    return load_tree(path, overrides, PretrainConfig)
