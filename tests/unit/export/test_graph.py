"""The exported graph: parity with torch, inputs, independence of rows, nothing of the build machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from export.errors import ParityError
from export.graph import graph_inputs
from export.onnx_export import export_graph
from export.parity import check_parity, torch_scores
from service.contract.manifest import Graph
from tests.support.models import MODELS, row_sampler, scoring_graph
from tests.support.schemas import full_schema

SCHEMA = full_schema()


def scorer_of(folder: Path, graph: Graph):
    """ONNX Runtime behind the manifest's input list."""
    from service.scoring.runtime import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / graph.file), providers=["CPUExecutionProvider"])
    names = [spec.name for spec in graph.inputs]
    return lambda inputs: session.run([graph.output], {n: inputs[n] for n in names})[0]


@pytest.fixture(scope="module", params=MODELS)
def exported(request, tmp_path_factory):
    """One export per method."""
    folder = tmp_path_factory.mktemp(request.param)
    eager = scoring_graph(request.param, SCHEMA)
    entry = export_graph(eager, SCHEMA, folder)
    return eager, entry, folder


def test_probabilities_agree_for_every_domain_and_batch_size(exported):
    """|dp| <= 1e-5 at batch 0, 1, 2, 7, 256, for every domain, unknown ids and several requests."""
    eager, entry, folder = exported

    report = check_parity(eager, scorer_of(folder, entry), row_sampler(SCHEMA), domains=range(4))

    assert report.max_error <= 1e-5
    assert report.num_rows == 4 * (0 + 1 + 2 + 7 + 256 + 7)


def test_a_row_scores_the_same_alone_in_a_batch_and_permuted(exported):
    """No score depends on a row's neighbours."""
    _, entry, folder = exported
    scorer = scorer_of(folder, entry)
    inputs = row_sampler(SCHEMA, seed=5).draw(domain=1, num_rows=33, num_requests=4)
    whole = scorer(inputs)
    order = np.random.default_rng(0).permutation(33)
    row_level = ("item_ints", "item_floats", "request_index")

    permuted = scorer({k: v[order] if k in row_level else v for k, v in inputs.items()})
    alone = [
        scorer({k: v[i : i + 1] if k in row_level else v for k, v in inputs.items()})[0] for i in range(33)
    ]

    np.testing.assert_allclose(permuted, whole[order], atol=1e-6)
    np.testing.assert_allclose(alone, whole, atol=1e-6)


def test_the_manifest_lists_the_inputs_the_graph_reads(exported):
    """Unused blocks (context numbers here) are neither in the graph nor in the manifest."""
    _, entry, _ = exported

    assert {spec.name for spec in graph_inputs(SCHEMA)} - {spec.name for spec in entry.inputs} == {
        "context_floats"
    }


def test_the_calibrator_of_the_domain_is_baked_in(exported):
    """Score = sigmoid(scale_d * logit + bias_d): moving the bias by 1 moves the logit by 1."""
    eager, entry, folder = exported
    inputs = row_sampler(SCHEMA, seed=9).draw(domain=2, num_rows=6)
    score = scorer_of(folder, entry)(inputs)
    before = float(eager.calibrator_bias[2])
    eager.calibrator_bias[2] = before + 1.0
    moved = torch_scores(eager, inputs)
    eager.calibrator_bias[2] = before

    def logit(p):
        return np.log(p / (1 - p))

    np.testing.assert_allclose(logit(moved) - logit(score), 1.0, atol=1e-3)


def test_the_file_holds_nothing_of_the_machine_that_exported(exported):
    """No source path, no stack trace."""
    _, entry, folder = exported
    content = (folder / entry.file).read_bytes()

    assert b".py" not in content
    assert str(Path(__file__).parents[3]).encode() not in content


def test_a_wrong_graph_is_refused():
    """Parity fails loudly when scores are off, of a wrong shape or no probabilities."""
    eager, sampler = scoring_graph("mmoe", SCHEMA), row_sampler(SCHEMA)

    with pytest.raises(ParityError, match=r"domain index 0: \|dp\| .* at most 1e-05 is allowed"):
        check_parity(eager, lambda i: torch_scores(eager, i) * 0.99, sampler, domains=range(4))
    with pytest.raises(ParityError, match=r"0 rows: scores are float32 of shape \(1,\)"):
        check_parity(eager, lambda i: np.zeros(1, np.float32), sampler, domains=range(4))
    with pytest.raises(ParityError, match="not a probability"):
        check_parity(eager, lambda i: torch_scores(eager, i) + 1, sampler, domains=range(4))
