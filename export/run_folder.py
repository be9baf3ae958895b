"""A finished training run, as export reads it.

config.yaml  model.pt  calibration.json  metrics.json  prepared/
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export.errors import RunError
from export.graph import CalibratorTable, ScoringGraph
from export.onnx_export import Form
from export.rows import RowSampler, Snapshot
from service.contract.encode import EncodedBlock
from service.contract.schema import Entity, FeatureSchema
from training.data.dataset import RowReader
from training.data.prepared import PreparedDataset
from training.engine.artefacts import load_model
from training.engine.calibrate import Calibrator
from training.models.base import CtrModel

CONTEXT_ROWS = 4096


WHOLE = "whole"


@dataclass(frozen=True)
class Part:
    """One model of a run, with the domains it serves.

    Attributes:
        key: Name of its graph in the bundle.
        form: `whole` for a model of all domains, `cluster` for one of several.
        model: Best weights, in evaluation mode.
        calibrator: Lines of every domain and the fallback.
        domains: Indices of the domains it serves; D stands for unknown domains.
    """

    key: str
    form: Form
    model: CtrModel
    calibrator: Calibrator
    domains: tuple[int, ...]

    def scoring_graph(self, schema: FeatureSchema) -> ScoringGraph:
        """The model with its calibrators, ready to export."""
        table = CalibratorTable(
            scale=self.calibrator.scale.astype(np.float32), bias=self.calibrator.bias.astype(np.float32)
        )
        return ScoringGraph(self.model, schema, table)


@dataclass(frozen=True)
class RunFolder:
    """What a bundle is made of.

    Attributes:
        path: Folder of the run.
        parts: The models; together they serve every domain and the unknown one, each exactly once.
        schema: Of the prepared data.
        prepared: The data it was trained on, with its feature snapshot.
        metrics: Content of `metrics.json`.
        config_text: Content of `config.yaml`.
    """

    path: Path
    parts: tuple[Part, ...]
    schema: FeatureSchema
    prepared: PreparedDataset
    metrics: dict[str, Any]
    config_text: str

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Read a run.

        Raises:
            RunError: A file is missing, or the parts were made for different schemas.
        """
        for name in ("config.yaml", "metrics.json", "prepared"):
            if not (path / name).exists():
                raise RunError(f"{path / name} is missing; is '{path}' a finished `ctr-train run`?")
        prepared = PreparedDataset.open(path / "prepared")
        every_domain = tuple(range(prepared.schema.num_domains + 1))
        return cls(
            path=path,
            parts=(_read_part(path, prepared.schema, key=WHOLE, form="whole", domains=every_domain),),
            schema=prepared.schema,
            prepared=prepared,
            metrics=json.loads((path / "metrics.json").read_text()),
            config_text=(path / "config.yaml").read_text(),
        )

    def part_of(self, domain: int) -> Part:
        """The model that serves a domain index."""
        return next(part for part in self.parts if domain in part.domains)

    def sampler(self, *, seed: int) -> RowSampler:
        """Draws requests from the snapshot, with contexts as the log had them."""
        return RowSampler(self.schema, self._snapshot(), seed=seed)

    def entity_block(self, entity: Entity) -> EncodedBlock:
        """Stored rows of users or items, as of the end of training."""
        rows = self.prepared.entities[entity]
        return EncodedBlock(rows.ints, rows.floats)

    def _snapshot(self) -> Snapshot:
        split = next((s for s in ("valid", "test", "train") if self.prepared.rows[s]), None)
        if split is None:
            raise RunError(f"{self.path}: the prepared data have no rows")
        reader = RowReader(self.prepared, split)
        batch = next(iter(reader.batches(CONTEXT_ROWS, seed=0, epoch=0, shuffle=False)))
        return Snapshot(
            user=self.entity_block(Entity.USER),
            item=self.entity_block(Entity.ITEM),
            context=EncodedBlock(batch.context_ints, batch.context_floats),
        )


def _read_part(
    folder: Path, schema: FeatureSchema, *, key: str, form: Form, domains: tuple[int, ...]
) -> Part:
    """One trained model with its calibrators.

    Raises:
        RunError: A file is missing, or the calibrators are of other domains.
    """
    for name in ("model.pt", "calibration.json"):
        if not (folder / name).exists():
            raise RunError(f"{folder / name} is missing; finish the run with `ctr-train run --resume`")
    calibrator = Calibrator.load(folder / "calibration.json")
    if calibrator.domains != schema.domains:
        raise RunError(f"{folder}: calibration.json and the prepared data list different domains")
    model = load_model(folder / "model.pt", schema).eval()
    return Part(key=key, form=form, model=model, calibrator=calibrator, domains=domains)
