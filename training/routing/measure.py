"""How rows of each domain choose their experts, on a sample large enough to trust.

Reads a split with a trained model; gives per domain load, routing mass, agreement and the set of experts that
nearly all of its routing goes to. Writes nothing. Invariant: everything is of the clean gate, in evaluation
mode, with every expert allowed that the model allows.

    load         share of a domain's N k choices that go to an expert
    mass         mean over its rows of G, the weight of an expert in the row's sum
    agreement    share of its rows that choose its modal set, the k experts that most rows choose
    allowed      the smallest set of experts that holds a given share of its mass, at least k

Source: CESAA, arXiv 2411.06826; a batch's I(E;D) is biased upward, so it is read here. The sets are ours.
Letters: n rows, D domains, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from training.data.dataset import RowReader
from training.data.prepared import PreparedDataset
from training.engine.batch import model_inputs
from training.engine.errors import EngineError
from training.models.base import CtrModel
from training.models.routing_information import Prior, mutual_information
from training.routing.warmup import cesaa_of

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class RowRouting:
    """Choices of n rows.

    Attributes:
        domain: (n,) int64, D for unknown.
        experts: (n, k) int64, rising within a row.
        weights: (n, k) float64 of these.
        probability_sums: (D + 1, E) float64, sums over a domain's rows of the softmax over all experts.
    """

    domain: IntArray
    experts: IntArray
    weights: FloatArray
    probability_sums: FloatArray

    @property
    def num_domains(self) -> int:
        """D."""
        return len(self.probability_sums) - 1

    @property
    def num_experts(self) -> int:
        """E."""
        return int(self.probability_sums.shape[1])

    def sums(self, values: FloatArray) -> FloatArray:
        """(D + 1, E) sums of values (n, k) of the choices, by domain and expert."""
        place = self.domain[:, None] * self.num_experts + self.experts
        size = (self.num_domains + 1) * self.num_experts
        found: FloatArray = np.bincount(place.ravel(), weights=values.ravel(), minlength=size).astype(
            np.float64
        )
        return found.reshape(self.num_domains + 1, self.num_experts)


@dataclass(frozen=True, eq=False)
class DomainRouting:
    """How one domain's rows choose.

    Attributes:
        rows: Number of them.
        load, mass: (E,) float64, each sums to 1 where there are rows.
        agreement: Share of rows with the modal set; nan without rows.
        modal: (k,) experts of the modal set, rising; empty without rows.
        modal_weights: (k,) their mean weights over the rows that chose this very set.
        allowed: Experts that hold the wanted mass, rising; all of them without rows.
        changed_ratio: Share of rows that wanted an expert outside of `allowed`; nan without rows.
    """

    rows: int
    load: FloatArray
    mass: FloatArray
    agreement: float
    modal: tuple[int, ...]
    modal_weights: tuple[float, ...]
    allowed: tuple[int, ...]
    changed_ratio: float


def read_routing(
    model: CtrModel, prepared: PreparedDataset, split: str, *, batch_size: int, device: torch.device
) -> RowRouting:
    """Let all rows of a split choose.

    Raises:
        RoutingError: The model's rows do not choose among experts.
        EngineError: No rows.
    """
    gate = cesaa_of(model).gate
    size = gate.get_buffer("allowed").shape
    sums = torch.zeros(size, dtype=torch.float64)
    parts: list[tuple[IntArray, IntArray, FloatArray]] = []
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for batch in RowReader(prepared, split).batches(batch_size):
                sides, _ = model.sides(model_inputs(batch, device))
                routing = gate(sides)
                sums.index_add_(0, sides.domain.cpu(), routing.probabilities.double().cpu())
                experts, order = routing.experts.sort(dim=1)
                weights = routing.weights.gather(1, order)
                parts.append(
                    (sides.domain.cpu().numpy(), experts.cpu().numpy(), weights.double().cpu().numpy())
                )
    finally:
        model.train(was_training)
    if not parts:
        raise EngineError(f"split '{split}' has no rows to read routing of")
    domain, experts_of, weights_of = (np.concatenate(column) for column in zip(*parts, strict=True))
    return RowRouting(domain, experts_of, weights_of, sums.numpy())


def by_domain(rows: RowRouting, *, mass: float) -> tuple[DomainRouting, ...]:
    """What each of D + 1 domains does, the unknown one last.

    Args:
        rows: Choices.
        mass: Share of a domain's routing that `allowed` must hold.
    """
    loads = rows.sums(np.ones_like(rows.weights))
    masses = rows.sums(rows.weights)
    return tuple(
        _domain(rows, d, load=loads[d], routed=masses[d], wanted=mass) for d in range(rows.num_domains + 1)
    )


def information(rows: RowRouting, *, prior: Prior) -> float:
    """I(E;D) in nats over all rows of known domains."""
    counts = np.bincount(rows.domain, minlength=rows.num_domains + 1)[: rows.num_domains]
    sums = torch.from_numpy(rows.probability_sums[: rows.num_domains])
    if prior == "batch":
        return float(mutual_information(sums / max(int(counts.sum()), 1)))
    present = max(int((counts > 0).sum()), 1)
    return float(mutual_information(sums / torch.from_numpy(np.maximum(counts, 1))[:, None] / present))


def smallest_set(mass: FloatArray, *, wanted: float, least: int) -> tuple[int, ...]:
    """Fewest experts, at least `least`, whose shares sum to at least `wanted` of all; rising numbers.

    Args:
        mass: (E,) not negative.
        wanted: Share in (0, 1].
        least: Experts at least.
    """
    order = np.argsort(-mass, kind="stable")
    held = np.cumsum(mass[order]) / max(mass.sum(), 1e-300)
    enough = int(np.searchsorted(held, wanted - 1e-12)) + 1
    return tuple(sorted(order[: min(max(enough, least), len(mass))].tolist()))


def _domain(
    rows: RowRouting, domain: int, *, load: FloatArray, routed: FloatArray, wanted: float
) -> DomainRouting:
    mine = rows.domain == domain
    experts, weights = rows.experts[mine], rows.weights[mine]
    if not len(experts):
        nan = float("nan")
        return DomainRouting(0, load, routed, nan, (), (), tuple(range(rows.num_experts)), nan)
    sets, inverse, counts = np.unique(experts, axis=0, return_inverse=True, return_counts=True)
    top = int(counts.argmax())
    chose = inverse.reshape(-1) == top
    allowed = smallest_set(routed, wanted=wanted, least=experts.shape[1])
    return DomainRouting(
        rows=len(experts),
        load=load / load.sum(),
        mass=routed / routed.sum(),
        agreement=float(chose.mean()),
        modal=tuple(sets[top].tolist()),
        modal_weights=tuple(weights[chose].mean(axis=0).tolist()),
        allowed=allowed,
        changed_ratio=float((~np.isin(experts, allowed).all(axis=1)).mean()),
    )
