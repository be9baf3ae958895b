"""Bound and padded runs give what plain runs give, whatever the sizes and whatever ran before."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, save

from export.gpu_plan import gpu_plan
from service.contract.manifest import ExpertChoice, Graph, GraphInput
from service.errors import GraphRunError
from service.scoring.binding import BoundRun
from service.scoring.placement import CUDA, Placement
from service.scoring.predictor import Predictor
from service.scoring.runtime import onnxruntime
from service.scoring.session import open_session
from tests.support.bundles import make_schema
from tests.support.linear_graph import graph_inputs, make_weights, write_graph
from tests.support.quotient_graph import FLOATS, write

ROWS, REQUESTS = (2, 8, 64, 512), (1, 4)
SCHEMA = make_schema()


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    """A graph with inputs of every source, as it is run plainly, and its entry."""
    path = tmp_path_factory.mktemp("linear") / "g.onnx"
    write_graph(path, SCHEMA, make_weights(SCHEMA, seed=3), external="g.bin")
    graph = Graph(file="g.onnx", inputs=graph_inputs(SCHEMA), output="probability")
    return path, graph, Predictor(path, graph)


def bound(path, graph, **changes):
    """The graph with buffers in the memory of the processor, which the same calls reach."""
    session, _ = open_session(path)
    wanted = {"rows": ROWS, "requests": REQUESTS, "device": "cpu", "captures": True} | changes
    return BoundRun(session, graph, **wanted)


def draw(graph, num_rows, num_requests=1, seed=0):
    """Inputs by name: small ids, numbers, and a request for each candidate."""
    rng = np.random.default_rng(seed + 1000 * num_rows + num_requests)
    made = {}
    for entry in graph.inputs:
        by_row = entry.source.startswith("item.") or entry.source == "request_index"
        shape = (num_rows if by_row else num_requests, *((entry.width,) if entry.width else ()))
        if entry.source == "request_index":
            made[entry.name] = rng.integers(0, num_requests, shape)
        elif entry.dtype == "float32":
            made[entry.name] = rng.normal(size=shape).astype(np.float32)
        else:
            made[entry.name] = rng.integers(0, 3, shape).astype(entry.dtype)
    return made


@pytest.mark.parametrize("num_rows", [0, 1, 2, 5, 33, 512])
@pytest.mark.parametrize("num_requests", [1, 3])
def test_padded_runs_score_as_plain_ones(linear, num_rows, num_requests):
    path, graph, plain = linear
    inputs = draw(graph, num_rows, num_requests)
    (scores,) = bound(path, graph)(["probability"], inputs)
    assert (scores.shape, scores.dtype) == ((num_rows,), np.float32)
    np.testing.assert_allclose(scores, plain.run(inputs), rtol=0, atol=1e-6)


def test_buffers_are_clean_after_a_larger_run_and_results_stay_as_they_were(linear):
    path, graph, plain = linear
    run = bound(path, graph)
    large, small = draw(graph, 60, 4), draw(graph, 33, 2, seed=5)
    (first,) = run(["probability"], large)
    kept = first.copy()
    (second,) = run(["probability"], small)
    np.testing.assert_allclose(second, plain.run(small), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(first, kept)


def test_added_rows_do_not_change_those_asked_for(linear):
    """One and the same candidates in three sizes: nothing added, a few rows, many."""
    path, graph, _ = linear
    inputs = draw(graph, 8)
    found = [bound(path, graph, rows=rows)(["probability"], inputs)[0] for rows in ((8,), (11,), (512,))]
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(found[2], found[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("num_requests", "num_rows", "size"),
    [(1, 0, (1, 2)), (1, 2, (1, 2)), (1, 3, (1, 8)), (2, 512, (4, 512)), (5, 8, None), (1, 513, None)],
)
def test_sizes_are_the_next_ones_of_the_plan(linear, num_requests, num_rows, size):
    path, graph, _ = linear
    assert bound(path, graph).padded(num_requests, num_rows) == size


@pytest.mark.parametrize(("num_rows", "num_requests"), [(513, 1), (20, 5)])
def test_what_is_larger_than_every_size_is_run_as_it_is(linear, num_rows, num_requests):
    path, graph, plain = linear
    inputs = draw(graph, num_rows, num_requests)
    np.testing.assert_array_equal(bound(path, graph)(["probability"], inputs)[0], plain.run(inputs))


def test_a_row_that_is_not_finite_is_dropped_with_the_rows_that_were_added(tmp_path):
    """The graph divides zero by zero on added rows; only what was asked for comes back."""
    path = write(tmp_path / "g.onnx")
    run = bound(path, Graph(file="g.onnx", inputs=(FLOATS,), output="y"), captures=False)
    (scores,) = run(["y"], {"x": np.array([[1, 2], [3, 4], [1, 8]], np.float32)})
    np.testing.assert_array_equal(scores, np.array([0.5, 0.75, 0.125], np.float32))


def test_a_graph_that_reads_nothing_of_candidates_is_run_as_it_is(tmp_path):
    path = write(tmp_path / "g.onnx")
    by_request = GraphInput(name="x", source="user.floats", dtype="float32", width=2)
    run = bound(path, Graph(file="g.onnx", inputs=(by_request,), output="y"))
    assert run.padded(1, 0) is None
    np.testing.assert_array_equal(run(["y"], {"x": np.array([[1, 2]], np.float32)})[0], np.float32([0.5]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"item_ints": np.zeros((5, 1), np.int32)},
            r"input 'item_ints' must be \(5, \d+\) int32, got \(5, 1\)",
        ),
        ({"item_ints": np.zeros((1, 1), np.int64)}, "input 'item_ints' must be .* int32, got .* int64"),
        ({"request_index": np.zeros(1, np.int64)}, r"input 'request_index' must be \(5,\) int64, got \(1,\)"),
        ({"strange": np.zeros(1)}, r"differ in \['strange'\]"),
    ],
)
def test_inputs_that_would_be_stretched_to_fit_are_refused(linear, change, message):
    path, graph, _ = linear
    with pytest.raises(GraphRunError, match=message):
        bound(path, graph)(["probability"], draw(graph, 5) | change)


def test_only_runs_of_one_request_are_recorded_and_each_size_has_its_own_number(linear):
    path, graph, _ = linear
    run = bound(path, graph)
    for num_rows, num_requests in ((1, 1), (5, 1), (500, 1), (5, 3)):
        run(["probability"], draw(graph, num_rows, num_requests))
    numbers = {size: held.options.get_run_config_entry("gpu_graph_id") for size, held in run._bound.items()}
    assert numbers == {(1, 2): "1", (1, 8): "2", (1, 512): "4", (4, 8): "-1"}


def test_a_predictor_placed_on_a_gpu_runs_bound_and_one_at_a_time(linear, monkeypatch):
    """The session is the processor's, the placement a GPU's: what the predictor makes of it is under test."""
    path, graph, plain = linear
    placed = Placement(CUDA, {}, ROWS, REQUESTS, captures=True)
    monkeypatch.setattr("service.scoring.predictor.open_session", lambda *_: (open_session(path)[0], placed))
    predictor = Predictor(path, graph, device="auto")
    assert isinstance(predictor._run, BoundRun)
    assert predictor._run._device == "cuda"
    predictor._run._device = "cpu"  # there is no other memory here
    assert predictor._lock is not None
    assert predictor.warm_up_rows == (512, 2, 8, 64)
    inputs = draw(graph, 33)
    np.testing.assert_allclose(predictor.run(inputs), plain.run(inputs), rtol=0, atol=1e-6)
    with pytest.raises(GraphRunError, match=r"^inputs given and inputs of the graph differ"):
        predictor.run(inputs | {"strange": np.zeros(1)})


def test_chosen_experts_come_back_beside_the_scores(tmp_path):
    """A graph with a further output of fixed width: (N, 2) int64."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"])
    e = helper.make_tensor_value_info("e", TensorProto.INT64, ["N", 2])
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    nodes = [
        helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0),
        helper.make_node("Cast", ["x"], ["e"], to=TensorProto.INT64),
    ]
    made = helper.make_graph(nodes, "g", [x], [y, e], [axes])
    save(
        helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9),
        tmp_path / "g.onnx",
    )
    choice = ExpertChoice(output="e", num_experts=9)
    graph = Graph(file="g.onnx", inputs=(FLOATS,), output="y", experts=choice)
    values = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
    scores, experts = bound(tmp_path / "g.onnx", graph)(["y", "e"], {"x": values})
    np.testing.assert_array_equal(scores, np.float32([3, 7, 11]))
    np.testing.assert_array_equal(experts, values.astype(np.int64))


def test_a_gpu_scores_as_the_processor_does(linear):
    path, graph, plain = linear
    if CUDA not in onnxruntime.get_available_providers():
        pytest.skip(
            "this onnxruntime has no CUDAExecutionProvider: bound runs were tested on the processor only"
        )
    planned = graph.model_copy(update={"gpu": gpu_plan(onnx.load(path), "fp32")})
    predictor = Predictor(path, planned, device="cuda")
    for num_rows in (1, 2, 5, 33, 512):
        inputs = draw(graph, num_rows)
        np.testing.assert_allclose(predictor.run(inputs), plain.run(inputs), rtol=0, atol=1e-5)
