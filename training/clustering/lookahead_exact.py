"""Mode exact: losses after every step of a plan, from one gradient per domain.

Reads a model and rows by domain; gives `LookaheadLosses`. A step is linear in the domains' gradients, so
Theta_A = Theta - eta mean_{u in A} d_u with d_u = P g_u. The input layer is affine in its parameters, so the
embedded evaluation rows after a step are X - eta mean_u dX_u with dX_u computed once per u; the ranker runs
under vmap over models. Invariant: equal sets are measured once, and nothing is written to the model.

Letters: D domains, n models, N evaluation rows, P dense parameters, I embedded width.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, vmap

from training.clustering.affinity import LookaheadLosses, LookaheadPlan
from training.clustering.arrays import BoolArray, FloatArray, IntArray
from training.clustering.lookahead_model import (
    EmbeddedRows,
    LabelledRows,
    ParameterMap,
    ServedRows,
    domain_means,
    flatten,
    row_losses,
    slice_rows,
    unflatten,
)
from training.clustering.lookahead_step import DomainGradient
from training.models.base import CtrModel


class PlanSets:
    """The different sets of a plan and where each table's rows find theirs.

    Attributes:
        members: (n, D) boolean, all rows different; the empty set is among them.
    """

    def __init__(self, plan: LookaheadPlan) -> None:
        D = plan.num_domains
        parts = (
            np.zeros((1, D), dtype=bool),
            np.eye(D, dtype=bool),
            plan.companions,
            plan.others,
            plan.treatments,
        )
        members, place = np.unique(np.concatenate(parts), axis=0, return_inverse=True)
        self.members: BoolArray = members
        self._places: list[IntArray] = np.split(place.ravel(), np.cumsum([len(p) for p in parts])[:-1])

    def deliver(self, losses: FloatArray) -> LookaheadLosses:
        """Spread losses (n, D) of the different sets over the plan's tables."""
        base, single, companions, others, treatments = (losses[place] for place in self._places)
        return LookaheadLosses(base[0], single, companions, others, treatments)


def mean_weights(members: BoolArray) -> FloatArray:
    """(n, D) weights that average the members of each set; zeros for the empty one."""
    weights: FloatArray = members / np.maximum(members.sum(axis=1, keepdims=True), 1)
    return weights


