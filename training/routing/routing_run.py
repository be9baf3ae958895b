"""Routing in a training run: the hook of the loop, and the `routing` part of `metrics.json`.

Reads the model part of a config and the validation rows. Invariant: figures are of the best weights, and what
masks of experts cost is the difference of two scorings of the same rows.

    routing
      top_k, num_experts, num_shared, information, prior, domain_entropy, expert_entropy, warmup_steps
      load      of all rows, (E,)
      allowed   total_auc, domain_auc, gauc, logloss with these sets less without; changed_ratio
      domains: {name: load, mass, agreement, modal, modal_weights, allowed, changed_ratio, auc_change,
                static_auc_change}

Source: CESAA, arXiv 2411.06826; the sets and what they cost are ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.config import RunConfig
from training.data.dataset import RowReader
from training.data.prepared import PreparedDataset
from training.engine.evaluate import Predictions
from training.engine.finish import measured
from training.engine.optim import OptimiserSet
from training.engine.platt import sigmoid
from training.engine.score import predict_split
from training.metrics import Evaluation
from training.models.base import CtrModel
from training.models.config import CesaaConfig
from training.routing.errors import RoutingError
from training.routing.fixed import FixedRouting
from training.routing.measure import DomainRouting, RowRouting, by_domain, information, read_routing
from training.routing.warmup import InformationWarmup, cesaa_of, warmup_steps
from training.track import RunLog, Watcher

SPLIT = "valid"
COMPARED = ("total_auc", "domain_auc", "gauc", "logloss")
STATIC_AGREEMENT = 0.98
"""Share of a domain's rows with the modal set from which a graph with that set alone is looked at."""


class RoutingRun:
    """Makes the hook of one model and measures what it learned."""

    def __init__(self, config: RunConfig, prepared: PreparedDataset) -> None:
        """Check that the loss will count.

        Args:
            config: Of the run; its model is `cesaa`.
            prepared: Whose rows it is trained and judged on.

        Raises:
            RoutingError: Another model, or a warm-up as long as training.
        """
        if not isinstance(config.model, CesaaConfig):
            raise RoutingError(f"a model of type {config.model.type} has no routing; cesaa has")
        self._settings, self._config, self._prepared = config.model, config, prepared
        batches = RowReader(prepared, "train").num_batches(config.training.batch_size)
        self._warmup = warmup_steps(
            self._settings.mi_warmup_steps if self._settings.mi_weight else None,
            batches_per_epoch=batches,
            epochs=config.training.epochs,
        )
        self._model: CtrModel | None = None

    def make_hook(
        self,
        model: CtrModel,
        optimisers: OptimiserSet,  # noqa: ARG002 (one weight changes, none of theirs)
        log: RunLog,
        watcher: Watcher,
    ) -> InformationWarmup:
        """The hook that turns the information loss on."""
        self._model = model
        return InformationWarmup(
            model, weight=self._settings.mi_weight, warmup=self._warmup, log=log, watcher=watcher
        )

    def on_trained(self) -> Mapping[str, Any]:
        """Measure the best weights; gives what `metrics.json` says of them.

        Raises:
            RoutingError: No hook was made.
        """
        if self._model is None:
            raise RoutingError("no model was trained, so there is no routing to measure")
        told = measure_routing(
            self._model,
            self._prepared,
            settings=self._settings,
            batch_size=self._config.training.eval_batch_size,
        )
        return {"routing": told | {"warmup_steps": self._warmup}}


def measure_routing(
    model: CtrModel, prepared: PreparedDataset, *, settings: CesaaConfig, batch_size: int
) -> dict[str, Any]:
    """The `routing` part of `metrics.json`; leaves the model as it is."""
    device = next(model.parameters()).device
    rows = read_routing(model, prepared, SPLIT, batch_size=batch_size, device=device)
    domains = by_domain(rows, mass=settings.routing_mass)

    def scored() -> Predictions:
        return predict_split(model, prepared, SPLIT, batch_size=batch_size, device=device)

    gate = cesaa_of(model).gate
    before, plain = gate.allowed_experts, _judged(scored(), prepared)
    gate.allow([domain.allowed for domain in domains])
    try:
        masked = _judged(scored(), prepared)
    finally:
        gate.allow(before)
    static = [d for d in range(len(domains) - 1) if domains[d].agreement >= STATIC_AGREEMENT]
    fixed = None
    if static:
        with FixedRouting(model, {d: (domains[d].modal, domains[d].modal_weights) for d in static}):
            fixed = _judged(scored(), prepared)
    names = prepared.schema.domains
    joint = rows.probability_sums[:-1]
    return {
        "top_k": settings.top_k,
        "num_experts": rows.num_experts,
        "num_shared": int(settings.shared_expert),
        "rows": len(rows.domain),
        "prior": settings.mi_prior,
        "information": information(rows, prior=settings.mi_prior),
        "domain_entropy": _entropy(joint.sum(axis=1)),
        "expert_entropy": _entropy(joint.sum(axis=0)),
        "routing_mass": settings.routing_mass,
        "load": _rounded(rows.sums(np.ones_like(rows.weights)).sum(axis=0) / rows.experts.size),
        "allowed": {
            **{name: _change(getattr(masked, name), getattr(plain, name)) for name in COMPARED},
            "changed_ratio": _changed_ratio(rows, domains),
        },
        "domains": {
            name: _domain(
                domains[d],
                auc_change=_change(masked.domains[name].auc, plain.domains[name].auc),
                static_auc_change=None
                if fixed is None or d not in static
                else _change(fixed.domains[name].auc, plain.domains[name].auc),
            )
            for d, name in enumerate(names)
        },
    }


def _judged(rows: Predictions, prepared: PreparedDataset) -> Evaluation:
    return measured(rows, sigmoid(rows.logit), prepared)


def _domain(
    found: DomainRouting, *, auc_change: float | None, static_auc_change: float | None
) -> dict[str, Any]:
    return {
        "rows": found.rows,
        "load": _rounded(found.load),
        "mass": _rounded(found.mass),
        "agreement": _finite(found.agreement),
        "modal": list(found.modal),
        "modal_weights": list(found.modal_weights),
        "allowed": list(found.allowed),
        "changed_ratio": _finite(found.changed_ratio),
        "auc_change": auc_change,
        "static_auc_change": static_auc_change,
    }


def _changed_ratio(rows: RowRouting, domains: tuple[DomainRouting, ...]) -> float:
    changed = sum(d.rows * d.changed_ratio for d in domains if d.rows)
    return changed / len(rows.domain)


def _entropy(counts: NDArray[np.float64]) -> float:
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())


def _change(after: float, before: float) -> float | None:
    return _finite(after - before)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _rounded(values: NDArray[np.float64]) -> list[float]:
    return [round(float(value), 6) for value in values]
