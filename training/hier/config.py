"""The config of a pre-training run: a typed tree read from YAML.

Reads `training/configs/hier_*.yaml` plus overrides such as `training.seed=3`; the resolved tree goes to
`OUT/config.yaml`. Invariant: a key that nothing reads is refused, with its path.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from training.config import ConfigError, DataConfig, Part
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


class PretrainConfig(Part):
    """Everything that decides the result of a pre-training, given the data.

    Attributes:
        hold_out: Domain whose clicks are not read; null holds none out.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=80)
    data: DataConfig = DataConfig()
    hold_out: str | None = None
    graph: GraphConfig = GraphConfig()
    model: HierConfig = HierConfig()
    loss: LossConfig = LossConfig()
    training: LoopConfig = LoopConfig()

    @property
    def digest(self) -> str:
        """Sha256 (hex) of the resolved tree."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def to_yaml(self) -> str:
        """The resolved tree as YAML, defaults included."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def load_pretrain_config(path: Path, overrides: Sequence[str] = ()) -> PretrainConfig:
    """Read a config.

    Args:
        path: YAML file.
        overrides: `dotted.key=value` each, the value in YAML; later ones win.

    Raises:
        ConfigError: No such file, not YAML, an unknown key, a value of a wrong type or out of range.
    """
    try:
        tree: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: holds a {type(tree).__name__}, expected a mapping with name, model, ...")
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise ConfigError(f"override {override!r}: expected dotted.key=value, e.g. training.seed=3")
        *parents, last = key.strip().split(".")
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = yaml.safe_load(text)
    try:
        return PretrainConfig.model_validate(tree)
    except ValidationError as error:
        told = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}, got {e['input']!r}" for e in error.errors())
        raise ConfigError(f"{path}: " + "; ".join(told)) from error
