"""Runs with clusters as export reads them: one model with towers, one model each, and worded refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from export.card import render_card
from export.clusters import read_clustering
from export.errors import RunError
from export.run_folder import read_parts
from service.contract.manifest import Clustering
from tests.support.bundles import build_bundle
from tests.support.models import MODELS, fresh_model
from tests.support.schemas import full_schema
from training.clustering.assignment import ClusterAssignment, save_assignment
from training.engine.artefacts import RunFolder, save_json, save_model
from training.engine.calibrate import GLOBAL_ONLY, Calibrator

SCHEMA = full_schema()  # home, search, cart
D = SCHEMA.num_domains
# `fresh_model` gives tower 1 to every second domain and to the unknown one, index 3.
ASSIGNMENT = ClusterAssignment(
    method="cdc",
    num_clusters=2,
    domains=("home", "search", "closed", "cart"),
    targets=(("home", "cart"), ("search", "closed")),
    sources=(("home", "closed"), ("home", "search")),
    default_cluster=1,
    num_updates=5,
)


def metrics(version: str, assignment: ClusterAssignment = ASSIGNMENT) -> dict[str, object]:
    return {"clustering": {"version": version, "assignment": assignment.digest}}


def calibrator(seed: int) -> Calibrator:
    random = np.random.default_rng(seed)
    scale, bias = random.uniform(0.5, 2, D + 1), random.normal(size=D + 1)
    return Calibrator(SCHEMA.domains, scale=scale, bias=bias, strength=GLOBAL_ONLY)


def write_model(folder: RunFolder, model: str, lines: Calibrator) -> None:
    folder.root.mkdir(parents=True, exist_ok=True)
    save_model(folder.model, fresh_model(model, SCHEMA), config=MODELS[model], schema=SCHEMA)
    lines.save(folder.calibration)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Only the assignment."""
    folder = RunFolder(tmp_path / "run")
    folder.clusters.mkdir(parents=True)
    save_assignment(folder.clusters, ASSIGNMENT)
    return folder


@pytest.fixture
def split(run: RunFolder) -> RunFolder:
    """Two models; the pooled lines are those of the cluster that serves a domain."""
    own = calibrator(0), calibrator(1)
    served = np.array([0, 1, 0, 1])
    for k, lines in enumerate(own):
        write_model(run.part(k), "deepfm", lines)
    pooled = {
        name: np.where(served == 0, getattr(own[0], name), getattr(own[1], name))
        for name in ("scale", "bias")
    }
    Calibrator(SCHEMA.domains, **pooled, strength=GLOBAL_ONLY).save(run.calibration)
    describe(run, 0, domains=["home", "cart"], sources=["home"], serves_unknown=False)
    describe(run, 1, domains=["search"], sources=["home", "search"], serves_unknown=True)
    return run


def describe(run: RunFolder, k: int, **told: object) -> None:
    save_json(run.part(k).cluster, {"cluster": k, **told})


def clusters(run: RunFolder, version: str) -> Clustering:
    found = read_clustering(run, SCHEMA, metrics(version))
    assert found is not None
    return found


def test_target_and_source_sets_speak_of_the_schema_s_domains(run: RunFolder):
    """A domain that the data no longer has is left out; the rest keeps the schema's order."""
    found = clusters(run, "two_stage")

    assert [c.domains for c in found.clusters] == [("home", "cart"), ("search",)]
    assert [c.sources for c in found.clusters] == [("home",), ("home", "search")]
    assert (found.method, found.num_updates, found.default_cluster) == ("cdc", 5, 1)
    assert found.assignment == ASSIGNMENT.digest


def test_a_domain_that_is_not_assigned_goes_to_the_default_cluster(run: RunFolder):
    """As training treats it: served by and trained into that cluster."""
    known = ASSIGNMENT.model_copy(
        update={
            "domains": ("home", "cart"),
            "targets": (("home",), ("cart",)),
            "sources": (("home",), ("cart",)),
        }
    )
    save_assignment(run.clusters, known)
    found = read_clustering(run, SCHEMA, metrics("split", known))

    assert found is not None
    assert found.clusters[1].domains == found.clusters[1].sources == ("search", "cart")


def test_a_run_without_clusters_has_none(run: RunFolder):
    """`metrics.json` decides, not what lies in the folder."""
    assert read_clustering(run, SCHEMA, {}) is None


def test_one_model_with_towers_is_one_part(run: RunFolder):
    """It serves every domain and the unknown one."""
    write_model(run, "mmoe_clusters", calibrator(0))
    parts = read_parts(run, SCHEMA, clusters(run, "end_to_end"))

    assert [(p.key, p.form, p.domains) for p in parts] == [("whole", "whole", (0, 1, 2, 3))]


