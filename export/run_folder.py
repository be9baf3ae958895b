"""A finished training run, as export reads it.

    config.yaml  metrics.json  prepared/  calibration.json
    model.pt                                   of a run of one model
    clusters/assignment.json                   of a run with clusters
    cluster-<k>/{model.pt,calibration.json}    of a split run, one folder per cluster

Invariant: every domain and the unknown one are served by exactly one part.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import JsonValue

from export.clusters import SPLIT, read_clustering, require_described, require_towers, served_domains
from export.errors import RunError
from export.graph import CalibratorTable, ScoringGraph
from export.one_tower import towers_held
from export.onnx_export import Form
from export.rows import RowSampler, Snapshot
from service.contract.encode import EncodedBlock
from service.contract.layout import entity_layout
from service.contract.manifest import Clustering
from service.contract.schema import Entity, FeatureSchema
from training.data.dataset import RowReader
from training.data.prepared import PreparedDataset
from training.engine import artefacts
from training.engine.artefacts import load_model
from training.engine.calibrate import Calibrator
from training.models.base import CtrModel
from training.models.specialise import specialise

CONTEXT_ROWS = 4096
WHOLE = "whole"


@dataclass(frozen=True)
class Part:
    """One model of a run, with the domains it serves.

    Attributes:
        key: Name of its graph in the bundle.
        form: `whole` for a model of all domains, `cluster` for one of several, `domain` for a specialised
            form of one of these.
        model: Best weights, in evaluation mode.
        calibrator: Lines of every domain and the fallback.
        domains: Indices of the domains it serves; D stands for unknown domains.
        reference: The same model in the form that its graph is held to; None where that is its own.
    """

    key: str
    form: Form
    model: CtrModel
    calibrator: Calibrator
    domains: tuple[int, ...]
    reference: CtrModel | None = None

    def scoring_graph(self, schema: FeatureSchema) -> ScoringGraph:
        """The model with its calibrators, ready to export; specialised unless it is whole."""
        domains = None if self.form == "whole" else self.domains
        return ScoringGraph(self.model, schema, self._calibrators(), domains=domains)

    def reference_graph(self, schema: FeatureSchema) -> ScoringGraph:
        """The same with nothing removed: what the specialised form is held to."""
        return ScoringGraph(self.reference or self.model, schema, self._calibrators())

    def experts_held(self, *, specialised: bool) -> dict[str, JsonValue]:
        """Experts in the graph and in the model, by level; without masks towers, where some are left out."""
        kept = self.model.ranker.experts_kept()
        if kept is None:
            return towers_held(self.model, self.reference)
        every = Counter(name.partition(".")[0] for name in kept[-1])  # unknown domains use every expert
        names = {name for d in self.domains for name in kept[d]} if specialised else set(kept[-1])
        held = Counter(name.partition(".")[0] for name in names)
        return {level: [held[level], count] for level, count in every.items()}

    def _calibrators(self) -> CalibratorTable:
        return CalibratorTable(
            scale=self.calibrator.scale.astype(np.float32), bias=self.calibrator.bias.astype(np.float32)
        )


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
        clustering: Clusters of the domains; None when the run has none.
    """

    path: Path
    parts: tuple[Part, ...]
    schema: FeatureSchema
    prepared: PreparedDataset
    metrics: dict[str, Any]
    config_text: str
    clustering: Clustering | None = None

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Read a run.

        Raises:
            RunError: A file is missing, the files do not belong together, or the folder is only a part of
                a run.
        """
        run = artefacts.RunFolder(path)
        if run.cluster.exists():
            raise RunError(
                f"{path} holds the model of one cluster; export the run it is part of: {path.parent}"
            )
        for name in ("config.yaml", "metrics.json", "prepared"):
            if not (path / name).exists():
                raise RunError(f"{path / name} is missing; is '{path}' a finished `ctr-train run`?")
        prepared = PreparedDataset.open(path / "prepared")
        metrics = json.loads((path / "metrics.json").read_text())
        clustering = read_clustering(run, prepared.schema, metrics)
        return cls(
            path=path,
            parts=read_parts(run, prepared.schema, clustering),
            schema=prepared.schema,
            prepared=prepared,
            metrics=metrics,
            config_text=(path / "config.yaml").read_text(),
            clustering=clustering,
        )

    def with_domain_graphs(self, domains: Sequence[str]) -> RunFolder:
        """The same run with a graph of its own for each of some domains.

        Raises:
            RunError: A domain that the data lack or one named twice, or a model that has nothing to drop
                for one domain.
        """
        if twice := sorted({name for name in domains if list(domains).count(name) > 1}):
            raise RunError(f"a graph for domain '{twice[0]}' is wanted twice")
        own: list[Part] = []
        for name in domains:
            if name not in self.schema.domains:
                known = ", ".join(self.schema.domains)
                raise RunError(f"a graph for domain '{name}' is wanted; the data have {known}")
            index = self.schema.domain_index(name)
            part = self.part_of(index)
            if specialise(part.model, (index,)) is None:
                raise RunError(
                    f"not specialised: a model of type {self.metrics.get('model')} has nothing to drop for "
                    f"domain '{name}'; graph '{part.key}' serves it"
                )
            own.append(replace(part, key=f"domain-{index}", form="domain", domains=(index,)))
        taken = {part.domains[0] for part in own}
        left = [
            replace(part, domains=tuple(d for d in part.domains if d not in taken)) for part in self.parts
        ]
        return replace(self, parts=(*(part for part in left if part.domains), *own))

    def largest_domains(self, number: int) -> tuple[str, ...]:
        """Names of the domains with most validation rows, the largest first; train rows decide ties."""
        valid, train = (self.prepared.domain_rows.get(split, {}) for split in ("valid", "train"))
        order = sorted(self.schema.domains, key=lambda name: (-valid.get(name, 0), -train.get(name, 0)))
        return tuple(order[:number])

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
        return Snapshot(
            user=self.entity_block(Entity.USER),
            item=self.entity_block(Entity.ITEM),
            context=self._contexts(),
        )

    def _contexts(self) -> EncodedBlock:
        """Contexts as the log had them; where the schema has none, the one that there is."""
        layout = entity_layout(self.schema, Entity.CONTEXT)
        if not layout.slots:
            return EncodedBlock(layout.default_ints[None], layout.default_floats[None])
        split = next((s for s in ("valid", "test", "train") if self.prepared.rows[s]), None)
        if split is None:
            raise RunError(f"{self.path}: the prepared data have no rows")
        reader = RowReader(self.prepared, split)
        batch = next(iter(reader.batches(CONTEXT_ROWS, seed=0, epoch=0, shuffle=False)))
        return EncodedBlock(batch.context_ints, batch.context_floats)


def read_parts(
    run: artefacts.RunFolder, schema: FeatureSchema, clustering: Clustering | None
) -> tuple[Part, ...]:
    """One model of all domains, or one of each cluster.

    Raises:
        RunError: A part is missing, damaged or does not go with the clusters.
    """
    if clustering is not None and clustering.version == SPLIT:
        return _cluster_parts(run, schema, clustering)
    every_domain = tuple(range(schema.num_domains + 1))
    part = _read_part(run.root, schema, key=WHOLE, form="whole", domains=every_domain)
    if clustering is not None:
        require_towers(part.model, clustering, schema, run=run)
    return (part,)


def _cluster_parts(
    run: artefacts.RunFolder, schema: FeatureSchema, clustering: Clustering
) -> tuple[Part, ...]:
    folders = run.parts
    if len(folders) != len(clustering.clusters):
        raise RunError(
            f"{run.root}: {len(folders)} cluster folders in a row from cluster-0, the assignment has "
            f"{len(clustering.clusters)} clusters; finish the run with `ctr-train run --resume`"
        )
    pooled = _read_calibrator(run.root, schema)
    parts = []
    for k, folder in enumerate(folders):
        require_described(folder, clustering, k)
        served = served_domains(clustering, schema, k)
        part = _read_part(folder.root, schema, key=f"cluster-{k}", form="cluster", domains=served)
        _require_same_lines(part.calibrator, pooled, served, folder=folder)
        parts.append(part)
    return tuple(parts)


def _require_same_lines(
    own: Calibrator, pooled: Calibrator, served: tuple[int, ...], *, folder: artefacts.RunFolder
) -> None:
    """Offline figures used the pooled lines; the graph gets the part's own."""
    for d in served:
        if (own.scale[d], own.bias[d]) != (pooled.scale[d], pooled.bias[d]):
            name = (*own.domains, "(unknown)")[d]
            raise RunError(f"{folder.calibration}: the line of domain '{name}' is not that of the whole run")


def _read_calibrator(folder: Path, schema: FeatureSchema) -> Calibrator:
    _require_file(folder, "calibration.json")
    calibrator = Calibrator.load(folder / "calibration.json")
    if calibrator.domains != schema.domains:
        raise RunError(f"{folder}: calibration.json and the prepared data list different domains")
    return calibrator


def _require_file(folder: Path, name: str) -> None:
    if not (folder / name).exists():
        raise RunError(f"{folder / name} is missing; finish the run with `ctr-train run --resume`")


def _read_part(
    folder: Path, schema: FeatureSchema, *, key: str, form: Form, domains: tuple[int, ...]
) -> Part:
    """One trained model with its calibrators.

    Raises:
        RunError: A file is missing, or the calibrators are of other domains.
    """
    _require_file(folder, "model.pt")
    calibrator = _read_calibrator(folder, schema)
    model = load_model(folder / "model.pt", schema).eval()
    return Part(key=key, form=form, model=model, calibrator=calibrator, domains=domains)
