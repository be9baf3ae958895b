"""Predictors: the graph must be what the manifest says, and its numbers finite."""

import numpy as np
import pytest

from service.contract.encode import EncodedBlock
from service.contract.manifest import Graph
from service.errors import GraphError, GraphRunError, RuntimeMissingError
from service.scoring.predictor import GraphRows, Predictor
from service.scoring.runtime import onnxruntime
from tests.support.quotient_graph import FLOATS, write


def rows(numbers):
    numbers = np.array(numbers, np.float32)
    item = EncodedBlock(np.zeros((len(numbers), 0), np.int32), numbers)
    return GraphRows(item, item, item, np.zeros(1, np.int64), np.zeros(len(numbers), np.int64))


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "g.onnx")


def test_inputs_come_from_the_named_source(path):
    predictor = Predictor(path, Graph(file="g.onnx", inputs=(FLOATS,), output="y"))
    np.testing.assert_array_equal(predictor.score(rows([[1, 2], [3, 4]])), np.array([0.5, 0.75], np.float32))
    assert predictor.score(rows(np.zeros((0, 2)))).shape == (0,)


def test_a_score_that_is_not_finite_is_an_error(path):
    predictor = Predictor(path, Graph(file="g.onnx", inputs=(FLOATS,), output="y"))
    with pytest.raises(GraphRunError, match="row 1 has no finite score"):
        predictor.score(rows([[1, 1], [0, 0]]))


def test_a_failing_run_is_one_kind_of_error(path):
    predictor = Predictor(path, Graph(file="g.onnx", inputs=(FLOATS,), output="y"))
    with pytest.raises(GraphRunError, match=r"g\.onnx: InvalidArgument"):
        predictor.run({"x": np.zeros((1, 3), np.float32)})


@pytest.mark.parametrize(
    ("inputs", "output", "message"),
    [
        ((), "y", r"disagree on inputs \['x'\]"),
        (
            (FLOATS.model_copy(update={"dtype": "int32"}),),
            "y",
            r"input 'x' is tensor\(float\), the manifest says int32",
        ),
        ((FLOATS.model_copy(update={"width": 3}),), "y", "the manifest says width 3"),
        ((FLOATS.model_copy(update={"width": 0}),), "y", "the manifest says width 0"),
        ((FLOATS,), "z", r"has no output 'z'; outputs are \['y'\]"),
    ],
)
def test_a_graph_that_differs_from_the_manifest_is_refused(path, inputs, output, message):
    with pytest.raises(GraphError, match=message):
        Predictor(path, Graph(file="g.onnx", inputs=inputs, output=output))


def test_output_of_another_rank_and_foreign_files_are_refused(tmp_path):
    graph = Graph(file="g.onnx", inputs=(FLOATS,), output="y")
    with pytest.raises(GraphError, match=r"output 'y' must be \(N,\) float32"):
        Predictor(write(tmp_path / "g.onnx", output_rank=2), graph)
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    with pytest.raises(GraphError, match="cannot be opened as an ONNX graph"):
        Predictor(tmp_path / "bad.onnx", graph)


def test_ids_are_checked_when_asked_to(small_loaded_with_check):
    predictor = small_loaded_with_check.predictors["whole"]
    golden = {
        entry.name: np.zeros((1, entry.width) if entry.width else 1, entry.dtype)
        for entry in predictor.graph.inputs
    }
    assert predictor.run(golden).shape == (1,)
    golden["item_ints"][0, 1] = 10_000
    with pytest.raises(
        GraphRunError, match=r"input 'item_ints', row 0, column 1: id 10000 is not in \[0, 18\)"
    ):
        predictor.run(golden)


def test_a_device_that_is_not_there_is_refused(path):
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(
        RuntimeMissingError, match="no CUDAExecutionProvider; for device 'cuda' install the extra `gpu`"
    ):
        Predictor(path, Graph(file="g.onnx", inputs=(FLOATS,), output="y"), device="cuda")
