"""The config of a training run: a typed tree read from YAML.

Reads `training/configs/*.yaml` plus overrides such as `training.seed=3`; writes the resolved tree to
`OUT/config.yaml`. Invariants: a key that nothing reads is refused, with its path and its nearest
neighbours; the resolved file, read again, gives an equal config and digest.
"""

import difflib
import hashlib
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from training.clustering.config import ClusteringConfig
from training.data.augment_config import AugmentConfig
from training.engine.monitor import Monitor
from training.engine.optim import ScheduleKind, TableMethod
from training.engine.precision import Precision
from training.masks.config import MaskConfig
from training.models.config import ModelConfig

Tree = TypeVar("Tree", bound=BaseModel)


class ConfigError(Exception):
    """A config file or an override cannot be used; the message names the key."""


class Part(BaseModel):
    """A frozen part of the tree that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(Part):
    """Which data.

    Attributes:
        recipe: Name of a built-in recipe, or path of a dataset.yaml; null reads the data folder's own.
    """

    recipe: str | None = None


class TrainingConfig(Part):
    """The loop.

    Attributes:
        epochs: Passes over the training rows at most.
        batch_size: Rows per step.
        seed: Of weights, shuffling and dropout.
        eval_batch_size: Rows per scoring batch.
        evaluations_per_epoch: Validations per pass. Ids overfit within one epoch, so several are needed.
        patience: Validations in a row without a new best after which training stops.
        monitor: What "best" means; `mean_auc` is the mean of domain_auc and total_auc.
        checkpoint_every_batches: Batches between checkpoints; a kill loses at most this much work.
        log_every_batches: Batches between logged losses.
        num_threads: CPU threads of torch; null leaves torch's choice. Part of what makes a run repeatable.
        precision: Of the forward pass in training.
        device: `auto` takes CUDA where there is one.
        ema_decay: Average dense weights with this decay; null does not.
    """

    epochs: PositiveInt = 1
    batch_size: PositiveInt = 2048
    seed: int = Field(default=0, ge=0, lt=2**32)
    eval_batch_size: PositiveInt = 8192
    evaluations_per_epoch: PositiveInt = 4
    patience: PositiveInt = 4
    monitor: Monitor = "mean_auc"
    checkpoint_every_batches: PositiveInt = 500
    log_every_batches: PositiveInt = 50
    num_threads: PositiveInt | None = None
    precision: Precision = "fp32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    ema_decay: float | None = Field(default=None, gt=0, lt=1)


class DenseOptimiserConfig(Part):
    """AdamW over dense weights."""

    lr: PositiveFloat = 1e-3
    weight_decay: float = Field(default=1e-5, ge=0)


class TableOptimiserConfig(Part):
    """Lazy updates of embedding tables; a table group's rate is `lr` times its `lr_scale`."""

    type: TableMethod = "sparse_adam"
    lr: PositiveFloat = 1e-3


class ScheduleConfig(Part):
    """Factor on every learning rate.

    Attributes:
        type: What follows the warm-up.
        warmup_steps: Steps of linear rise.
        final_ratio: Factor at the end of a decay.
    """

    type: ScheduleKind = "constant"
    warmup_steps: int = Field(default=0, ge=0)
    final_ratio: float = Field(default=0.0, ge=0, le=1)


class OptimiserConfig(Part):
    """How weights are updated."""

    dense: DenseOptimiserConfig = DenseOptimiserConfig()
    tables: TableOptimiserConfig = TableOptimiserConfig()
    schedule: ScheduleConfig = ScheduleConfig()


class CalibrationConfig(Part):
    """Per-domain Platt calibration on validation rows.

    Attributes:
        method: `none` scores by the sigmoid of the logit.
        num_folds: Cross-validation folds, cut by user.
        strengths: Pulls to the global line to choose from.
        global_only: Whether "one line for all domains" is among the choices.
    """

    method: Literal["platt", "none"] = "platt"
    num_folds: int = Field(default=5, ge=2, le=50)
    strengths: tuple[PositiveFloat, ...] = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
    global_only: bool = True


