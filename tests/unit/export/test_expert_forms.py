"""Chosen experts in exported graphs: every form against the one that computes all, poisoned experts, ties."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from export.errors import ParityError
from export.expert_forms import EXPERT_FORMS, with_form, with_masks, with_static
from export.fused_experts import FusedError, FusedExperts
from export.graph import EXPERTS, OUTPUT, CalibratorTable, ScoringGraph
from export.onnx_export import trace_graph
from export.parity import LEAST_MARGIN, clear_choice, require_clear_choice, torch_scores
from service.scoring.runtime import onnxruntime
from tests.support.models import row_sampler, trained_model
from tests.support.schemas import full_schema
from training.models.base import CtrModel
from training.models.cesaa import Cesaa
from training.models.cesaa_form import CesaaForm

SCHEMA = full_schema()
NUM_DOMAINS = SCHEMA.num_domains
BATCHES = (0, 1, 2, 5, 33, 512)
MASKS = [(0, 1), (1, 2, 3), *[(0, 1, 2, 3)] * (NUM_DOMAINS - 1)]
CALIBRATORS = CalibratorTable(np.ones(NUM_DOMAINS + 1, np.float32), np.zeros(NUM_DOMAINS + 1, np.float32))


@dataclass(frozen=True)
class Made:
    """A graph, what it is held to, and the domain that its rows are of."""

    proto: onnx.ModelProto
    reference: ScoringGraph
    domain: int

    def run(self, inputs: dict[str, Any], proto: onnx.ModelProto | None = None) -> list[np.ndarray]:
        """Scores (N,) and chosen experts (N, k) by ONNX Runtime."""
        session = onnxruntime.InferenceSession(
            (proto or self.proto).SerializeToString(), providers=["CPUExecutionProvider"]
        )
        fed = {value.name: inputs[value.name] for value in self.proto.graph.input}
        return list(session.run([OUTPUT, EXPERTS], fed))


def model() -> CtrModel:
    return trained_model("cesaa", SCHEMA)


def made(form: str) -> Made:
    plain = model()
    domain, domains = 0, None
    if form == "masked":
        plain = with_masks(plain, MASKS)
    if form == "masked domain":
        plain, domain, domains = with_masks(plain, MASKS), 1, (1,)
    if form == "static":
        plain, domain, domains = with_static(plain, 2, (1, 3), (0.25, 0.75)), 2, (2,)
    shaped = with_form(plain, form if form in EXPERT_FORMS else "grouped")
    graph = ScoringGraph(shaped, SCHEMA, CALIBRATORS, domains=domains)
    reference = ScoringGraph(with_form(plain, "dense"), SCHEMA, CALIBRATORS)
    return Made(trace_graph(graph, SCHEMA), reference, domain)


@pytest.fixture(scope="module", params=["grouped", "fused", "masked", "masked domain", "static"])
def graph(request: pytest.FixtureRequest) -> Made:
    return made(request.param)


def test_parity_at_every_batch_size(graph: Made):
    """Scores within 1e-5 of the reference in torch, one request or several; the same experts."""
    sampler = row_sampler(SCHEMA, seed=5)
    for size in BATCHES:
        for requests in (1, 3):
            inputs = sampler.draw(domain=graph.domain, num_rows=size, num_requests=requests)
            scores, experts = graph.run(inputs)
            clear = clear_choice(graph.reference, inputs)
            gap = np.abs(scores - torch_scores(graph.reference, inputs))[clear]

            assert scores.shape == (size,)
            assert experts.shape == (size, 2)
            assert gap.max(initial=0.0) <= 1e-5


def poisoned(proto: onnx.ModelProto, expert: int, num_experts: int) -> onnx.ModelProto:
    """Every weight of one expert is nan, wherever the graph holds it."""
    own = onnx.ModelProto()
    own.CopyFrom(proto)
    stacked = {name for node in own.graph.node if node.op_type == "MoE" for name in node.input[2:]}
    for tensor in own.graph.initializer:
        parts = tensor.name.split(".")
        values = numpy_helper.to_array(tensor).copy()
        if tensor.name in stacked:
            values.reshape(num_experts, -1)[expert] = np.nan
        elif "routed.experts" in tensor.name and parts[parts.index("experts") + 1] == str(expert):
            values[...] = np.nan
        else:
            continue
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return own


def test_a_poisoned_expert_reaches_only_the_rows_that_chose_it(graph: Made):
    """Of forms that claim to skip experts: rows without it keep finite scores, and their very own."""
    names = [t.name for t in graph.proto.graph.initializer if "routed.experts" in t.name]
    is_fused = any(node.op_type == "MoE" for node in graph.proto.graph.node)
    if not names and not is_fused:
        assert graph.domain == 2  # a frozen set has no expert to skip: nothing else is in the graph
        return
    inputs = row_sampler(SCHEMA, seed=6).draw(domain=graph.domain, num_rows=200)
    scores, experts = graph.run(inputs)
    for expert in sorted(set(experts.ravel().tolist())):
        hit = (experts == expert).any(axis=1)
        place = (
            MASKS[1].index(expert) if graph.domain == 1 else expert
        )  # a domain's graph has its own numbers
        found, _ = graph.run(inputs, poisoned(graph.proto, place, 4))
        np.testing.assert_allclose(found[~hit], scores[~hit], atol=1e-6)
        assert np.isnan(found[hit]).all()


def test_masks_leave_only_allowed_experts():
    own = with_masks(model(), MASKS)
    graph = ScoringGraph(own, SCHEMA, CALIBRATORS)
    inputs = row_sampler(SCHEMA, seed=7).draw(domain=0, num_rows=50)
    with torch.inference_mode():
        _, experts = graph(*(torch.from_numpy(a) for a in inputs.values()))

    assert set(experts.flatten().tolist()) == {0, 1}
    ranker = model().ranker
    assert isinstance(ranker, Cesaa)
    assert ranker.experts_kept() is None


def test_a_tie_in_a_golden_row_is_refused():
    """Two runtimes may rightly choose differently there, so no score is right."""
    plain = model()
    graph = ScoringGraph(plain, SCHEMA, CALIBRATORS)
    inputs = row_sampler(SCHEMA, seed=8).draw(domain=0, num_rows=20)
    require_clear_choice(graph, inputs)
    assert isinstance(graph.model.ranker, CesaaForm)
    with torch.no_grad():
        for parameter in graph.model.ranker.gate.parameters():
            parameter.zero_()
        for buffer in graph.model.ranker.gate.buffers():
            buffer.zero_()

    assert not clear_choice(graph, inputs).any()
    with pytest.raises(
        ParityError, match=rf"golden row 0 chooses between experts .* than {LEAST_MARGIN:.0e}"
    ):
        require_clear_choice(graph, inputs)


def test_the_fused_operator_takes_experts_of_two_layers_only():
    ranker = trained_model("cesaa_domain_gate", SCHEMA).ranker
    assert isinstance(ranker, Cesaa)
    with pytest.raises(FusedError, match=r"experts of widths \[12, 10, 8\]; the operator takes exactly 2"):
        FusedExperts(ranker.experts)
