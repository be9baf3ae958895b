"""Make a bundle of a run: export, check parity, write golden rows and snapshot, publish.

Nothing is published unless the graph gives the trained model's probabilities for every domain, run by
the service's own predictor.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from export.admission import Verdict, judge
from export.card import render_card
from export.expert_forms import ExpertChoiceForm, apply_masks, choose_expert_forms
from export.forms import FormChoice, choose_form
from export.graph import ScoringGraph
from export.onnx_export import trace_graph, write_graph
from export.parity import MAX_ERROR, ParityReport, check_parity, require_clear_choice, torch_scores
from export.precision import TIMED_ROWS, Chosen, PrecisionChoice, PrecisionError, PrecisionJudge
from export.rows import GraphArrays
from export.run_folder import Part, RunFolder
from export.validation import LabelledRows, validation_rows
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
from service.scoring.golden import write_golden
from service.scoring.predictor import Predictor

MAX_CHANGE = 0.05
"""Largest |dp| of one row in a lower precision; its effect on AUC and calibration is the gate's to judge."""
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
        form: Which graphs there are; None for those of the run and of the domains named here.
        precision: Of the graphs; `auto` takes the fastest that the gate admits.
        experts: How experts that rows chose are computed; None measures where `form` is auto.
        expert_masks: Whether each domain chooses only from the experts that hold nearly all of its routing.
    """

    alias: str | None = "stable"
    name: str = "ctr"
    unknown_domain: Literal["reject", "zero_shot"] = "reject"
    snapshot: bool = True
    hot_domains: int = 0
    domain_graphs: tuple[str, ...] = ()
    form: FormChoice | None = None
    precision: PrecisionChoice = "fp32"
    experts: ExpertChoiceForm | None = None
    expert_masks: bool = False


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
    named = [*(n for n in hot if n not in options.domain_graphs), *options.domain_graphs]
    with tempfile.TemporaryDirectory() as scratch:
        masked, mask_cost = apply_masks(run) if options.expert_masks else (run, {})
        planned, evidence = choose_form(masked, options.form, named, Path(scratch) / "forms", progress)
        wanted = options.experts or ("auto" if options.form == "auto" else None)
        planned, experts = choose_expert_forms(planned, wanted, Path(scratch) / "experts", progress)
        work = _Build(planned, options, Path(scratch), progress, evidence, experts, mask_cost)
        return work.publish(store)


@dataclass
class _Build:
    """One build on its way.

    Attributes:
        run: With the parts that get graphs.
        options: Choices.
        scratch: Folder for candidates.
        progress: Told the name of each step.
        form_evidence: Why these are the graphs, by key.
        expert_evidence: How chosen experts are computed and why, by key.
        mask_cost: What masks of experts change, by key of the run's own graphs.
        graphs, golden, errors: What was made so far.
        compared: Validation rows of the parts with scores of fp32 and of what is served.
    """

    run: RunFolder
    options: BuildOptions
    scratch: Path
    progress: Progress
    form_evidence: dict[str, JsonValue]
    expert_evidence: dict[str, dict[str, JsonValue]] = field(default_factory=dict)
    mask_cost: dict[str, dict[str, JsonValue]] = field(default_factory=dict)
    graphs: dict[str, Graph] = field(default_factory=dict)
    golden: dict[str, tuple[GraphArrays, NDArray[np.float32]]] = field(default_factory=dict)
    errors: dict[int, float] = field(default_factory=dict)
    compared: list[tuple[LabelledRows, Chosen]] = field(default_factory=list)

    def publish(self, store: ModelStore) -> Bundle:
        """Make and check everything, then publish it; again in fp32 where precision fails over all rows."""
        options = self.options
        with store.writer() as writer:
            self._all_graphs(writer.path)
            verdict = self._verdict()
            self._require_wanted(verdict)
            if verdict is not None and not verdict.admitted:
                self.progress(f"all graphs in fp32: {verdict.reason}")
                told: dict[str, JsonValue] = dict(self.form_evidence)
                told["precision"] = {"overall": verdict.told()}
                plain = replace(options, precision="fp32")
                again = replace(
                    self, options=plain, form_evidence=told, graphs={}, golden={}, errors={}, compared=[]
                )
                bundle = again.publish(store)
            else:
                self.progress("write golden rows and the feature snapshot")
                write_golden(writer.path / GOLDEN_FILE, self.golden)
                snapshot = _copy_snapshot(self.run, writer.path) if options.snapshot else {}
                graphs = {key: self._with_overall(graph, verdict) for key, graph in self.graphs.items()}

                def manifest(files: dict[str, FileEntry]) -> Manifest:
                    return _manifest(self.run, options, graphs, self.errors, snapshot, files)

                # The card shows what the manifest says, so it is rendered from one without the file list.
                (writer.path / CARD_FILE).write_text(render_card(manifest({})))
                self.progress("publish")
                bundle = writer.publish(manifest, self.run.schema)
        if options.alias is not None:
            store.set_alias(options.alias, bundle.bundle_id)
        return bundle

    def _all_graphs(self, folder: Path) -> None:
        judge_of = PrecisionJudge(self.run.schema, self.options.precision, self.scratch / "precision")
        wants_rows = self.options.precision in ("int8", "fp16", "auto")
        rows = validation_rows(self.run.prepared) if wants_rows else None
        weights = WeightFiles(folder / "graphs")
        for part in self.run.parts:
            self._graph(part, folder, judge_of, rows, weights)

    def _graph(
        self,
        part: Part,
        folder: Path,
        judge_of: PrecisionJudge,
        rows: LabelledRows | None,
        weights: WeightFiles,
    ) -> None:
        schema, key = self.run.schema, part.key
        self.progress(f"export graph '{key}'")
        graph = part.scoring_graph(schema)
        proto = trace_graph(graph, schema)
        chosen = Chosen(proto, "fp32")
        if rows is not None:
            self.progress(f"precision of graph '{key}'")
            own = rows.of_domains(part.domains)
            sampler = self.run.sampler(seed=PARITY_SEED)
            timed = [sampler.draw(domain=part.domains[0], num_rows=TIMED_ROWS) for _ in range(8)]
            chosen = judge_of.choose(proto, key, own, timed)
            self.compared.append((own, chosen))
        entry = write_graph(
            chosen.proto,
            schema,
            folder,
            name=key,
            form=part.form,
            weights=weights,
            precision=chosen.precision,
        )
        self.progress(f"check parity of graph '{key}' for {len(part.domains)} domains")
        is_own = not graph.is_specialised and part.reference is None
        reference = graph if is_own else part.reference_graph(schema)
        limit = MAX_ERROR if chosen.precision == "fp32" else MAX_CHANGE
        report = _parity(self.run, part, reference, entry, folder, limit=limit)
        self.errors |= report.domain_errors
        drawn = self.run.sampler(seed=GOLDEN_SEED).golden(part.domains)
        require_clear_choice(reference, drawn)
        self.golden[key] = (_fed(drawn, entry), _expected(reference, drawn, entry, folder))
        self.graphs[key] = entry.model_copy(
            update={
                "max_error": report.max_error,
                "options": entry.options | self._told(part, graph, chosen),
                "experts": graph.experts,
            }
        )

    def _told(self, part: Part, graph: ScoringGraph, chosen: Chosen) -> dict[str, JsonValue]:
        told: dict[str, JsonValue] = {}
        if experts := part.experts_held(specialised=graph.is_specialised):
            told["experts"] = experts
        if chosen.evidence:
            told["precision_evidence"] = chosen.evidence
        if found := self.form_evidence.get(part.key):
            told["form_evidence"] = found
        if experts_form := self.expert_evidence.get(part.key):
            told["experts_form"] = experts_form
        if cost := self.mask_cost.get(part.key):
            told["expert_masks"] = cost
        return told

    def _verdict(self) -> Verdict | None:
        """What lower precision does over the rows of all graphs; None where there is none."""
        if all(chosen.precision == "fp32" for _, chosen in self.compared):
            return None
        known = [(rows, chosen) for rows, chosen in self.compared if len(chosen.scores) == len(rows)]
        return judge(
            labels=np.concatenate([rows.labels for rows, _ in known]),
            domains=np.concatenate([rows.domains for rows, _ in known]),
            names=self.run.schema.domains,
            reference=np.concatenate([chosen.reference for _, chosen in known]),
            scores=np.concatenate([chosen.scores for _, chosen in known]),
        )

    def _require_wanted(self, verdict: Verdict | None) -> None:
        """A precision asked for by name is had or refused; `auto` goes on in fp32.

        Raises:
            PrecisionError: No graph has it, or it is not admitted over all rows.
        """
        wanted = self.options.precision
        if wanted in ("fp32", "auto"):
            return
        if verdict is not None and not verdict.admitted:
            raise PrecisionError(f"precision {wanted} is not admitted: {verdict.reason}")
        if all(chosen.precision != wanted for _, chosen in self.compared):
            reasons = "; ".join(dict.fromkeys(str(c.evidence.get("reason")) for _, c in self.compared))
            raise PrecisionError(f"no graph is served in {wanted}: {reasons}")

    def _with_overall(self, graph: Graph, verdict: Verdict | None) -> Graph:
        told = self.form_evidence.get("precision")
        if verdict is not None:
            told = {"overall": verdict.told()}
        if told is None:
            return graph
        return graph.model_copy(update={"options": {**graph.options, "precision_of_bundle": told}})


def _expected(reference: ScoringGraph, rows: GraphArrays, entry: Graph, folder: Path) -> NDArray[np.float32]:
    """Golden scores: of torch, or of the graph itself where it is not held to them row by row."""
    if entry.precision == "fp32":
        return torch_scores(reference, rows)
    return Predictor(folder / entry.file, entry).run(_fed(rows, entry))


def _parity(
    run: RunFolder, part: Part, graph: ScoringGraph, entry: Graph, folder: Path, *, limit: float
) -> ParityReport:
    """Compare the exported graph, run by the service's predictor, with the eager one."""
    predictor = Predictor(folder / entry.file, entry)
    return check_parity(
        graph,
        lambda inputs: predictor.run(_fed(inputs, entry)),
        run.sampler(seed=PARITY_SEED),
        domains=part.domains,
        limit=limit,
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