def test_each_model_of_a_split_run_is_a_part(split: RunFolder):
    """The unknown domain goes to the default cluster; calibrators are the part's own."""
    parts = read_parts(split, SCHEMA, clusters(split, "split"))

    assert [(p.key, p.form, p.domains) for p in parts] == [
        ("cluster-0", "cluster", (0, 2)),
        ("cluster-1", "cluster", (1, 3)),
    ]
    for k, part in enumerate(parts):
        np.testing.assert_array_equal(part.calibrator.scale, calibrator(k).scale)


def test_another_assignment_than_the_run_s_is_refused(run: RunFolder):
    """Found by digest, or missing altogether."""
    other = ASSIGNMENT.model_copy(update={"num_updates": 6})
    with pytest.raises(RunError, match=f"digest {ASSIGNMENT.digest[:12]}, the run was made with"):
        read_clustering(run, SCHEMA, metrics("split", other))
    (run.clusters / "assignment.json").unlink()
    with pytest.raises(RunError, match=r"assignment\.json: No such file"):
        clusters(run, "split")


def test_towers_that_do_not_go_by_the_clusters_are_refused(run: RunFolder):
    """The first domain that differs is named, the unknown one too; a model without towers has no clusters."""
    write_model(run, "mmoe_clusters", calibrator(0))
    found = clusters(run, "two_stage")
    swapped = found.model_copy(update={"clusters": found.clusters[::-1]})
    with pytest.raises(RunError, match="domain 'home' has tower 0, the assignment says 1"):
        read_parts(run, SCHEMA, swapped)
    with pytest.raises(RunError, match=r"domain '\(unknown\)' has tower 1, the assignment says 0"):
        read_parts(run, SCHEMA, found.model_copy(update={"default_cluster": 0}))
    write_model(run, "deepfm", calibrator(0))
    with pytest.raises(RunError, match=r"model\.pt: has no towers, but the run has 2 clusters"):
        read_parts(run, SCHEMA, found)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("cluster", 1, "cluster is 1, the assignment says 0"),
        ("domains", ["home"], r"domains is \['home'\], the assignment says \['home', 'cart'\]"),
        ("sources", ["cart"], r"sources is \['cart'\], the assignment says \['home'\]"),
        ("serves_unknown", True, "serves_unknown is True, the assignment says False"),
    ],
)
def test_a_model_made_for_other_domains_is_refused(split: RunFolder, key: str, value: object, message: str):
    """`cluster.json` says what the model was trained for."""
    told = json.loads(split.part(0).cluster.read_text())
    save_json(split.part(0).cluster, told | {key: value})

    with pytest.raises(RunError, match=rf"cluster-0/cluster\.json: {message}"):
        read_parts(split, SCHEMA, clusters(split, "split"))


def test_lines_that_offline_figures_did_not_use_are_refused(split: RunFolder):
    """A line of a served domain must be the pooled one; lines of other domains may be anything."""
    found = clusters(split, "split")
    read_parts(split, SCHEMA, found)
    calibrator(7).save(split.part(1).calibration)

    with pytest.raises(RunError, match=r"calibration\.json: the line of domain 'search' is not that of the"):
        read_parts(split, SCHEMA, found)


@pytest.mark.parametrize("missing", ["cluster-1/model.pt", "cluster-0/calibration.json", "calibration.json"])
def test_a_missing_file_of_a_split_run_is_named(split: RunFolder, missing: str):
    """With what to do about it."""
    (split.root / missing).unlink()

    with pytest.raises(RunError, match=f"{missing} is missing; finish the run with"):
        read_parts(split, SCHEMA, clusters(split, "split"))


def test_calibrators_of_other_domains_are_refused(split: RunFolder):
    """Lines are told apart by their place."""
    Calibrator(("a",), scale=np.ones(2), bias=np.zeros(2), strength=GLOBAL_ONLY).save(split.calibration)

    with pytest.raises(RunError, match="list different domains"):
        read_parts(split, SCHEMA, clusters(split, "split"))


def test_the_card_has_a_line_per_cluster(tmp_path: Path):
    """Domains, source set and graphs; without clusters there is no such section."""

    def cluster(arguments: dict[str, object]) -> None:
        arguments["clustering"] = {
            "version": "split",
            "method": "cdc",
            "num_updates": 3,
            "assignment": "ab" * 32,
            "clusters": [
                {"domains": ["home", "sport"], "sources": ["home", "music"]},
                {"domains": ["music"], "sources": ["music"]},
            ],
            "default_cluster": 0,
        }

    grouped = render_card(build_bundle(tmp_path / "a", change_manifest=cluster).bundle.manifest)
    plain = render_card(build_bundle(tmp_path / "b").bundle.manifest)

    assert "| 0 | home, sport | home, music | whole |" in grouped
    assert "| 1 | music | music | cluster-1 |" in grouped
    assert "Version split, method cdc, 3 updates, assignment abababababab; unlisted" in grouped
    assert "## Clusters" not in plain
