"""Make a bundle of a run: export, check parity, write golden rows and snapshot, publish.

Nothing is published unless the graph gives the trained model's probabilities for every domain, run by
the service's own predictor.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from export.card import render_card
from export.graph import ScoringGraph
from export.onnx_export import export_graph
from export.parity import MAX_ERROR, ParityReport, check_parity, torch_scores
from export.rows import GraphArrays
from export.run_folder import Part, RunFolder
from export.weights import WeightFiles
from service.contract.bundle import CARD_FILE, GOLDEN_FILE, Bundle
from service.contract.manifest import (
    Calibration,
    DomainEntry,
    FileEntry,
    Graph,
    Manifest,
    Provenance,
    SnapshotFiles,
    UnknownDomain,
)
from service.contract.schema import Entity
from service.contract.store import ModelStore
from service.scoring.golden import check_golden, read_golden, write_golden
from service.scoring.predictor import Predictor

PARITY_SEED = 11
GOLDEN_SEED = 12
LIBRARIES = ("torch", "onnx", "onnxruntime", "numpy")
DOMAIN_METRICS = ("auc", "ece", "logloss", "calibration_ratio", "rows")

Progress = Callable[[str], None]


@dataclass(frozen=True)
class BuildOptions:
    """Choices of a build.

    Attributes:
        alias: Alias to move onto the new bundle; None moves none.
        name: Name of the served model.
        unknown_domain: What happens to requests for domains the bundle does not list.
        snapshot: Whether user and item rows travel in the bundle.
        hot_domains: How many of the largest domains get a graph of their own.
        domain_graphs: Names of further domains that get one.
    """

    alias: str | None = "stable"
    name: str = "ctr"
    unknown_domain: Literal["reject", "zero_shot"] = "reject"
    snapshot: bool = True
    hot_domains: int = 0
    domain_graphs: tuple[str, ...] = ()


def build_bundle(run: RunFolder, store: ModelStore, options: BuildOptions, *, progress: Progress) -> Bundle:
    """Build, check and publish.

    Args:
        run: A finished run.
        store: Where the bundle goes.
        options: Choices.
        progress: Told the name of each step.

    Returns:
        The published bundle.

    Raises:
        ParityError: The exported graph differs from the trained model; nothing is published.
        BundleError: The written files do not verify.
        RunError: A domain that is to have a graph of its own cannot have one.
    """
    hot = run.largest_domains(options.hot_domains)
    run = run.with_domain_graphs(
        [*(n for n in hot if n not in options.domain_graphs), *options.domain_graphs]
    )
    with store.writer() as writer:
        graphs: dict[str, Graph] = {}
        golden: dict[str, tuple[GraphArrays, NDArray[np.float32]]] = {}
        errors: dict[int, float] = {}
        weights = WeightFiles(writer.path / "graphs")
        for part in run.parts:
            progress(f"export graph '{part.key}'")
            graph = part.scoring_graph(run.schema)
            entry = export_graph(
                graph, run.schema, writer.path, name=part.key, form=part.form, weights=weights
            )
            progress(f"check parity of graph '{part.key}' for {len(part.domains)} domains")
            reference = part.reference_graph(run.schema) if graph.is_specialised else graph
            report = _parity(run, part, reference, entry, writer.path)
            errors |= report.domain_errors
            rows = run.sampler(seed=GOLDEN_SEED).golden(part.domains)
            golden[part.key] = (_fed(rows, entry), torch_scores(reference, rows))
            experts = part.experts_held(specialised=graph.is_specialised)
            told = entry.options | ({"experts": experts} if experts else {})
            graphs[part.key] = entry.model_copy(update={"max_error": report.max_error, "options": told})
        progress("write golden rows and the feature snapshot")
        write_golden(writer.path / GOLDEN_FILE, golden)
        snapshot = _copy_snapshot(run, writer.path) if options.snapshot else {}

        def manifest(files: dict[str, FileEntry]) -> Manifest:
            return _manifest(run, options, graphs, errors, snapshot, files)

        # The card shows what the manifest says, so it is rendered from one without the file list.
        (writer.path / CARD_FILE).write_text(render_card(manifest({})))
        progress("publish")
        bundle = writer.publish(manifest, run.schema)
    if options.alias is not None:
        store.set_alias(options.alias, bundle.bundle_id)
    return bundle


def _parity(run: RunFolder, part: Part, graph: ScoringGraph, entry: Graph, folder: Path) -> ParityReport:
    """Compare the exported graph, run by the service's predictor, with the eager one."""
    predictor = Predictor(folder / entry.file, entry)
    return check_parity(
        graph,
        lambda inputs: predictor.run(_fed(inputs, entry)),
        run.sampler(seed=PARITY_SEED),
        domains=part.domains,
    )


