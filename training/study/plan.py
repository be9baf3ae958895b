"""A study file as a value: which variants, on which seeds, compared with which references.

Reads a yaml file and the run configs that it names, relative to its own folder. Invariant: every variant of a
`Plan` has a checked config for every seed, and every reference is a variant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from training.config import RunConfig, load_config
from training.study.errors import PlanError

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=80)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class VariantFile(BaseModel):
    """One variant as the file has it.

    Attributes:
        name: Its folder, and its row in tables.
        config: Run config, relative to the folder of the study file.
        set: Dotted keys of the config and their values; they win over the study's own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    config: str
    set: dict[str, Any] = {}


class StudyFile(BaseModel):
    """Content of a study file.

    Attributes:
        name: Title of the report.
        seeds: `training.seed` of the runs of every variant; differences are paired by it.
        reference: Variants that every other is compared with.
        domains: Domains that tables show first.
        num_threads: CPU threads of each run, so that results do not hang on how many run at a time.
        set: Dotted keys set in every variant.
        variants: What is compared.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    seeds: tuple[Seed, ...] = Field(min_length=1)
    reference: tuple[Name, ...] = Field(min_length=1)
    domains: tuple[str, ...] = ()
    num_threads: PositiveInt = 1
    set: dict[str, Any] = {}
    variants: tuple[VariantFile, ...] = Field(min_length=1)


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study.

    Attributes:
        variant: Name of its variant.
        seed: Its seed.
        config: Its whole config, seed included.
    """

    variant: str
    seed: int
    config: RunConfig


@dataclass(frozen=True)
class Plan:
    """A checked study.

    Attributes:
        name: Title.
        references: Variants that every other is compared with.
        seeds: In the order in which they are run.
        variants: Names, in the order of the file.
        domains: Domains that tables show first.
        runs: Every run: all variants of the first seed, then all of the second, so that a study that is cut
            short has whole pairs.
    """

    name: str
    references: tuple[str, ...]
    seeds: tuple[int, ...]
    variants: tuple[str, ...]
    domains: tuple[str, ...]
    runs: tuple[PlannedRun, ...]

    def select(self, *, num_seeds: int | None = None, only: Sequence[str] = ()) -> tuple[PlannedRun, ...]:
        """The runs of the first `num_seeds` seeds and of the variants in `only`; all where not given.

        Raises:
            PlanError: More seeds than there are, or no such variant.
        """
        if num_seeds is not None and not 1 <= num_seeds <= len(self.seeds):
            raise PlanError(f"seeds {num_seeds}: the study has {len(self.seeds)}, {list(self.seeds)}")
        if unknown := [name for name in only if name not in self.variants]:
            raise PlanError(f"no variant {unknown[0]!r}; the study has {', '.join(self.variants)}")
        seeds = self.seeds[:num_seeds]
        return tuple(r for r in self.runs if r.seed in seeds and (not only or r.variant in only))


def load_plan(path: Path) -> Plan:
    """Read a study file and the configs of its variants.

    Raises:
        PlanError: No such file, not a study, a name twice, or a reference that is no variant.
        ConfigError: A variant's config or one of its keys cannot be used.
    """
    file = _read(path)
    names = tuple(variant.name for variant in file.variants)
    for what, values in (("variant", names), ("seed", file.seeds), ("reference", file.reference)):
        if twice := [value for place, value in enumerate(values) if value in values[:place]]:
            raise PlanError(f"{path}: {what} {twice[0]!r} is there twice")
    if unknown := [name for name in file.reference if name not in names]:
        raise PlanError(f"{path}: reference {unknown[0]!r} is no variant; there are {', '.join(names)}")
    runs = tuple(
        PlannedRun(variant.name, seed, _config(path.parent, file, variant, seed))
        for seed in file.seeds
        for variant in file.variants
    )
    return Plan(file.name, file.reference, file.seeds, names, file.domains, runs)


def _read(path: Path) -> StudyFile:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PlanError(f"{path}: no such study file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PlanError(f"{path}: cannot be read as YAML: {error}") from error
    if not isinstance(tree, dict):
        raise PlanError(f"{path}: holds a {type(tree).__name__}, expected a mapping with name, variants, ...")
    try:
        return StudyFile.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise PlanError(f"{path}: {place}: {first['msg']}, got {first['input']!r}") from None


def _config(folder: Path, file: StudyFile, variant: VariantFile, seed: int) -> RunConfig:
    own = {"name": variant.name, "training.seed": seed, "training.num_threads": file.num_threads}
    return load_config(folder / variant.config, overrides({**file.set, **variant.set, **own}))


def overrides(values: Mapping[str, Any]) -> list[str]:
    """Dotted keys and values as `load_config` takes them."""
    return [f"{key}={yaml.safe_dump(value, default_flow_style=True)}" for key, value in values.items()]
