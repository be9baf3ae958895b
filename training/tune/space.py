"""What a search may change: dotted keys of a run config, each with its range or its choices.

Reads a yaml file such as

    optimiser.dense.lr: {low: 1.0e-4, high: 1.0e-2, log: true}
    model.num_experts: {low: 2, high: 8, int: true}
    model.expert_widths: {choices: [[64], [64, 32]]}

Invariant: every end of a range and every choice, set alone, gives a valid config.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import optuna
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from training.config import ConfigError, RunConfig, load_config
from training.study.plan import overrides
from training.tune.errors import TuneError


class Axis(BaseModel):
    """Values of one key: a range or a list.

    Attributes:
        low, high: Ends of the range, both inside it.
        log: Draw evenly on a logarithmic scale.
        int: Whole numbers only.
        choices: Values of any kind, in place of a range.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    low: float | None = None
    high: float | None = None
    log: bool = False
    int: bool = False
    choices: tuple[Any, ...] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _range_or_choices(self) -> Self:
        if self.choices is not None:
            if self.low is not None or self.high is not None or self.log or self.int:
                raise ValueError("choices stand alone, without low, high, log or int")
            return self
        if self.low is None or self.high is None:
            raise ValueError("it needs low and high, or choices")
        if not self.low < self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range needs low above 0, it is {self.low}")
        if self.int and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError(f"int needs whole ends, they are {self.low} and {self.high}")
        return self

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values that must be possible for the rest to be."""
        if self.choices is not None:
            return self.choices
        return (self.typed(self.low), self.typed(self.high))

    def typed(self, value: Any) -> Any:
        """A number of the range as the config takes it."""
        return round(value) if self.int else value

    def draw(self, trial: optuna.Trial, key: str) -> Any:
        """A value of this trial."""
        if self.choices is not None:
            # Lists are no optuna choices, their JSON is.
            return json.loads(trial.suggest_categorical(key, [json.dumps(value) for value in self.choices]))
        low, high = self.ends
        if self.int:
            return trial.suggest_int(key, low, high, log=self.log)
        return trial.suggest_float(key, low, high, log=self.log)

    def given(self, value: Any) -> Any:
        """A config's value as a trial holds it, or None where it lies outside."""
        if self.choices is not None:
            known = json.dumps(value)
            return known if known in [json.dumps(choice) for choice in self.choices] else None
        inside = isinstance(value, (int, float)) and self.ends[0] <= value <= self.ends[1]
        return self.typed(value) if inside else None


Space = Mapping[str, Axis]


def load_space(path: Path) -> Space:
    """Read a space file.

    Raises:
        TuneError: No such file, not a mapping of keys, or an axis that makes no sense.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TuneError(f"{path}: no such space file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TuneError(f"{path}: cannot be read as YAML: {error}") from error
    if not isinstance(tree, dict) or not tree:
        raise TuneError(f"{path}: expected a mapping from dotted config keys to ranges or choices")
    space = {}
    for key, axis in tree.items():
        try:
            space[str(key)] = Axis.model_validate(axis)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, (key, *first["loc"])))
            raise TuneError(f"{path}: {place}: {first['msg']}, got {first['input']!r}") from None
    return space


def check_space(space: Space, config: Path, given: list[str]) -> None:
    """Refuse a space with values that the config cannot take.

    Raises:
        TuneError: It has one.
    """
    for key, axis in space.items():
        for value in axis.ends:
            try:
                load_config(config, [*given, *overrides({key: value})])
            except ConfigError as error:
                raise TuneError(f"space: {key} {value!r}: {error}") from None


def values_of(config: RunConfig, space: Space) -> dict[str, Any] | None:
    """The config's own values as a trial holds them; None where one lies outside the space."""
    found = {}
    for key, axis in space.items():
        node: Any = config.model_dump(mode="json")
        for part in key.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        found[key] = axis.given(node)
    return None if any(value is None for value in found.values()) else found