def _fed(inputs: GraphArrays, graph: Graph) -> GraphArrays:
    """The inputs that the graph reads."""
    return {spec.name: inputs[spec.name] for spec in graph.inputs}


def _copy_snapshot(run: RunFolder, folder: Path) -> dict[Literal["user", "item"], SnapshotFiles]:
    files: dict[Literal["user", "item"], SnapshotFiles] = {}
    sides: tuple[tuple[Literal["user", "item"], Entity], ...] = (("user", Entity.USER), ("item", Entity.ITEM))
    for side, entity in sides:
        source = run.path / "prepared" / "entities" / side
        target = folder / "features" / side
        target.mkdir(parents=True)
        for name in ("ids.txt", "ints.npy", "floats.npy"):
            shutil.copyfile(source / name, target / name)
        files[side] = SnapshotFiles(
            ids=f"features/{side}/ids.txt",
            ints=f"features/{side}/ints.npy",
            floats=f"features/{side}/floats.npy",
            num_rows=len(run.entity_block(entity)),
        )
    return files


def _manifest(
    run: RunFolder,
    options: BuildOptions,
    graphs: dict[str, Graph],
    errors: dict[int, float],
    snapshot: dict[Literal["user", "item"], SnapshotFiles],
    files: dict[str, FileEntry],
) -> Manifest:
    metrics = {part: run.metrics[part] for part in ("valid", "test") if run.metrics.get(part)}
    unknown = run.part_of(run.schema.num_domains)
    clusters = {} if run.clustering is None else run.clustering.cluster_of
    return Manifest(
        name=options.name,
        model=str(run.metrics.get("model", "")),
        schema_digest=run.schema.digest,
        domains={
            name: _domain(run, name, index, errors[index], cluster=clusters.get(name))
            for index, name in enumerate(run.schema.domains)
        },
        unknown_domain=UnknownDomain(
            policy=options.unknown_domain,
            graph=unknown.key,
            calibration=_calibration(unknown, run.schema.num_domains),
        ),
        graphs=graphs,
        clustering=run.clustering,
        metrics={p: {k: v for k, v in m.items() if k != "domains"} for p, m in metrics.items()},
        features=snapshot,
        feature_time_ms=run.prepared.feature_time_ms,
        provenance=_provenance(run),
        files=files,
    )


def _domain(
    run: RunFolder, name: str, index: int, parity_error: float, *, cluster: int | None
) -> DomainEntry:
    metrics: dict[str, float | None] = {"parity_error": parity_error}
    for split in ("valid", "test"):
        figures: dict[str, Any] = run.metrics.get(split, {}).get("domains", {}).get(name, {})
        metrics |= {f"{split}.{key}": figures[key] for key in DOMAIN_METRICS if key in figures}
    valid = run.metrics.get("valid", {}).get("domains", {}).get(name, {})
    part = run.part_of(index)
    kept = part.model.ranker.experts_kept()
    return DomainEntry(
        index=index,
        graph=part.key,
        cluster=cluster,
        num_train_rows=run.prepared.domain_rows["train"].get(name, 0),
        calibration=_calibration(part, index),
        mean_score=valid.get("mean_score"),
        metrics=metrics,
        experts_kept=None if kept is None else kept[index],
    )


def _calibration(part: Part, index: int) -> Calibration:
    return Calibration(scale=float(part.calibrator.scale[index]), bias=float(part.calibrator.bias[index]))


def _provenance(run: RunFolder) -> Provenance:
    return Provenance(
        data_digest=run.prepared.data_digest,
        config_digest=hashlib.sha256(run.config_text.encode()).hexdigest(),
        code_version=metadata.version("ctr-domains"),
        trained_at=str(run.metrics.get("finished_at", "")),
        run=run.path.name,
        libraries={name: metadata.version(name) for name in LIBRARIES}
        | {"python": platform.python_version()},
    )


def verify_bundle(bundle: Bundle) -> dict[str, float]:
    """Replay the golden rows of every graph on this machine.

    Returns:
        Largest |dp| by graph.

    Raises:
        GoldenError: A score differs by more than the limit.
    """
    predictors = {
        key: Predictor(bundle.file(graph.file), graph) for key, graph in bundle.manifest.graphs.items()
    }
    return check_golden(predictors, read_golden(bundle.file(GOLDEN_FILE)), tolerance=MAX_ERROR)
