"""Runs of AREAD: told clusters, read back with its tables, refused where the clusters cannot be had."""

from __future__ import annotations

import pytest
import torch

from training.clustering.assignment import load_assignment
from training.config import load_config
from training.data.prepared import PreparedDataset
from training.engine.artefacts import load_model
from training.engine.checkpoint import load_tensors
from training.engine.errors import RunError
from training.engine.fit import evaluate_run, run_training, tower_table
from training.models.aread import Aread

MODEL = (
    "model={type: aread, group: cluster, gate_dim: 4, num_experts: [2, 4], expert_widths: [[8], [4]], "
    "base: {type: mmoe, num_experts: 2, expert_widths: [8], gate_input: domain}, "
    "inputs: {tables: [{dim: 4}]}}"
)


def settings(small, *overrides):
    clusters = "clustering={version: two_stage, method: random, num_clusters: 3, min_train_rows: 100}"
    return load_config(small.config, [MODEL, clusters, *overrides])


def run(config, prepared, out):
    out.mkdir()
    (out / "prepared").symlink_to(prepared.path)
    return run_training(config, prepared, out)


def test_a_run_is_told_its_clusters_and_reads_them_back(small, tmp_path):
    prepared = PreparedDataset.open(small.prepared)
    result = run(settings(small), prepared, tmp_path / "r")
    assignment = load_assignment(result.folder.clusters)
    model = load_model(result.folder.model, prepared.schema)

    assert isinstance(model.ranker, Aread)
    table = model.ranker.own_gates.get_buffer("cluster_of_domain")
    assert table.tolist() == tower_table(assignment, prepared.schema.domains)
    assert 0.5 < result.metrics["test"]["total_auc"] < 1
    assert evaluate_run(result.folder.root, "test")["total_auc"] == result.metrics["test"]["total_auc"]

    content = load_tensors(result.folder.model)
    del content["state_dict"]["ranker.gates.cluster_of_domain"]
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(RunError, match=r"ranker\.tower_of_domain or ranker\.gates\.cluster_of_domain"):
        load_model(tmp_path / "model.pt", prepared.schema)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("clustering.version=none", r"model\.group is cluster, but clustering\.version is none"),
        ("clustering.version=end_to_end", "end_to_end needs a model with towers; for aread use two_stage"),
    ],
)
def test_clusters_that_cannot_be_had_are_refused(small, tmp_path, override, message):
    prepared = PreparedDataset.open(small.prepared)
    config = settings(small, "clustering.method=cdc", override)
    with pytest.raises(RunError, match=message):
        run(config, prepared, tmp_path / "r")
