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
from export.rows import RowSampler, Snapshot
from service.contract.encode import EncodedBlock
from service.contract.schema import Entity, FeatureSchema
from training.data.dataset import RowReader
from training.data.prepared import PreparedDataset
from training.engine.artefacts import load_model
from training.engine.calibrate import Calibrator
from training.models.base import CtrModel

CONTEXT_ROWS = 4096


@dataclass(frozen=True)
class RunFolder:
    """What a bundle is made of.

    Attributes:
        path: Folder of the run.
        model: Best weights, in evaluation mode.
        schema: Of the prepared data.
        prepared: The data it was trained on, with its feature snapshot.
        calibrator: Lines of every domain and the fallback.
        metrics: Content of `metrics.json`.
        config_text: Content of `config.yaml`.
    """

    path: Path
    model: CtrModel
    schema: FeatureSchema
    prepared: PreparedDataset
    calibrator: Calibrator
    metrics: dict[str, Any]
    config_text: str

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Read a run.

        Raises:
            RunError: A file is missing, or the parts were made for different schemas.
        """
        for name in ("config.yaml", "model.pt", "calibration.json", "metrics.json", "prepared"):
            if not (path / name).exists():
                raise RunError(f"{path / name} is missing; is '{path}' a finished `ctr-train run`?")
        prepared = PreparedDataset.open(path / "prepared")
        calibrator = Calibrator.load(path / "calibration.json")
        if calibrator.domains != prepared.schema.domains:
            raise RunError(f"{path}: calibration.json and the prepared data list different domains")
        return cls(
            path=path,
            model=load_model(path / "model.pt", prepared.schema).eval(),
            schema=prepared.schema,
            prepared=prepared,
            calibrator=calibrator,
            metrics=json.loads((path / "metrics.json").read_text()),
            config_text=(path / "config.yaml").read_text(),
        )

    def scoring_graph(self) -> ScoringGraph:
        """The model with its calibrators, ready to export."""
        table = CalibratorTable(
            scale=self.calibrator.scale.astype(np.float32), bias=self.calibrator.bias.astype(np.float32)
        )
        return ScoringGraph(self.model, self.schema, table)

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
