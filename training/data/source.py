"""Find, read and check the description of a raw data set; know its files and its digest.

Reads `dataset.yaml` of a folder, a yaml file, or a recipe that ships with the package. Writes nothing.
Invariant: a `DataSource` names only files that exist, and its digest changes when any of them does.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from service.contract.files import sha256_file
from training.data.errors import DescriptionError
from training.data.table import DatasetDescription, EntityFile
from training.data.table_rules import check_description

DESCRIPTION_FILE = "dataset.yaml"


@dataclass(frozen=True)
class DataSource:
    """A raw data set: where its files are, and what they mean.

    Attributes:
        root: Folder that file names are relative to.
        description: Checked content of the yaml.
        text: The yaml as read, part of the digest.
        interactions: Parquet files of the log, in order.
    """

    root: Path
    description: DatasetDescription
    text: bytes
    interactions: tuple[Path, ...]

    def entity_paths(self, file: EntityFile) -> tuple[tuple[Path, str], ...]:
        """(path, key column) of an entity's table and of its extra files."""
        extras = tuple((self.root / e.file, e.key or file.key) for e in file.extra_files)
        return ((self.root / file.file, file.key), *extras)

    def digest(self) -> str:
        """Sha256 (hex) over the yaml and the content of every file it names."""
        entities = [f for f in (self.description.users, self.description.items) if f is not None]
        paths = [*self.interactions, *(path for f in entities for path, _ in self.entity_paths(f))]
        total = hashlib.sha256(self.text)
        for path in paths:
            total.update(sha256_file(path).encode())
        return total.hexdigest()


def recipe_names() -> tuple[str, ...]:
    """Names of the recipes that ship with the package."""
    folder = resources.files("training.data") / "recipes"
    return tuple(
        sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    )


def recipe_text(name: str) -> bytes:
    """The yaml of a recipe.

    Raises:
        DescriptionError: No such recipe.
    """
    if name not in recipe_names():
        raise DescriptionError(f"recipe: no recipe '{name}'; allowed: {list(recipe_names())}")
    return (resources.files("training.data") / "recipes" / f"{name}.yaml").read_bytes()


def open_data(data: Path | str, recipe: str | None = None) -> DataSource:
    """Open a raw data set.

    Args:
        data: Folder (with a `dataset.yaml` unless a recipe is named), or the path of a yaml file.
        recipe: Name of a shipped description to use instead of the folder's own.

    Raises:
        DescriptionError: No description, an unusable one, or a file that does not exist.
    """
    path = Path(data)
    if recipe is not None:
        return _open(recipe_text(recipe), path, f"recipe '{recipe}'")
    file = path / DESCRIPTION_FILE if path.is_dir() else path
    if not file.is_file():
        raise DescriptionError(
            f"{file}: not found; give a folder with {DESCRIPTION_FILE}, or a recipe: {list(recipe_names())}"
        )
    return _open(file.read_bytes(), file.parent, str(file))


def _open(text: bytes, folder: Path, origin: str) -> DataSource:
    description = parse_description(text, origin)
    root = folder if description.root is None else folder / description.root
    if not root.is_dir():
        raise DescriptionError(f"{origin}: the data folder {root} does not exist")
    source = DataSource(root, description, text, _log_files(root, description.interactions, origin))
    for field in ("users", "items"):
        file: EntityFile | None = getattr(description, field)
        for path, _ in () if file is None else source.entity_paths(file):
            if not path.is_file():
                raise DescriptionError(f"{origin}: {field}: file {path} does not exist")
    return source


def _log_files(root: Path, named: str | tuple[str, ...], origin: str) -> tuple[Path, ...]:
    found: list[Path] = []
    for name in (named,) if isinstance(named, str) else named:
        paths = sorted(root.glob(name)) if any(sign in name for sign in "*?[") else [root / name]
        if not paths or not all(path.is_file() for path in paths):
            raise DescriptionError(f"{origin}: interactions: no file matches {root / name}")
        found += paths
    if not found:
        raise DescriptionError(f"{origin}: interactions: the list is empty")
    return tuple(found)


def parse_description(text: bytes | str, origin: str = DESCRIPTION_FILE) -> DatasetDescription:
    """Parse and check the text of a `dataset.yaml`.

    Raises:
        DescriptionError: Not YAML, or a field is wrong; names the field, the value and what is allowed.
    """
    try:
        raw: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DescriptionError(f"{origin}: not YAML: {error}") from None
    if not isinstance(raw, dict):
        raise DescriptionError(f"{origin}: expected a mapping, got {type(raw).__name__}")
    try:
        description = DatasetDescription.model_validate(raw)
    except ValidationError as error:
        raise DescriptionError(f"{origin}: " + "; ".join(_worded(error))) from None
    try:
        check_description(description)
    except DescriptionError as error:
        raise DescriptionError(f"{origin}: {error}") from None
    return description


def _worded(error: ValidationError) -> list[str]:
    """One line per wrong field: where, what is allowed, what was found."""
    lines = []
    for found in error.errors(include_url=False, include_context=False):
        place = ".".join(str(part) for part in found["loc"])
        value = repr(found["input"])
        shown = value if len(value) <= 60 else value[:57] + "..."
        if found["type"] == "extra_forbidden":
            lines.append(f"{place}: unknown key")
        elif found["type"] == "missing":
            lines.append(f"{place}: required, but missing")
        else:
            lines.append(f"{place}: {found['msg']}, got {shown}")
    return lines
