"""int8 and fp16 variants: close to fp32, and no row's score depends on its neighbours, in any form."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import export.half
import export.quantise
from export.graph import CalibratorTable, ScoringGraph
from export.half import halve_tables
from export.onnx_export import trace_graph
from export.precision import value_ranges
from export.quantise import Range, measured_values, merge_ranges, quantise
from export.validation import LabelledRows
from service.scoring.runtime import onnxruntime
from tests.support.models import row_sampler, trained_model
from tests.support.schemas import full_schema

SCHEMA = full_schema()
AT_ROWS = ("item_ints", "item_floats", "request_index")
FORMS = {"whole": None, "domain": [1]}
PRECISIONS = ("fp32", "int8", "fp16")


def draw(num_rows: int, *, seed: int = 0):
    """One request of domain 1."""
    return row_sampler(SCHEMA, seed=seed).draw(domain=1, num_rows=num_rows)


def scorer(proto: onnx.ModelProto):
    """Scores of a graph in ONNX Runtime."""
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    return lambda inputs: session.run(None, {name: inputs[name] for name in names})[0]


@pytest.fixture(scope="module", params=list(FORMS))
def variants(request):
    """The same model in every precision, thresholds lowered so that its small layers count as large."""
    patch = pytest.MonkeyPatch()
    patch.setattr(export.quantise, "MIN_ENTRIES", 40)
    patch.setattr(export.half, "MIN_ROWS", 4)
    size = SCHEMA.num_domains + 1
    lines = CalibratorTable(np.linspace(0.7, 1.3, size, dtype=np.float32), np.zeros(size, np.float32))
    graph = ScoringGraph(trained_model("mmoe", SCHEMA), SCHEMA, lines, domains=FORMS[request.param])
    proto = trace_graph(graph, SCHEMA)
    inputs = row_sampler(SCHEMA, seed=5).draw(domain=1, num_rows=512, num_requests=512)
    inputs["request_index"] = np.arange(512, dtype=np.int64)
    rows = LabelledRows(inputs, np.zeros(512, np.float32), inputs["domain"])
    made = {
        "fp32": proto,
        "int8": quantise(proto, value_ranges(proto, measured_values(proto), rows)),
        "fp16": halve_tables(proto),
    }
    yield SimpleNamespace(protos=made, scores={name: scorer(p) for name, p in made.items()})
    patch.undo()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_row_scores_the_same_alone_in_a_batch_and_permuted(variants, precision):
    """To 1e-6, at every precision."""
    score, inputs = variants.scores[precision], draw(24)
    whole = score(inputs)
    order = np.random.default_rng(0).permutation(24)
    permuted = score({k: v[order] if k in AT_ROWS else v for k, v in inputs.items()})
    alone = [score({k: v[n : n + 1] if k in AT_ROWS else v for k, v in inputs.items()})[0] for n in range(24)]

    np.testing.assert_allclose(permuted, whole[order], atol=1e-6)
    np.testing.assert_allclose(alone, whole, atol=1e-6)


def test_lower_precision_is_near_and_is_not_fp32(variants):
    """A few hundredths at most for layers a dozen wide; the scores do differ."""
    inputs = draw(200, seed=3)
    exact = variants.scores["fp32"](inputs)
    for precision, limit in (("int8", 0.05), ("fp16", 0.005)):
        change = np.abs(variants.scores[precision](inputs) - exact)
        assert 0 < change.max() < limit


def test_int8_graphs_multiply_integers(variants):
    """Products of two 8-bit values, weights within 7 bits; no dynamic scale anywhere."""
    proto = variants.protos["int8"]
    kinds = {node.op_type for node in proto.graph.node}
    weights = [t for t in proto.graph.initializer if t.name.endswith("_weight_int8")]

    assert "QGemm" in kinds
    assert not kinds & {"DynamicQuantizeLinear", "DynamicQuantizeMatMul"}
    assert weights
    assert all(np.abs(numpy_helper.to_array(t)).max() <= 63 for t in weights)


def test_tables_are_halves_and_nothing_else(variants):
    """float16 only where rows are looked up."""
    proto = variants.protos["fp16"]
    halves = {t.name for t in proto.graph.initializer if t.data_type == TensorProto.FLOAT16}

    assert halves
    assert halves == {
        node.input[0] for node in proto.graph.node if node.op_type == "Gather" and node.input[0] in halves
    }


def test_a_product_by_hand():
    """Three inputs over two columns of weights: 8-bit steps change little."""
    weight = np.float32([[1.0, -1.0], [0.5, 2.0], [-4.0, 0.25]])
    patch = pytest.MonkeyPatch()
    patch.setattr(export.quantise, "MIN_ENTRIES", 1)
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"])],
        "hand",
        [value("x", TensorProto.FLOAT, ["N", 3])],
        [value("y", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.float32([0.5, -0.5]), "b")],
    )
    proto = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    assert measured_values(proto) == ("x",)
    small = quantise(proto, {"x": Range(np.float32([-2, -2, -2]), np.float32([2, 2, 2]))})
    patch.undo()

    scores = scorer(small)({"x": np.float32([[1.0, -2.0, 0.5]])})
    # 1 - 1 - 2 + 0.5 and -1 - 4 + 0.125 - 0.5, each off by half a step of x (2 / 254) a column at most
    np.testing.assert_allclose(scores, [[-1.5, -5.375]], atol=0.05)


def test_ranges_are_those_of_all_batches():
    """Column by column."""
    first = {"x": Range(np.float32([0, -1]), np.float32([1, 1]))}
    second = {"x": Range(np.float32([-3, 0]), np.float32([0, 5]))}

    found = merge_ranges([first, second])["x"]

    np.testing.assert_array_equal(found.low, [-3, -1])
    np.testing.assert_array_equal(found.high, [1, 5])


def test_a_graph_without_large_parts_stays_as_it_is(monkeypatch: pytest.MonkeyPatch):
    """Nothing to measure, no table to halve."""
    monkeypatch.setattr(export.quantise, "MIN_ENTRIES", 1 << 20)
    monkeypatch.setattr(export.half, "MIN_ROWS", 1 << 20)
    lines = CalibratorTable(np.ones(SCHEMA.num_domains + 1, np.float32), np.zeros(4, np.float32))
    proto = trace_graph(ScoringGraph(trained_model("deepfm", SCHEMA), SCHEMA, lines), SCHEMA)

    assert measured_values(proto) == ()
    assert halve_tables(proto) is None
