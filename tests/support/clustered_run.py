"""A run with one model and two clusters, as export reads it, without data."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np

from export.run_folder import Part, RunFolder
from service.contract.manifest import Cluster, Clustering
from tests.support.models import trained_model
from tests.support.schemas import full_schema
from training.engine.calibrate import GLOBAL_ONLY, Calibrator
from training.models.aread import Aread
from training.models.mask import random_mask

SCHEMA = full_schema()
TOGETHER = Clustering(
    version="end_to_end",
    method="cdc",
    num_updates=1,
    assignment="0" * 64,
    clusters=(
        Cluster(domains=("home", "cart"), sources=("home",)),
        Cluster(domains=("search",), sources=("search",)),
    ),
    default_cluster=1,
)


def clustered(name: str, *, densities: tuple[float, ...] = (0.1, 0.1, 0.1)) -> RunFolder:
    """A run with one model and two clusters: home and cart; search and the unknown domain."""
    model = trained_model(name, SCHEMA)
    if isinstance(model.ranker, Aread):
        rng = np.random.default_rng(4)
        masks = {d: random_mask(model.ranker.shape, share, rng) for d, share in enumerate(densities)}
        model.ranker.set_masks(masks)
    size = SCHEMA.num_domains + 1
    lines = Calibrator(SCHEMA.domains, scale=np.ones(size), bias=np.zeros(size), strength=GLOBAL_ONLY)
    whole = Part("whole", "whole", model, lines, tuple(range(size)))
    return RunFolder(
        path=Path("somewhere/run"),
        parts=(whole,),
        schema=SCHEMA,
        prepared=cast("Any", None),
        metrics={"model": name},
        config_text="",
        clustering=TOGETHER,
    )