def exact_losses(
    model: CtrModel,
    served: ServedRows,
    parameters: ParameterMap,
    directions: Sequence[DomainGradient],
    rows: LabelledRows,
    sets: PlanSets,
    *,
    step_size: float,
    chunk_models: int = 16,
    chunk_rows: int = 256,
    max_numbers: int = 1 << 26,
) -> LookaheadLosses:
    """Measure a plan.

    Args:
        model: In evaluation mode.
        served: Its ranker.
        parameters: Its trainable parameters.
        directions: d_u of each domain.
        rows: E_v of each domain.
        sets: Of the plan.
        step_size: eta.
        chunk_models: Models that run side by side.
        chunk_rows: Rows, about, that a chunk of models scores at once.
        max_numbers: Bound on the numbers of dX held at once; decides how many rows a block has.
    """
    weights = torch.from_numpy(step_size * mean_weights(sets.members)).to(directions[0].dense)
    losses = np.empty((len(weights), rows.num_domains))
    width = model.inputs.request_width + model.inputs.row_width
    block_rows = max(1, max_numbers // (len(directions) * max(1, width)))
    with torch.no_grad():
        deltas = InputDeltas(model, parameters, directions)
        ranker = PerturbedRanker(served, parameters, directions, request_width=model.inputs.request_width)
        for first, last in _blocks(rows.sizes, block_rows):
            block = rows.span(first, last)
            embedded, moved = deltas(block)
            for start in range(0, len(weights), chunk_models):
                some = slice(start, start + chunk_models)
                losses[some, first:last] = ranker.losses(
                    weights[some], block, embedded, moved, chunk_rows=chunk_rows
                )
    return sets.deliver(losses)


def _blocks(sizes: IntArray, max_rows: int) -> list[tuple[int, int]]:
    """Consecutive domains of at most `max_rows` rows together, at least one each: (first, last + 1)."""
    spans, first, held = [], 0, 0
    for v, size in enumerate(sizes.tolist()):
        if held and held + size > max_rows:
            spans.append((first, v))
            first, held = v, 0
        held += size
    return [*spans, (first, len(sizes))]


class InputDeltas:
    """Embedded rows and how each domain's direction moves them, per unit of step."""

    def __init__(
        self, model: CtrModel, parameters: ParameterMap, directions: Sequence[DomainGradient]
    ) -> None:
        self._embed = EmbeddedRows(model)
        self._parameters = parameters
        self._directions = directions
        # One copy of the tables, all 0 but for the rows of the domain at hand.
        self._scratch = {name: torch.zeros_like(table) for name, table in parameters.tables.items()}
        self._zeros = {name: torch.zeros_like(p) for name, p in parameters.inputs.items()}

    def __call__(self, block: LabelledRows) -> tuple[Tensor, Tensor]:
        """X (N, I) and dX (D, N, I) of a block."""
        embedded = self._embed(block.inputs)
        still = functional_call(self._embed, self._scratch | self._zeros, (block.inputs,))
        moved = embedded.new_empty(len(self._directions), *embedded.shape)
        for u, direction in enumerate(self._directions):
            torch.sub(self._moved(direction, block), still, out=moved[u])
        return embedded, moved

    def _moved(self, direction: DomainGradient, block: LabelledRows) -> Tensor:
        own = unflatten(direction.dense[: self._parameters.num_inputs], self._parameters.inputs)
        for name, touched in direction.tables.items():
            self._scratch[name][touched.rows] = touched.values
        out: Tensor = functional_call(self._embed, self._scratch | own, (block.inputs,))
        for name, touched in direction.tables.items():
            self._scratch[name][touched.rows] = 0
        return out


class PerturbedRanker:
    """The ranker under many steps at once."""

    def __init__(
        self,
        served: ServedRows,
        parameters: ParameterMap,
        directions: Sequence[DomainGradient],
        *,
        request_width: int,
    ) -> None:
        self._served = served
        self._parameters = parameters.ranker
        self._base = flatten(parameters.ranker)
        self._directions = torch.stack([d.dense[parameters.num_inputs :] for d in directions])
        self._request_width = request_width

    def losses(
        self,
        weights: Tensor,
        block: LabelledRows,
        embedded: Tensor,
        moved: Tensor,
        *,
        chunk_rows: int,
    ) -> FloatArray:
        """Mean loss of each domain under each model.

        Args:
            weights: (n, D) eta times the share of each domain in the step.
            block: N rows.
            embedded: (N, I).
            moved: (D, N, I).
            chunk_rows: Rows per call.

        Returns:
            (n, domains of the block).
        """
        stepped = unflatten(self._base - weights @ self._directions, self._parameters)
        parts = [
            self._row_losses(
                stepped,
                weights,
                embedded[at : at + chunk_rows],
                moved[:, at : at + chunk_rows],
                slice_rows(block.inputs, slice(at, at + chunk_rows)).domain,
                block.labels[at : at + chunk_rows],
            )
            for at in range(0, len(embedded), chunk_rows)
        ]
        means: FloatArray = domain_means(torch.cat(parts, dim=1), block.sizes).cpu().numpy()
        return means

    def _row_losses(
        self,
        stepped: dict[str, Tensor],
        weights: Tensor,
        embedded: Tensor,
        moved: Tensor,
        domain: Tensor,
        labels: Tensor,
    ) -> Tensor:
        """(n, N) loss of each row."""
        (N, width), n = embedded.shape, len(weights)
        inputs = torch.addmm(embedded.reshape(1, N * width), weights, moved.flatten(1), alpha=-1)
        request, row = torch.split(
            inputs.reshape(n, N, width), [self._request_width, width - self._request_width], dim=2
        )

        def score(own: dict[str, Tensor], at_request: Tensor, at_row: Tensor) -> Tensor:
            out: Tensor = functional_call(self._served, own, (at_request, at_row, domain))
            return out

        logits = vmap(score)(stepped, request, row)
        return row_losses(logits, labels, self._served.serving)
