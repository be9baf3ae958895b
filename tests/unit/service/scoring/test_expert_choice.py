"""A graph that also says which experts its rows chose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, save

from service.contract.encode import EncodedBlock
from service.contract.manifest import ExpertChoice, Graph, GraphInput
from service.errors import GraphError
from service.scoring.predictor import GraphRows, Predictor

EXPERTS = ExpertChoice(output="experts", num_experts=4)


def graph(experts: ExpertChoice | None = EXPERTS) -> Graph:
    told = GraphInput(name="x", source="item.floats", dtype="float32", width=2)
    return Graph(file="g.onnx", inputs=(told,), output="y", experts=experts)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The larger of two numbers, and which it is."""
    nodes = [
        helper.make_node("TopK", ["x", "one"], ["best", "experts"], axis=1),
        helper.make_node("Squeeze", ["best", "one"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"])
    chosen = helper.make_tensor_value_info("experts", TensorProto.INT64, ["N", 1])
    one = helper.make_tensor("one", TensorProto.INT64, [1], [1])
    made = helper.make_graph(nodes, "g", [x], [y, chosen], [one])
    path = tmp_path / "g.onnx"
    save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def rows() -> GraphRows:
    numbers = np.array([[0.25, 0.5], [0.75, 0.5], [0.125, 1.0]], np.float32)
    item = EncodedBlock(np.zeros((3, 0), np.int32), numbers)
    return GraphRows(item, item, item, np.array([2]), np.zeros(3, np.int64))


def test_a_sink_is_handed_choices_domains_and_requests(path: Path):
    told: list[tuple[np.ndarray, ...]] = []
    predictor = Predictor(path, graph())
    before = predictor.score(rows())
    assert told == []
    predictor.tell_experts(lambda *parts: told.append(parts))

    assert predictor.score(rows()).tolist() == before.tolist() == [0.5, 0.75, 1.0]
    ((experts, domain, request_index),) = told
    assert experts.tolist() == [[1], [0], [1]]
    assert domain.tolist() == [2]
    assert request_index.tolist() == [0, 0, 0]


def test_a_graph_without_that_output_has_nothing_to_tell(path: Path):
    with pytest.raises(GraphError, match="the manifest names no output with chosen experts"):
        Predictor(path, graph(None)).tell_experts(lambda *_: None)


@pytest.mark.parametrize("output", ["y", "gone"])
def test_an_output_that_is_no_choice_is_refused(path: Path, output: str):
    with pytest.raises(GraphError, match=rf"output '{output}' must be \(N, k\) int64"):
        Predictor(path, graph(ExpertChoice(output=output, num_experts=4)))
