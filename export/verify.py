"""Parity of a published bundle on this machine, domain by domain and at several batch sizes.

Reads golden rows, whose scores torch gave at export (or, in a lower precision, the graph itself). Invariant:
what passes gives each golden row its score alone, among the rows of its domain, among all, and in any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.errors import ParityError
from export.parity import MAX_ERROR
from service.contract.bundle import GOLDEN_FILE, Bundle
from service.contract.manifest import Graph
from service.scoring.golden import GoldenRows, check_golden, read_golden
from service.scoring.predictor import Predictor

Inputs = dict[str, NDArray[Any]]
AT_ROWS = ("item", "request_index")


@dataclass(frozen=True)
class GraphParity:
    """One graph on this machine.

    Attributes:
        form, precision: Of the graph.
        max_error: Largest |dp| from the golden scores over all batches.
        domain_errors: The same by domain index; the graph's only domain where it reads none.
        num_batches: Compared.
    """

    form: str
    precision: str
    max_error: float
    domain_errors: dict[int, float]
    num_batches: int


def verify_graphs(bundle: Bundle) -> dict[str, GraphParity]:
    """Replay the golden rows of every graph in every batching.

    Raises:
        GoldenError: A score of the whole differs by more than the limit.
        ParityError: A row scores differently in another batch; the message names graph and domain.
    """
    golden = read_golden(bundle.file(GOLDEN_FILE))
    graphs = bundle.manifest.graphs
    predictors = {key: Predictor(bundle.file(graph.file), graph) for key, graph in graphs.items()}
    errors = check_golden(predictors, golden, tolerance=MAX_ERROR)
    return {
        key: _graph_parity(key, bundle, graph, predictors[key], golden[key], errors[key])
        for key, graph in graphs.items()
    }


def _graph_parity(
    key: str, bundle: Bundle, graph: Graph, predictor: Predictor, golden: GoldenRows, error: float
) -> GraphParity:
    domains = domain_of_rows(key, bundle, graph, golden)
    errors: dict[int, float] = {}
    num_batches = 1
    for d in dict.fromkeys(domains.tolist()):
        rows = np.flatnonzero(domains == d)
        order = np.random.default_rng(int(d)).permutation(rows)
        for batch in ([row] for row in rows.tolist()):
            errors[d] = max(errors.get(d, 0.0), _error(predictor, graph, golden, batch))
            num_batches += 1
        for batch in (rows.tolist(), order.tolist()):
            errors[d] = max(errors[d], _error(predictor, graph, golden, batch))
            num_batches += 1
        if errors[d] > MAX_ERROR:
            raise ParityError(
                f"graph '{key}', domain index {d}: a row scores {errors[d]:.2e} differently in another "
                f"batch, at most {MAX_ERROR:.0e} is allowed"
            )
    return GraphParity(graph.form, graph.precision, max(error, *errors.values()), errors, num_batches)


def domain_of_rows(key: str, bundle: Bundle, graph: Graph, golden: GoldenRows) -> NDArray[np.int64]:
    """Domain index (N,) of each golden row."""
    name = _input_named(graph, "domain")
    index = _input_named(graph, "request_index")
    if name is None or index is None:
        own = [entry.index for entry in bundle.manifest.domains.values() if entry.graph == key]
        only = own[0] if own else bundle.schema.num_domains
        return np.full(len(golden.expected), only, np.int64)
    domains: NDArray[np.int64] = golden.inputs[name][golden.inputs[index]]
    return domains


def _input_named(graph: Graph, source: str) -> str | None:
    return next((spec.name for spec in graph.inputs if spec.source == source), None)


def _error(predictor: Predictor, graph: Graph, golden: GoldenRows, rows: Sequence[int]) -> float:
    scores = predictor.run(rows_of(graph, golden.inputs, rows))
    return float(np.abs(scores.astype(np.float64) - golden.expected[list(rows)]).max())


def rows_of(graph: Graph, inputs: Any, rows: Sequence[int]) -> Inputs:
    """Some candidates of a call, with the requests that they belong to and no others.

    Args:
        graph: Says which inputs have a row per candidate.
        inputs: Of the call, by name.
        rows: Places of the candidates, in the order wanted.
    """
    chosen = list(rows)
    index_name = _input_named(graph, "request_index")
    requests = np.zeros(1, np.int64)
    own: Inputs = {}
    if index_name is not None:
        requests, place = np.unique(inputs[index_name][chosen], return_inverse=True)
        own[index_name] = place.astype(np.int64).reshape(-1)
    for spec in graph.inputs:
        if spec.name != index_name:
            at_row = spec.source.startswith(AT_ROWS)
            own[spec.name] = np.ascontiguousarray(inputs[spec.name][chosen if at_row else requests])
    return own
