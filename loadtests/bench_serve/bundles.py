"""Makes a reference bundle once and keeps it in the work folder.

A store per model, `WORK/<model>`, alias `stable`. The key of what made it lies beside; another key
makes it anew. Invariant: the exported graphs gave the torch model's scores, by the service's predictor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import numpy as np

from export.graph import CalibratorTable, ScoringGraph
from export.onnx_export import Form, export_graph
from export.parity import check_parity, torch_scores
from export.rows import RowSampler, Snapshot
from export.weights import WeightFiles
from loadtests.bench_serve import reference
from loadtests.bench_serve.reference import (
    DOMAINS,
    HOT_DOMAINS,
    Model,
    default_context,
    make_model,
    make_rows,
    make_schema,
)
from service.contract.bundle import CARD_FILE, GOLDEN_FILE, Bundle
from service.contract.encode import EncodedBlock
from service.contract.manifest import (
    Calibration,
    DomainEntry,
    Graph,
    Manifest,
    Provenance,
    SnapshotFiles,
    UnknownDomain,
)
from service.contract.schema import Entity, FeatureSchema
from service.contract.store import ModelStore
from service.scoring.golden import write_golden
from service.scoring.predictor import Predictor
from training.models.base import CtrModel

WHOLE = "whole"
UNKNOWN = len(DOMAINS)
LINE = Calibration(scale=1.0, bias=0.0)


def reference_store(work: Path, model: Model) -> ModelStore:
    """The store with a model's bundle; builds it when it is not there or was made by other code."""
    folder, key_file = work / model, work / f"{model}.key"
    key = _key()
    if not key_file.exists() or key_file.read_text() != key:
        build(ModelStore(folder), model)
        key_file.write_text(key)
    return ModelStore(folder)


def _key() -> str:
    """Digest of the code and libraries that decide what a bundle holds."""
    digest = hashlib.sha256()
    for module in (Path(reference.__file__), Path(__file__)):
        digest.update(module.read_bytes())
    for library in ("torch", "onnx", "ctr-domains"):
        digest.update(metadata.version(library).encode())
    return digest.hexdigest()


def build(store: ModelStore, name: Model) -> Bundle:
    """Export a reference model, check it, publish it as `stable`."""
    schema, model = make_schema(), make_model(name, make_schema())
    users, items = make_rows(schema, Entity.USER), make_rows(schema, Entity.ITEM)
    snapshot = Snapshot(user=users, item=items, context=default_context(schema, 1))
    hot = {schema.domain_index(d): f"domain-{d}" for d in HOT_DOMAINS} if name == "aread" else {}
    rest = [d for d in range(UNKNOWN + 1) if d not in hot]
    with store.writer() as writer:
        export = _Export(writer.path, schema, model, snapshot)
        graphs = {WHOLE: export.graph(WHOLE, "whole", rest)}
        graphs |= {key: export.graph(key, "domain", (d,)) for d, key in hot.items()}
        write_golden(writer.path / GOLDEN_FILE, export.golden)
        files = {"user": _write_rows(writer.path, "user", users)}
        files["item"] = _write_rows(writer.path, "item", items)
        (writer.path / CARD_FILE).write_text(f"Reference model '{name}' of make bench-serve.\n")
        bundle = writer.publish(
            lambda entries: Manifest(
                name=name,
                model=name,
                schema_digest=schema.digest,
                domains={
                    domain: DomainEntry(
                        index=index, graph=hot.get(index, WHOLE), num_train_rows=1, calibration=LINE
                    )
                    for index, domain in enumerate(DOMAINS)
                },
                unknown_domain=UnknownDomain(graph=WHOLE, calibration=LINE),
                graphs=graphs,
                features=files,
                provenance=Provenance(
                    data_digest="random", config_digest=_key(), code_version="", trained_at="never"
                ),
                files=entries,
            ),
            schema,
        )
    store.set_alias("stable", bundle.bundle_id)
    return bundle


class _Export:
    """Graphs of one bundle, and the golden rows of each."""

    def __init__(self, folder: Path, schema: FeatureSchema, model: CtrModel, snapshot: Snapshot) -> None:
        self._folder, self._schema, self._model, self._snapshot = folder, schema, model, snapshot
        self._weights = WeightFiles(folder / "graphs")
        self.golden = {}

    def graph(self, key: str, form: Form, domains: Sequence[int]) -> Graph:
        ones = np.ones(UNKNOWN + 1, np.float32)
        lines = CalibratorTable(scale=ones, bias=0 * ones)
        special = ScoringGraph(self._model, self._schema, lines, domains=None if form == "whole" else domains)
        entry = export_graph(special, self._schema, self._folder, name=key, form=form, weights=self._weights)
        predictor = Predictor(self._folder / entry.file, entry)
        whole = ScoringGraph(self._model, self._schema, lines)
        names = [spec.name for spec in entry.inputs]
        sampler = RowSampler(self._schema, self._snapshot, seed=1)
        report = check_parity(
            whole, lambda inputs: predictor.run({n: inputs[n] for n in names}), sampler, domains=domains
        )
        rows = sampler.golden(domains)
        self.golden[key] = ({n: rows[n] for n in names}, torch_scores(whole, rows))
        return entry.model_copy(update={"max_error": report.max_error})


def _write_rows(folder: Path, side: str, block: EncodedBlock) -> SnapshotFiles:
    (folder / "features").mkdir(exist_ok=True)
    ids = "".join(f"{side[0]}{number}\n" for number in range(len(block)))
    (folder / f"features/{side}_ids.txt").write_text(ids)
    np.save(folder / f"features/{side}_ints.npy", block.ints)
    np.save(folder / f"features/{side}_floats.npy", block.floats)
    return SnapshotFiles(
        ids=f"features/{side}_ids.txt",
        ints=f"features/{side}_ints.npy",
        floats=f"features/{side}_floats.npy",
        num_rows=len(block),
    )
