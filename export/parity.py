"""Parity: the exported graph gives the probabilities of the trained model, domain by domain.

Checked for every domain and the unknown one at batch sizes 0, 1, 2, 7 and 256, and for several
requests in one call. A bundle is not published when one probability is off by more than the limit. Where rows
choose among experts, rows whose choice is nearly a tie do not count: two runtimes may choose differently.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from export.errors import ParityError
from export.graph import ScoringGraph
from export.rows import GraphArrays, RowSampler

BATCH_SIZES = (0, 1, 2, 7, 256)
MAX_ERROR = 1e-5
REQUESTS_AT_ONCE = 3
LEAST_MARGIN = 1e-6
"""Between the gate logits of the last expert chosen and the best one left."""

Scorer = Callable[[GraphArrays], NDArray[np.float32]]


@dataclass(frozen=True)
class ParityReport:
    """What the check saw.

    Attributes:
        max_error: Largest |dp| over all rows.
        domain_errors: Largest |dp| by domain index.
        num_rows: Rows compared.
    """

    max_error: float
    domain_errors: dict[int, float]
    num_rows: int


def torch_scores(graph: ScoringGraph, inputs: GraphArrays) -> NDArray[np.float32]:
    """Reference probabilities (N,) of the eager graph."""
    with torch.inference_mode():
        found = graph(*(torch.from_numpy(a) for a in inputs.values()))
    scores: NDArray[np.float32] = (found[0] if isinstance(found, tuple) else found).numpy()
    return scores


def clear_choice(graph: ScoringGraph, inputs: GraphArrays) -> NDArray[np.bool_]:
    """(N,) whether a row's choice of experts is no tie; true where rows choose none."""
    with torch.inference_mode():
        margins = graph.choice_margins([torch.from_numpy(a) for a in inputs.values()])
    if margins is None:
        return np.ones(len(inputs["request_index"]), dtype=np.bool_)
    clear: NDArray[np.bool_] = (margins >= LEAST_MARGIN).numpy()
    return clear


def require_clear_choice(graph: ScoringGraph, golden: GraphArrays) -> None:
    """Refuse golden rows of which another machine could rightly give other scores.

    Raises:
        ParityError: The choice of experts of a row is nearly a tie.
    """
    clear = clear_choice(graph, golden)
    if not clear.all():
        raise ParityError(
            f"golden row {int(np.flatnonzero(~clear)[0])} chooses between experts whose gates differ by less "
            f"than {LEAST_MARGIN:.0e}; which one it gets is undefined"
        )


def check_parity(
    graph: ScoringGraph,
    scorer: Scorer,
    sampler: RowSampler,
    *,
    domains: Sequence[int],
    limit: float = MAX_ERROR,
) -> ParityReport:
    """Compare a scorer with the eager graph.

    Args:
        graph: Reference.
        scorer: The exported graph: inputs by name to probabilities (N,).
        sampler: Draws inputs.
        domains: Domain indices to check, D for the unknown domain.
        limit: Largest |dp| that passes.

    Raises:
        ParityError: A domain exceeds the limit, or a score is missing or not a probability.
    """
    errors = dict.fromkeys(domains, 0.0)
    num_rows = 0
    for domain in domains:
        draws = [sampler.draw(domain=domain, num_rows=size) for size in BATCH_SIZES]
        draws.append(sampler.draw(domain=domain, num_rows=BATCH_SIZES[-2], num_requests=REQUESTS_AT_ONCE))
        for inputs in draws:
            expected, found = torch_scores(graph, inputs), scorer(inputs)
            size = len(inputs["request_index"])
            if found.shape != expected.shape or found.dtype != np.float32:
                raise ParityError(
                    f"domain index {domain}, {size} rows: scores are {found.dtype} of shape {found.shape}"
                )
            if not np.all((found >= 0) & (found <= 1)):
                raise ParityError(f"domain index {domain}, {size} rows: a score is not a probability")
            if size:
                gap = np.abs(found - expected)[clear_choice(graph, inputs)]
                errors[domain] = max(errors[domain], float(gap.max(initial=0.0)))
            num_rows += size
        if errors[domain] > limit:
            raise ParityError(
                f"domain index {domain}: |dp| {errors[domain]:.2e} between torch and the exported graph, "
                f"at most {limit:.0e} is allowed"
            )
    return ParityReport(max(errors.values(), default=0.0), errors, num_rows)
