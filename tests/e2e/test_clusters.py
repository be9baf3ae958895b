"""Runs with clusters from training to scores: every domain by its own graph, the offline probabilities."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

from export.cli import app as export_cli
from export.errors import RunError
from export.run_folder import RunFolder
from loadtests.parity import raw_requests
from service.app import create_app
from service.contract.bundle import CARD_FILE, GOLDEN_FILE, Bundle
from service.contract.manifest import Manifest
from service.contract.store import ModelStore
from service.scoring.golden import read_golden
from service.settings import Settings
from tests.support.process import running
from training.clustering.assignment import ClusterAssignment
from training.config import load_config
from training.data.prepare import prepare
from training.data.prepared import PreparedDataset
from training.data.source import open_data
from training.data.synthetic import PRESETS, generate
from training.engine.fit import run_training

STRANGER = "opened-yesterday"
ROWS_PER_DOMAIN = 3
VERSIONS = ("end_to_end", "two_stage", "split")
CONFIG = """
name: clustered
model:
  {type: mmoe, towers: clusters, num_experts: 2, expert_widths: [8], tower_widths: [],
   inputs: {tables: [{dim: 4, unknown_rate: 0.02}]}}
training: {epochs: 1, batch_size: 256, num_threads: 1, evaluations_per_epoch: 2, seed: 3, device: cpu}
optimiser: {dense: {lr: 5.0e-3}, tables: {lr: 5.0e-3}}
"""
END_TO_END = (
    "clustering={version: end_to_end, num_clusters: 3, warmup_batches: 8, update_interval: 6, step_rows: 32, "
    "eval_rows: 32, held_out_ratio: 0.1, min_train_rows: 20, min_eval_rows: 5, mode: first_order}"
)


@dataclass(frozen=True)
class Data:
    """Raw and prepared data; the test part also has rows of a domain that training never saw."""

    raw: Path
    prepared: Path


@dataclass(frozen=True)
class Line:
    """A finished run and the store with its bundle."""

    run: Path
    store: Path
    said: str

    @property
    def bundle(self) -> Bundle:
        """The published bundle."""
        return ModelStore(self.store).open("stable")

    @property
    def manifest(self) -> Manifest:
        """Of the bundle."""
        return self.bundle.manifest


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    torch.set_num_threads(1)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Ten domains; ten test rows move to a new one."""
    root = tmp_path_factory.mktemp("data")
    preset = PRESETS["small"].model_copy(
        update={"num_domains": 10, "num_rows": 8000, "num_users": 300, "num_items": 200}
    )
    generate(preset, root / "raw")
    path = root / "raw" / "interactions.parquet"
    log = pl.read_parquet(path)
    last = pl.int_range(pl.len()) >= pl.len() - 10
    log.with_columns(domain=pl.when(last).then(pl.lit(STRANGER)).otherwise("domain")).write_parquet(path)
    prepare(root / "raw", root / "prepared")
    return Data(root / "raw", root / "prepared")


def assignment(domains: tuple[str, ...]) -> ClusterAssignment:
    """Two clusters found before the last domain was opened; source sets differ from target sets."""
    known = domains[:-1]
    return ClusterAssignment(
        method="manual",
        num_clusters=2,
        domains=known,
        targets=(known[1::2], known[::2]),
        sources=((*known[1::2], known[0]), known[2::2]),
        default_cluster=1,
    )


