"""SyNCRec exported: the eager model's scores, users encoded once, and nothing that only training needs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from export.graph import CalibratorTable, ScoringGraph
from export.onnx_export import export_graph
from export.parity import check_parity
from export.rows import RowSampler, Snapshot
from service.contract.encode import EncodedBlock
from service.contract.manifest import Graph
from service.scoring.runtime import onnxruntime
from tests.support.syncrec import ITEMS, sequence_schema, serving_model

SCHEMA = sequence_schema()


def snapshot() -> Snapshot:
    """40 users with histories of every length, all items, both contexts."""
    rng = np.random.default_rng(0)
    users = np.zeros((40, 17), np.int32)
    users[:, 0] = rng.integers(1, 5, 40)
    for row, length in enumerate(rng.integers(0, 9, 40)):
        users[row, 1 : 1 + length] = rng.integers(1, len(ITEMS) + 2, length)
        users[row, 9 : 9 + length] = rng.integers(2, 5, length)
    items = np.arange(1, len(ITEMS) + 2, dtype=np.int32)[:, None]
    none = np.zeros
    return Snapshot(
        user=EncodedBlock(users, none((40, 0), np.float32)),
        item=EncodedBlock(items, none((len(items), 0), np.float32)),
        context=EncodedBlock(np.array([[2], [3]], np.int32), none((2, 0), np.float32)),
    )


@pytest.fixture(scope="module", params=[(), ("b",)], ids=["cross", "switched"])
def exported(request, tmp_path_factory):
    """Graph, scorer, entry and folder, without a switched domain and with one."""
    model, _ = serving_model(single_domains=request.param)
    lines = CalibratorTable(np.array([1, 0.5, 2, 1], np.float32), np.array([0, 1, -1, 0.5], np.float32))
    graph = ScoringGraph(model, SCHEMA, lines)
    folder: Path = tmp_path_factory.mktemp("syncrec")
    entry: Graph = export_graph(graph, SCHEMA, folder)
    session = onnxruntime.InferenceSession(str(folder / entry.file), providers=["CPUExecutionProvider"])
    names = [spec.name for spec in entry.inputs]
    return graph, lambda x: session.run([entry.output], {n: x[n] for n in names})[0], entry, folder


def test_it_scores_like_the_eager_model(exported) -> None:
    """Within 1e-5 for every domain, at 0, 1 and many rows, of one request and several."""
    graph, scorer, _, _ = exported
    report = check_parity(graph, scorer, RowSampler(SCHEMA, snapshot(), seed=1), domains=range(4))

    assert report.max_error <= 1e-5


def test_users_are_encoded_once_a_request(exported) -> None:
    """All products with weights run once a request; a candidate costs only its inner product."""
    _, _, entry, _ = exported

    assert entry.options["macs_per_row"] == 0
    assert entry.options["macs_per_request"] > 3 * 2 * 8 * 8


def test_nothing_of_training_is_in_the_file(exported) -> None:
    """No bilinear form; gates of the views that serve alone: the mixed one, and the switched domain's."""
    graph, _, entry, folder = exported
    proto = onnx.load(str(folder / entry.file), load_external_data=False)
    names = [tensor.name for tensor in proto.graph.initializer]
    gates = [tuple(t.dims) for t in proto.graph.initializer if "gate" in t.name]

    assert not [name for name in names if "agreement" in name]
    assert all(np.prod(dims) <= graph.model.inputs.num_tasks * 3 * 8 for dims in gates)


def test_inputs_are_those_the_service_fills(exported) -> None:
    """Ids of user and item, the domain, the request of each row; no number is read."""
    _, _, entry, _ = exported
    names = {spec.name for spec in entry.inputs}

    assert names >= {"user_ints", "domain", "item_ints", "request_index"}
    assert not [name for name in names if name.endswith("floats")]