class Root(Part):
    """A whole config, by name."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=80)

    @property
    def digest(self) -> str:
        """Sha256 (hex) of the resolved tree."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def to_yaml(self) -> str:
        """The resolved tree as YAML, defaults included."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


class RunConfig(Root):
    """Everything that decides the result of a run, given the data."""

    data: DataConfig = DataConfig()
    model: ModelConfig
    training: TrainingConfig = TrainingConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    clustering: ClusteringConfig = ClusteringConfig()
    augment: AugmentConfig = AugmentConfig()
    masks: MaskConfig = MaskConfig()


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read the config of a run; arguments and errors are those of `load_tree`."""
    return load_tree(path, overrides, RunConfig)


def load_tree(path: Path, overrides: Sequence[str], root: type[Tree]) -> Tree:
    """Read a config.

    Args:
        path: YAML file.
        overrides: `dotted.key=value` each, the value in YAML; later ones win.
        root: What it is a config of.

    Raises:
        ConfigError: No such file, not YAML, an unknown key, a value of a wrong type or out of range.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: holds a {type(tree).__name__}, expected a mapping with name, model, ...")
    for override in overrides:
        _override(tree, override)
    try:
        return root.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{path}: " + "; ".join(_explain(e, root) for e in error.errors())) from error


def _override(tree: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    path = key.strip().split(".")
    if not separator or not all(path):
        raise ConfigError(f"override {override!r}: expected dotted.key=value, e.g. training.seed=3")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML: {error}") from error
    node = tree
    for depth, part in enumerate(path[:-1], start=1):
        inner = node.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"override {override!r}: {'.'.join(path[:depth])} is {inner!r}, not a mapping")
        node = inner
    node[path[-1]] = value


def _explain(error: Any, root: type[BaseModel]) -> str:
    """One pydantic error in a sentence that starts with the key path as the file spells it."""
    spelled, parent = _locate(error["loc"], root)
    if error["type"] == "extra_forbidden":
        name = str(error["loc"][-1])
        allowed = sorted(parent.model_fields) if parent else []
        close = difflib.get_close_matches(name, allowed, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(allowed)}"
        return f"unknown key {spelled}; {hint}"
    if error["type"] == "missing":
        return f"{spelled} is missing"
    given = "" if isinstance(error["input"], dict) else f", got {error['input']!r}"
    return f"{spelled}: {error['msg'][:1].lower()}{error['msg'][1:]}{given}"


def _locate(location: Sequence[str | int], root: type[BaseModel]) -> tuple[str, type[BaseModel] | None]:
    """Spell a location without union tags, and find the config class that holds its last key."""
    current: Any = root
    parent: type[BaseModel] | None = None
    spelled: list[str] = []
    for part in location:
        if isinstance(current, list):  # members of a tagged union: this part is the tag
            current = next((m for m in current if part in get_args(m.model_fields["type"].annotation)), None)
            continue
        spelled.append(str(part))
        parent = current if isinstance(current, type) and issubclass(current, BaseModel) else None
        if parent is not None and isinstance(part, str):
            field = parent.model_fields.get(part)
            current = None if field is None else _inner(field.annotation)
        elif isinstance(part, int):
            current = current[0] if isinstance(current, tuple) else current
    return ".".join(spelled), parent


def _inner(annotation: Any) -> Any:
    """A config class, a list of classes (tagged union), a 1-tuple of the element (sequence), or None."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _inner(arguments[0])
    if origin in (Union, types.UnionType):
        classes = [a for a in arguments if isinstance(a, type) and issubclass(a, BaseModel)]
        return classes if len(classes) > 1 else (classes[0] if classes else None)
    if origin in (tuple, list):
        return (_inner(arguments[0]),)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
