"""AREAD exported with masks: the trained model's scores, from constant tables, without gates or masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export.graph import CalibratorTable, ScoringGraph
from export.onnx_export import export_graph
from export.parity import check_parity
from service.contract.manifest import Graph
from service.scoring.runtime import onnxruntime
from tests.support.models import row_sampler, trained_model
from tests.support.schemas import full_schema
from training.models.aread import Aread
from training.models.base import CtrModel, Sides
from training.models.mask import random_mask
from training.models.pairs import PairLayer

SCHEMA = full_schema()
DENSITIES = (0.05, 0.3, 0.7)


def masked_model(name: str) -> CtrModel:
    """A model whose domains have masks, from a few edges to most of them."""
    model = trained_model(name, SCHEMA)
    ranker = model.ranker
    assert isinstance(ranker, Aread)
    rng = np.random.default_rng(4)
    ranker.set_masks({d: random_mask(ranker.shape, q, rng) for d, q in enumerate(DENSITIES)})
    return model


def exported(model: CtrModel, folder: Path):
    """The scoring graph, its scorer in ONNX Runtime, and the file."""
    size = SCHEMA.num_domains + 1
    flat = CalibratorTable(np.ones(size, np.float32), np.zeros(size, np.float32))
    graph = ScoringGraph(model, SCHEMA, flat)
    entry: Graph = export_graph(graph, SCHEMA, folder)
    session = onnxruntime.InferenceSession(str(folder / entry.file), providers=["CPUExecutionProvider"])
    names = [spec.name for spec in entry.inputs]
    return graph, lambda inputs: session.run([entry.output], {n: inputs[n] for n in names})[0], entry


@pytest.fixture(scope="module", params=["aread", "aread_base_masks"])
def masked(request, tmp_path_factory):
    """Trained model, graph, scorer and file of one kind of pyramid."""
    model = masked_model(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    return model, *exported(model, folder), folder


def trained_scores(model: CtrModel, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Probabilities (N,) of the model as trained, with its gates and masks."""
    blocks = {name: torch.from_numpy(value) for name, value in inputs.items()}
    entities = {e: (blocks[f"{e}_ints"], blocks[f"{e}_floats"]) for e in ("user", "context", "item")}
    with torch.no_grad():
        pairs = PairLayer(SCHEMA)(entities, blocks["domain"], blocks["request_index"])
        request, _ = model.inputs.request_side(*entities["user"], *entities["context"], blocks["domain"])
        row, _ = model.inputs.row_side(*entities["item"], pairs)
        sides = Sides(request, row, blocks["request_index"], blocks["domain"])
        scores: np.ndarray = torch.sigmoid(model.ranker(sides)).numpy()
    return scores


def test_the_graph_scores_like_the_trained_model_in_every_domain(masked):
    """|dp| <= 1e-5 against gates and masks run in torch, and against the graph run eagerly."""
    model, graph, scorer, _, _ = masked
    for domain in range(SCHEMA.num_domains + 1):
        inputs = row_sampler(SCHEMA, seed=domain).draw(domain=domain, num_rows=64, num_requests=3)
        np.testing.assert_allclose(scorer(inputs), trained_scores(model, inputs), atol=1e-5)

    report = check_parity(graph, scorer, row_sampler(SCHEMA), domains=range(SCHEMA.num_domains + 1))
    assert report.max_error <= 1e-5


def test_mixed_domains_score_like_each_alone(masked):
    """Requests of all domains in one call, in any order of rows, score as on their own."""
    _, _, scorer, _, _ = masked
    inputs = row_sampler(SCHEMA, seed=7).draw(domain=0, num_rows=40, num_requests=4)
    inputs["domain"] = np.arange(4, dtype=np.int64)
    whole = scorer(inputs)
    order = np.random.default_rng(0).permutation(40)
    at_rows = ("item_ints", "item_floats", "request_index")
    permuted = scorer({k: v[order] if k in at_rows else v for k, v in inputs.items()})
    alone = []
    for row in range(40):
        request = inputs["request_index"][row]
        one = {k: v[row : row + 1] if k in at_rows else v[request : request + 1] for k, v in inputs.items()}
        one["request_index"] = np.zeros(1, np.int64)
        alone.append(scorer(one)[0])

    np.testing.assert_allclose(permuted, whole[order], atol=1e-6)
    np.testing.assert_allclose(alone, whole, atol=1e-6)


def test_nothing_of_gates_and_masks_is_in_the_file(masked):
    """No gate layer, embedding of gates or mask; softmax only where a base gate reads features."""
    model, _, _, entry, folder = masked
    proto = onnx.load(str(folder / entry.file), load_external_data=False)
    names = [tensor.name for tensor in proto.graph.initializer]
    assert not [n for n in names if "gates.layers" in n or "gates.group" in n or "mask" in n]
    softmaxes = sum(node.op_type == "Softmax" for node in proto.graph.node)
    assert softmaxes == (0 if model.ranker.own_gates.gates_base else 1)
    assert not [n for n in proto.graph.node if n.op_type == "BatchNormalization" and "ranker" in n.input[1]]


def test_the_pyramid_takes_few_operators(masked):
    """One product and activation a layer: experts of this size fit one matrix. No gate layers."""
    model, _, _, entry, folder = masked
    nodes = list(onnx.load(str(folder / entry.file), load_external_data=False).graph.node)
    levels = model.ranker.expert_pyramid.levels
    num_layers = sum(1 + len(level.linears) for level in levels)
    layers = [k for k, node in enumerate(nodes) if any("expert_pyramid.levels" in i for i in node.input)]

    assert len(layers) == num_layers
    assert {nodes[k].op_type for k in layers} == {"Gemm"}
    assert layers[-1] - layers[0] + 1 == 2 * num_layers - 1 + 3 * (len(levels) - 1)


@torch.no_grad()
def test_dead_experts_change_no_score(tmp_path):
    """Biases of 1e6 in the experts that domain 0 does not use leave its scores alone, not the others'."""
    model = masked_model("aread")
    ranker = model.ranker
    assert isinstance(ranker, Aread)
    own, other = (row_sampler(SCHEMA, seed=2).draw(domain=d, num_rows=20) for d in (0, 2))
    before = trained_scores(model, own), trained_scores(model, other)
    for stack, used in zip(ranker.expert_pyramid.levels, ranker.masks[0].used, strict=True):
        assert not used.all()
        for linear in (stack.first, *stack.linears):
            linear.bias[torch.from_numpy(~used)] = 1e6

    _, poisoned, _ = exported(model, tmp_path)

    np.testing.assert_allclose(poisoned(own), before[0], atol=1e-5)
    assert np.abs(poisoned(other) - before[1]).max() > 1e-3