def export(run: Path, store: Path, *options: str) -> str:
    """`ctr-export build`; gives what it printed."""
    words = ["build", str(run), "--store", str(store), "--unknown-domain", "zero_shot", *options]
    done = CliRunner().invoke(export_cli, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def lines(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Line]:
    """One run and one bundle of a version, made when first asked for."""
    root = tmp_path_factory.mktemp("lines")
    (root / "config.yaml").write_text(CONFIG)
    prepared = PreparedDataset.open(data.prepared)
    given = root / "assignment.json"
    given.write_text(assignment(prepared.schema.domains).model_dump_json())
    made: dict[str, Line] = {}

    def line(version: str) -> Line:
        if version not in made:
            clusters = f"clustering={{version: {version}, assignment: {given}}}"
            override = END_TO_END if version == "end_to_end" else clusters
            run, store = root / version, root / f"{version}-models"
            run.mkdir()
            (run / "prepared").symlink_to(data.prepared)
            run_training(load_config(root / "config.yaml", [override]), prepared, run)
            made[version] = Line(run, store, export(run, store))
        return made[version]

    return line


def offline_rows(line: Line, data: Data) -> list[tuple[dict[str, Any], float]]:
    """Requests for test rows of every domain, the new one among them, and their offline probabilities."""
    offline = pl.read_parquet(line.run / "predictions" / "test.parquet").with_row_index("row")
    chosen = offline.group_by("domain", maintain_order=True).head(ROWS_PER_DOMAIN).sort("row")
    rows = chosen["row"].to_numpy().astype(np.int64)
    requests = raw_requests(open_data(data.raw), "test", rows)
    return list(zip(requests, chosen["score"].to_list(), strict=True))


def check(line: Line, data: Data, replies: list[dict[str, Any]]) -> None:
    """Each reply has the offline probability and names the cluster and graph of the artefacts."""
    told = ClusterAssignment.model_validate_json((line.run / "clusters" / "assignment.json").read_bytes())
    split = (line.run / "cluster-0").exists()
    seen = set()
    for (request, expected), reply in zip(offline_rows(line, data), replies, strict=True):
        cluster = told.cluster_of(request["domain"])
        assert reply["scores"] == pytest.approx([expected], abs=1e-5), request
        assert reply["model"]["cluster"] == cluster
        assert reply["model"]["graph"] == (f"cluster-{cluster}" if split else "whole")
        seen.add(request["domain"])
    assert seen == {*line.manifest.domains, STRANGER}


def replies_in_process(line: Line, data: Data) -> list[dict[str, Any]]:
    """What the service says to each of `offline_rows`, without a network."""

    async def replies() -> list[dict[str, Any]]:
        app = create_app(Settings(store=line.store))
        await app.serving.load()
        try:
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(app), base_url="http://service"
            ) as client:
                posted = [
                    await client.post("/score", json=request) for request, _ in offline_rows(line, data)
                ]
        finally:
            app.serving.close()
        return [reply.raise_for_status().json() for reply in posted]

    return asyncio.run(replies())


@pytest.mark.parametrize("version", ["end_to_end", "two_stage"])
def test_one_model_with_a_tower_per_cluster_scores_as_offline(lines, data, version: str):
    """Raw ids in, the probabilities of `predictions/test.parquet` out, from one graph."""
    line = lines(version)

    check(line, data, replies_in_process(line, data))
    assert set(line.manifest.graphs) == {"whole"}


def test_hot_domains_score_as_offline_from_graphs_of_their_own(lines, data, tmp_path: Path):
    """The largest domain and a named one get graphs; the rest, and new domains, stay with the whole one."""
    line = lines("two_stage")
    rows = PreparedDataset.open(data.prepared).domain_rows["valid"]
    largest = max(rows, key=lambda name: rows[name])
    named = min(rows, key=lambda name: rows[name])
    said = export(line.run, tmp_path, "--hot-domains", "1", "--domain-graphs", named)
    hot = Line(line.run, tmp_path, said)
    own = {name: f"domain-{hot.manifest.domains[name].index}" for name in (largest, named)}

    assert {key: graph.form for key, graph in hot.manifest.graphs.items()} == {
        "whole": "whole",
        **dict.fromkeys(own.values(), "domain"),
    }
    for (request, expected), reply in zip(
        offline_rows(line, data), replies_in_process(hot, data), strict=True
    ):
        assert reply["scores"] == pytest.approx([expected], abs=1e-5), request
        assert reply["model"]["graph"] == own.get(request["domain"], "whole")
    assert set(read_golden(hot.bundle.file(GOLDEN_FILE))) == {"whole", *own.values()}
    for key in own.values():
        graph, whole = hot.manifest.graphs[key], hot.manifest.graphs["whole"]
        assert "graphs/whole.bin" in graph.external_files
        assert all(graph.options[n] < whole.options[n] for n in ("num_nodes", "macs_per_row"))
        assert f"| {key} | domain |" in (hot.bundle.path / CARD_FILE).read_text()


