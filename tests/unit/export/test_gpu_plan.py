"""Plans of graphs on a GPU, and their padded runs on graphs that the exporter makes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from export.gpu_plan import REQUESTS, ROWS, gpu_plan
from export.graph import CalibratorTable, ScoringGraph
from export.onnx_export import export_graph
from export.show import gpu_line
from service.contract.manifest import Graph
from service.scoring.binding import BoundRun
from service.scoring.placement import CUDA, TENSORRT
from service.scoring.predictor import Predictor
from service.scoring.session import open_session
from tests.support.models import row_sampler, trained_model
from tests.support.schemas import full_schema

SCHEMA = full_schema()


def of(kind: str):
    """A graph of one node."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"])
    return helper.make_model(helper.make_graph([helper.make_node(kind, ["x"], ["y"])], "g", [x], [y]))


def test_a_plan_names_both_providers_and_keeps_products_in_fp32():
    plan = gpu_plan(of("Neg"), "fp32")
    assert plan is not None
    assert [provider.name for provider in plan.providers] == [TENSORRT, CUDA]
    assert (plan.options_of(TENSORRT) or {})["trt_fp16_enable"] == "0"
    assert (plan.options_of(CUDA) or {})["use_tf32"] == "0"
    assert (plan.rows, plan.requests, plan.captures) == (ROWS, REQUESTS, True)


@pytest.mark.parametrize("kind", ["NonZero", "Loop", "If", "Compress"])
def test_what_depends_on_values_is_not_recorded(kind):
    plan = gpu_plan(of(kind), "fp32")
    assert plan is not None
    assert not plan.captures


def test_an_int8_graph_stays_on_processors():
    assert gpu_plan(of("Neg"), "int8") is None


@pytest.mark.parametrize(
    ("precision", "shown"),
    [("fp32", "Tensorrt, CUDA; recorded"), ("fp16", "Tensorrt, CUDA; recorded"), ("int8", "")],
)
def test_inspect_shows_the_plan(precision, shown):
    made = gpu_plan(of("Neg"), precision)
    assert gpu_line(Graph(file="g.onnx", inputs=(), output="y", gpu=made)) == shown


@pytest.fixture(scope="module", params=["aread", "cesaa"])
def made(request, tmp_path_factory) -> tuple[str, Path, Graph]:
    """A trained model's graph."""
    size = SCHEMA.num_domains + 1
    flat = CalibratorTable(np.ones(size, np.float32), np.zeros(size, np.float32))
    folder = tmp_path_factory.mktemp(request.param)
    graph = ScoringGraph(trained_model(request.param, SCHEMA), SCHEMA, flat)
    entry = export_graph(graph, SCHEMA, folder)
    return request.param, folder / entry.file, entry


def test_an_exported_graph_scores_the_same_bound_and_padded(made):
    """N = 1, 2, 5, 33 and 512 of one request, 33 of three, in the sizes that the build writes."""
    name, path, entry = made
    assert entry.gpu is not None
    assert entry.gpu.captures == (name != "cesaa")  # rows that choose experts are gathered by value
    plain = Predictor(path, entry)
    run = BoundRun(
        open_session(path)[0],
        entry,
        rows=entry.gpu.rows,
        requests=entry.gpu.requests,
        device="cpu",
        captures=entry.gpu.captures,
    )
    for num_rows, num_requests in ((1, 1), (2, 1), (5, 1), (33, 1), (512, 1), (33, 3)):
        drawn = row_sampler(SCHEMA, seed=7).draw(domain=1, num_rows=num_rows, num_requests=num_requests)
        inputs = {spec.name: drawn[spec.name] for spec in entry.inputs}
        (scores,) = run([entry.output], inputs)
        assert scores.shape == (num_rows,)
        np.testing.assert_allclose(scores, plain.run(inputs), rtol=0, atol=1e-6)
