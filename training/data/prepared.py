"""A prepared folder as a value: schema, layouts, counts; what training, export and serving open.

Reads `prepared.json`, `schema.json` and the entity rows. Invariant: a folder without a readable
`prepared.json` of this format, or whose schema has another digest than recorded, is refused.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from service.contract.layout import EntityLayout, entity_layout
from service.contract.schema import Entity, FeatureSchema
from training.data.entity_rows import EntityRows, read_entities, read_entity_ids
from training.data.errors import PreparedError
from training.data.log import SPLITS
from training.data.row_files import RowFile

FORMAT = 1
MANIFEST_FILE = "prepared.json"
SCHEMA_FILE = "schema.json"


@dataclass(frozen=True)
class PreparedDataset:
    """An opened prepared folder.

    Attributes:
        path: The folder.
        schema: Feature schema, statistics and histories included.
        info: Content of `prepared.json`.
    """

    path: Path
    schema: FeatureSchema
    info: dict[str, Any]

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open a folder that `prepare` wrote.

        Raises:
            PreparedError: Missing, unfinished, damaged, or of another format.
        """
        folder = Path(path)
        manifest, schema_file = folder / MANIFEST_FILE, folder / SCHEMA_FILE
        try:
            info = json.loads(manifest.read_text(encoding="utf-8"))
            schema = FeatureSchema.model_validate_json(schema_file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise PreparedError(
                f"{error.filename}: missing; {folder} is no finished prepared folder"
            ) from None
        except json.JSONDecodeError as error:
            raise PreparedError(f"{manifest}: not JSON: {error}") from None
        except ValidationError as error:
            raise PreparedError(f"{schema_file}: {error.error_count()} errors, no feature schema") from None
        if not isinstance(info, dict) or info.get("format") != FORMAT:
            found = info.get("format") if isinstance(info, dict) else type(info).__name__
            raise PreparedError(f"{manifest}: format {found!r}; this code reads {FORMAT}")
        if info["schema_digest"] != schema.digest:
            raise PreparedError(f"{schema_file}: digest {schema.digest}, recorded {info['schema_digest']}")
        return cls(folder, schema, info)

    @property
    def rows(self) -> dict[str, int]:
        """Rows per split."""
        return dict(self.info["rows"])

    @property
    def domain_rows(self) -> dict[str, dict[str, int]]:
        """Per split, rows of each domain that has any."""
        return dict(self.info["domains"])

    @property
    def feature_time_ms(self) -> int:
        """The moment after which nothing entered a statistic: the last train row, ms since 1970 UTC."""
        return int(self.info["feature_time_ms"])

    @property
    def base_rate(self) -> float:
        """Click rate of the train rows."""
        return float(self.info["base_rate"])

    @property
    def data_digest(self) -> str:
        """Sha256 (hex) over raw files and description."""
        return str(self.info["data_digest"])

    @property
    def widths(self) -> dict[str, int]:
        """Width of each block of a row file."""
        return dict(self.info["columns"]["widths"])

    @property
    def pairs_width(self) -> int:
        """P: numbers per row of all pairs."""
        return self.widths["pairs"]

    def stat_columns(self, entity: Entity) -> list[str]:
        """Features of an entity whose values come with the row, in the order of its columns."""
        return list(self.info["columns"]["stat_columns"].get(str(entity), []))

    def layout(self, entity: Entity) -> EntityLayout:
        """Columns of an entity's encoded row."""
        return self._layouts[entity]

    @cached_property
    def _layouts(self) -> dict[Entity, EntityLayout]:
        return {entity: entity_layout(self.schema, entity) for entity in Entity}

    @cached_property
    def entities(self) -> dict[Entity, EntityRows]:
        """Encoded rows of all known users and items, as of the end of train."""
        return {
            entity: read_entities(self.path / "entities" / str(entity), self.schema, entity)
            for entity in (Entity.USER, Entity.ITEM)
        }

    def entity_ids(self, entity: Entity) -> list[str]:
        """Canonical id of each slot."""
        return read_entity_ids(self.path / "entities" / str(entity))

    def row_file(self, split: str) -> RowFile:
        """The rows of one split.

        Raises:
            PreparedError: No such split, or its file is missing.
        """
        if split not in SPLITS:
            raise PreparedError(f"no split {split!r}; allowed: {list(SPLITS)}")
        path = self.path / "rows" / f"{split}.parquet"
        if not path.is_file():
            raise PreparedError(f"{path}: missing")
        return RowFile(path, self.widths)
