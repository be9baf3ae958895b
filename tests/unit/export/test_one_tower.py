"""Graphs of a cluster hold its tower only, and score its domains as the whole model does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from export.forms import by_cluster
from export.one_tower import towers_held, with_one_tower
from export.onnx_export import export_graph
from export.parity import check_parity, torch_scores
from service.scoring.predictor import Predictor
from tests.support import models
from tests.support.clustered_run import clustered
from tests.support.models import INPUTS, row_sampler, trained_model
from tests.support.schemas import full_schema
from training.models.config import PleConfig

SCHEMA = full_schema()  # domains 0, 1, 2 and the unknown one; towers 0, 1, 0 and 1
SINGLE = PleConfig(
    inputs=INPUTS,
    num_shared_experts=2,
    num_tower_experts=3,
    expert_widths=((12, 8),),
    tower_widths=(6,),
    towers="clusters",
)


@pytest.fixture(scope="module", params=["mmoe_clusters", "ple_level_clusters"])
def parts(request):
    """Parts of two clusters, with what is said of their towers and experts."""
    patch = pytest.MonkeyPatch()
    patch.setitem(models.MODELS, "ple_level_clusters", SINGLE)
    made = by_cluster(clustered(request.param))
    patch.undo()
    told = {"towers": [1, 2]} | ({"experts": [5, 8]} if request.param == "ple_level_clusters" else {})
    return made.parts, told


def test_every_cluster_gets_a_smaller_model_and_is_held_to_the_whole(parts):
    found, told = parts
    assert [(part.key, part.form, part.domains) for part in found] == [
        ("cluster-0", "cluster", (0, 2)),
        ("cluster-1", "cluster", (1, 3)),
    ]
    for part in found:
        assert part.model.ranker.num_towers == 1
        assert part.reference.ranker.num_towers == 2
        assert part.experts_held(specialised=False) == told


def test_a_cut_model_scores_its_domains_as_the_whole_model(parts):
    """To 1e-5, with fewer weights; the domain still decides embedding and bias."""
    found, _ = parts
    for part in found:
        own, reference = part.scoring_graph(SCHEMA), part.reference_graph(SCHEMA)
        report = check_parity(
            reference,
            lambda inputs, own=own: torch_scores(own, inputs),
            row_sampler(SCHEMA, seed=3),
            domains=part.domains,
        )
        assert report.max_error <= 1e-5
        sizes = [sum(p.numel() for p in m.ranker.parameters()) for m in (part.model, part.reference)]
        assert sizes[0] < sizes[1]
        drawn = [row_sampler(SCHEMA, seed=3).draw(domain=d, num_rows=4) for d in part.domains]
        assert np.abs(torch_scores(own, drawn[0]) - torch_scores(own, drawn[1])).max() > 0


def test_an_exported_cut_model_scores_as_the_whole_model(parts, tmp_path):
    found, _ = parts
    part = found[1]
    entry = export_graph(part.scoring_graph(SCHEMA), SCHEMA, tmp_path, name=part.key, form=part.form)
    predictor = Predictor(tmp_path / entry.file, entry)
    fed = [spec.name for spec in entry.inputs]
    report = check_parity(
        part.reference_graph(SCHEMA),
        lambda inputs: predictor.run({name: inputs[name] for name in fed}),
        row_sampler(SCHEMA, seed=3),
        domains=part.domains,
    )
    assert report.max_error <= 1e-5


@pytest.mark.parametrize(
    ("name", "domains"),
    [
        ("mmoe", (0, 2)),  # one tower
        ("mmoe_clusters", (0, 1)),  # of two clusters
        ("ple_clusters", (0, 2)),  # levels that mix the experts of all towers
        ("star_clusters", (0, 2)),
        ("deepfm", (0, 2)),
    ],
)
def test_models_that_cannot_be_cut_are_left_as_they_are(name, domains):
    model = trained_model(name, SCHEMA)
    assert with_one_tower(model, domains) is None
    assert towers_held(model, model) == towers_held(model, None) == {}


def test_a_domain_s_own_graph_of_a_cut_model_is_that_of_the_domain(parts):
    """Cut first, specialised then: the same scores as the whole model."""
    found, _ = parts
    part = replace(found[1], key="domain-1", form="domain", domains=(1,))
    own, reference = part.scoring_graph(SCHEMA), part.reference_graph(SCHEMA)
    report = check_parity(
        reference,
        lambda inputs: torch_scores(own, inputs),
        row_sampler(SCHEMA, seed=4),
        domains=part.domains,
    )
    assert report.max_error <= 1e-5