def test_one_model_per_cluster_scores_as_offline_over_http(lines, data, tmp_path: Path):
    """The same from a service process; each domain is scored by the graph of its cluster."""
    line = lines("split")
    with running(line.store, tmp_path, OMP_NUM_THREADS="1") as service:
        service.wait_until("/health/ready", httpx.codes.OK)
        with httpx.Client(base_url=service.url, timeout=10) as client:
            posted = [client.post("/score", json=request) for request, _ in offline_rows(line, data)]
            replies = [reply.raise_for_status().json() for reply in posted]

    check(line, data, replies)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_manifest_tells_the_clusters(lines, version: str):
    """Target and source sets, how they were found, and the digest are those of the assignment."""
    line = lines(version)
    told = ClusterAssignment.model_validate_json((line.run / "clusters" / "assignment.json").read_bytes())
    clustering = line.manifest.clustering
    newest = sorted(line.manifest.domains, key=lambda name: line.manifest.domains[name].index)[-1]

    assert clustering is not None
    assert (clustering.version, clustering.method) == (version, told.method)
    assert (clustering.num_updates, clustering.assignment) == (told.num_updates, told.digest)
    assert clustering.default_cluster == told.default_cluster
    for k, cluster in enumerate(clustering.clusters):
        new = set() if version == "end_to_end" or k != told.default_cluster else {newest}
        assert set(cluster.domains) == {*told.targets[k]} | new
        assert set(cluster.sources) == {*told.sources[k]} | new


def test_a_split_bundle_checks_each_domain_on_its_own_graph(lines):
    """Golden rows of a graph hold the domains of its cluster, the unknown one those of the default only."""
    manifest = lines("split").manifest
    golden = read_golden(lines("split").bundle.file(GOLDEN_FILE))

    assert {key: graph.form for key, graph in manifest.graphs.items()} == {
        "cluster-0": "cluster",
        "cluster-1": "cluster",
    }
    assert manifest.unknown_domain.graph == "cluster-1"
    for key, rows in golden.items():
        served = {entry.index for entry in manifest.domains.values() if entry.graph == key}
        unknown = {len(manifest.domains)} if key == "cluster-1" else set()
        assert set(rows.inputs["domain"].tolist()) == served | unknown
    assert all(0 <= entry.metrics["parity_error"] <= 1e-5 for entry in manifest.domains.values())


def test_the_baked_lines_are_those_of_the_whole_run(lines):
    """Each domain's calibrator is the one its offline figures were made with."""
    line = lines("split")
    pooled = json.loads((line.run / "calibration.json").read_text())

    for name, entry in line.manifest.domains.items():
        assert entry.calibration.model_dump() == pooled["domains"][name]
    assert line.manifest.unknown_domain.calibration.model_dump() == pooled["fallback"]


def test_the_commands_show_clusters_and_all_graphs(lines):
    """`build` counts graphs, `verify` replays each, `inspect` and the card have a line per cluster."""
    line = lines("split")
    call = CliRunner(env={"COLUMNS": "200"}).invoke
    verified = call(export_cli, ["verify", "--store", str(line.store)], catch_exceptions=False).output
    inspected = call(export_cli, ["inspect", "--store", str(line.store)], catch_exceptions=False).output
    card = (line.bundle.path / CARD_FILE).read_text()

    assert "10 domains, 2 graphs" in " ".join(line.said.split())
    shown = {
        cells[0]: cells for row in verified.splitlines() if (cells := re.split(r"\s*│\s*", row.strip("│ ")))
    }
    assert all(float(shown[f"cluster-{k}"][5]) <= 1e-5 for k in (0, 1)), verified
    assert "Version split, method manual, 0 updates" in inspected
    clustering = line.manifest.clustering
    assert clustering is not None
    for k, cluster in enumerate(clustering.clusters):
        names = f"{', '.join(cluster.domains)} | {', '.join(cluster.sources)}"
        assert f"| {k} | {names} | cluster-{k} |" in card


def test_a_part_of_a_split_run_is_no_run(lines):
    """The model of one cluster serves its own domains only."""
    part = lines("split").run / "cluster-0"

    with pytest.raises(RunError, match=r"cluster-0 holds the model of one cluster; export the run .*split"):
        RunFolder.open(part)


def test_a_split_run_without_a_part_is_refused(lines, tmp_path: Path):
    """The message counts what is there."""
    copy = tmp_path / "run"
    shutil.copytree(lines("split").run, copy, symlinks=True)
    shutil.rmtree(copy / "cluster-1")

    with pytest.raises(RunError, match="1 cluster folders in a row from cluster-0, the assignment has 2"):
        RunFolder.open(copy)
