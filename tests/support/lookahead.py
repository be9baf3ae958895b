"""Small models and rows for lookaheads."""

from __future__ import annotations

import numpy as np
import torch

from service.contract.schema import FeatureSchema
from tests.support.models import MODELS, random_batch
from tests.support.schemas import full_schema
from training.clustering.affinity import (
    LookaheadLosses,
    LookaheadPlan,
)
from training.clustering.lookahead import LookaheadRows, measure
from training.clustering.lookahead_cost import LookaheadMode
from training.clustering.lookahead_model import LabelledRows, Serving
from training.models.base import CtrModel, TensorBatch
from training.models.build import build_model

NUM_DOMAINS = 5
SCHEMA = FeatureSchema(
    **{
        **{name: getattr(full_schema(), name) for name in ("name", "encoders", "features", "pairs")},
        "domains": tuple(f"d{i}" for i in range(NUM_DOMAINS)),
    }
)
PLAN = LookaheadPlan(
    companions=np.array(
        [[1, 0, 1, 0, 0], [0, 1, 0, 0, 0], [1, 0, 1, 0, 0], [0, 1, 1, 1, 0], [1, 0, 0, 1, 1]], dtype=bool
    ),
    treatments=np.array([[1, 1, 0, 0, 0], [0, 0, 1, 1, 1], [1, 0, 1, 0, 0], [0, 1, 0, 0, 1]], dtype=bool),
)


def make_model(name: str = "mmoe_clusters", *, seed: int = 0) -> CtrModel:
    """A float64 model whose weights and running statistics are not the initial ones, in training mode."""
    torch.manual_seed(seed)
    clusters = [d % 2 for d in range(NUM_DOMAINS + 1)] if name.endswith("clusters") else None
    model = build_model(MODELS[name], SCHEMA, clusters)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for _ in range(3):
            model(random_batch(SCHEMA, 32, seed=seed))
    return model.double()


def labelled(sizes: tuple[int, ...], *, seed: int) -> LabelledRows:
    """Random rows by domain, numbers as float64."""
    raw = random_batch(SCHEMA, sum(sizes), seed=seed)
    values = {k: v.double() if v.is_floating_point() else v for k, v in vars(raw).items()}
    values["domain"] = torch.from_numpy(np.repeat(np.arange(NUM_DOMAINS), sizes))
    labels = torch.from_numpy(np.random.default_rng(seed).integers(0, 2, sum(sizes))).double()
    return LabelledRows(TensorBatch(**values), labels, np.array(sizes))


ROWS = LookaheadRows(labelled((12, 7, 9, 12, 3), seed=1), labelled((6, 8, 5, 9, 4), seed=2))


def losses(
    model: CtrModel, mode: LookaheadMode, serving: Serving = "own", step_size: float = 0.3, **options
) -> LookaheadLosses:
    """Losses after every step of `PLAN`."""
    out = measure(
        model, ROWS, PLAN, serving=serving, step_size=step_size, interval_rows=1000, mode=mode, **options
    ).delivered
    assert isinstance(out, LookaheadLosses)
    return out
