"""One model per cluster: trained on the rows of S_k, validated, stopped and tested on those of T_k.

    OUT/cluster-0/ ...       a run folder per cluster; its config is the run's, its prepared/ a link
    OUT/cluster-0/cluster.json   {"cluster", "domains" (T_k), "sources" (S_k), "serves_unknown"}
    OUT/calibration.json     every domain's line from the calibrator of its cluster
    OUT/predictions/*.parquet   rows of all clusters in the reader's order
    OUT/metrics.json         as of one model, with `separate_models` true and the parts under `clusters`

Invariant: every row of a split is scored by exactly one model. Total AUC pools logits of separate models,
which nothing made comparable but calibration; the paper leaves it undefined.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.clustering.assignment import ClusterAssignment
from training.config import RunConfig
from training.data.prepared import PreparedDataset
from training.engine.artefacts import (
    RunFolder,
    load_json,
    load_model,
    save_json,
    save_predictions,
)
from training.engine.calibrate import Calibrator
from training.engine.companion import companion
from training.engine.distributed import ALONE, RankGroup
from training.engine.evaluate import Predictions
from training.engine.files import write_text
from training.engine.finish import EVALUATED_SPLITS, measured
from training.engine.platt import sigmoid
from training.engine.row_view import RowView, rows_of_domains, view
from training.engine.run import (
    RunResult,
    headline,
    open_log,
    run_identity,
    train_model,
)
from training.engine.score import predict_split
from training.models.config import wants_clusters
from training.track import Quiet, Watcher


def train_split(
    config: RunConfig,
    prepared: PreparedDataset,
    out: Path,
    assignment: ClusterAssignment,
    *,
    resume: bool,
    watcher: Watcher,
    group: RankGroup = ALONE,
) -> RunResult:
    """Train all models one after the other and join what they say.

    Raises:
        RunError: A cluster has no rows in a split, or the folder holds another run.
        EngineError: Training of a model failed.
    """
    folder = RunFolder(out)
    group.on_first(lambda: _begin(folder, config, prepared, assignment))
    identity = run_identity(config, prepared) | {"clusters": assignment.digest}
    results = []
    with open_log(folder.log, keep=False, group=group) as log:
        log.event("start", name=config.name, **identity)
        for k in range(assignment.num_clusters):
            part = folder.part(k)
            watcher.say(f"cluster {k} of {assignment.num_clusters}: {', '.join(assignment.targets[k])}")
            rows = cluster_rows(part, prepared)
            beside = companion(config, rows, part.root)
            results.append(
                train_model(
                    config,
                    rows,
                    part.root,
                    resume=resume and part.checkpoint.exists(),
                    watcher=watcher,
                    towers=[0] * (prepared.schema.num_domains + 1) if wants_clusters(config.model) else None,
                    make_hook=None if beside is None else beside.make_hook,
                    identity={"clusters": assignment.digest, "cluster": str(k)},
                    on_trained=None if beside is None else beside.on_trained,
                    group=group,
                )
            )
            log.event("cluster", cluster=k, **headline(results[-1].metrics))
        parts = [result.metrics for result in results]
        metrics = group.on_first(lambda: _joined(config, prepared, folder, parts, assignment))
        log.event("metrics", **headline(metrics))
    return RunResult(folder, metrics)


def _begin(
    folder: RunFolder, config: RunConfig, prepared: PreparedDataset, assignment: ClusterAssignment
) -> None:
    folder.metrics.unlink(missing_ok=True)
    write_text(folder.config, config.to_yaml())
    write_text(folder.schema, prepared.schema.model_dump_json(indent=2) + "\n")
    for k in range(assignment.num_clusters):
        _describe(folder.part(k), prepared, assignment, k)


def cluster_rows(part: RunFolder, prepared: PreparedDataset) -> RowView:
    """The rows that the model of one cluster is trained and judged on."""
    told = load_json(part.cluster)
    number = {name: d for d, name in enumerate(prepared.schema.domains)}
    unknown = {prepared.schema.num_domains} if told["serves_unknown"] else set()
    targets = {number[name] for name in told["domains"]} | unknown
    sources = {number[name] for name in told["sources"]} | unknown
    return view(
        prepared,
        {
            "train": rows_of_domains(prepared, "train", sources),
            "valid": rows_of_domains(prepared, "valid", targets),
            "test": rows_of_domains(prepared, "test", targets),
        },
    )


def evaluate_split(
    folder: RunFolder,
    prepared: PreparedDataset,
    split: str,
    *,
    batch_size: int,
    watcher: Watcher | None = None,
) -> dict[str, Any]:
    """Score a split with the model of each row's cluster."""
    rows = _predict(folder, prepared, split, batch_size=batch_size, watcher=watcher or Quiet())
    scores = Calibrator.load(folder.calibration).apply(rows.logit, rows.domain)
    return dict(measured(rows, scores, prepared).to_json_dict())


def _describe(part: RunFolder, prepared: PreparedDataset, assignment: ClusterAssignment, k: int) -> None:
    """Write `cluster.json` and link the data; domains that the assignment does not list go to the default."""
    known = set(assignment.domains)
    default = k == assignment.default_cluster
    names = prepared.schema.domains
    new = [name for name in names if name not in known] if default else []
    sources = {*assignment.sources[k], *new}
    save_json(
        part.cluster,
        {
            "cluster": k,
            "domains": [name for name in names if assignment.cluster_of(name) == k],
            "sources": [name for name in names if name in sources],
            "serves_unknown": default,
        },
    )
    if not part.prepared.exists():
        part.prepared.symlink_to(prepared.path.resolve(), target_is_directory=True)


def _predict(
    folder: RunFolder, prepared: PreparedDataset, split: str, *, batch_size: int, watcher: Watcher
) -> Predictions:
    """Score all rows of a split, each by the model of its cluster, in the reader's order."""
    places, found = [], []
    for part in folder.parts:
        rows = cluster_rows(part, prepared)
        if not rows.kept[split].any():
            continue
        model = load_model(part.model, prepared.schema)
        device = torch.device("cpu")
        found.append(predict_split(model, rows, split, batch_size=batch_size, device=device, watcher=watcher))
        places.append(np.flatnonzero(rows.kept[split]))
    order = np.argsort(np.concatenate(places), kind="stable")
    return Predictions(
        **{
            name: np.concatenate([getattr(rows, name) for rows in found])[order]
            for name in Predictions.__dataclass_fields__
        }
    )


def _joined(
    config: RunConfig,
    prepared: PreparedDataset,
    folder: RunFolder,
    parts: list[dict[str, Any]],
    assignment: ClusterAssignment,
) -> dict[str, Any]:
    """Write what the run as a whole says; gives the content of `metrics.json`."""
    calibrator = _joined_calibrator(folder, prepared)
    calibrator.save(folder.calibration)
    metrics: dict[str, Any] = {"raw": {}}
    oracle: dict[str, Any] = {}
    size = config.training.eval_batch_size
    for split in EVALUATED_SPLITS:
        rows = _predict(folder, prepared, split, batch_size=size, watcher=Quiet())
        scores: NDArray[np.float64] = calibrator.apply(rows.logit, rows.domain)
        save_predictions(folder.predictions(split), rows, scores, domain_names=prepared.schema.domains)
        metrics[split] = measured(rows, scores, prepared).to_json_dict()
        metrics["raw"][split] = measured(rows, sigmoid(rows.logit), prepared).to_json_dict()
        if rows.knows_truth:
            oracle[split] = measured(rows, rows.true_probability, prepared).to_json_dict()
    if oracle:
        metrics["oracle"] = oracle
    metrics |= _whole(config, prepared, parts)
    metrics["clusters"] = [_part_line(k, part, assignment) for k, part in enumerate(parts)]
    metrics["clustering"] = {
        "version": "split",
        "method": assignment.method,
        "num_clusters": assignment.num_clusters,
        "num_updates": assignment.num_updates,
        "sizes": [len(names) for names in assignment.targets],
        "assignment": assignment.digest,
    }
    save_json(folder.metrics, metrics)
    return metrics


def _whole(config: RunConfig, prepared: PreparedDataset, parts: list[dict[str, Any]]) -> dict[str, Any]:
    train_s = sum(part["train_s"] for part in parts)
    trained = sum(part["rows_per_s"] * part["train_s"] for part in parts)
    weights = hashlib.sha256("".join(part["digests"]["weights"] for part in parts).encode()).hexdigest()
    return {
        "name": config.name,
        "model": config.model.type,
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": config.training.seed,
        "separate_models": True,
        "best_epoch": max(part["best_epoch"] for part in parts),
        "best_step": sum(part["best_step"] for part in parts),
        "steps": sum(part["steps"] for part in parts),
        "seconds": round(sum(part["seconds"] for part in parts), 3),
        "train_s": round(train_s, 3),
        "rows_per_s": round(trained / train_s, 1) if train_s else 0.0,
        "digests": run_identity(config, prepared) | {"weights": weights},
    }


def _part_line(k: int, part: Mapping[str, Any], assignment: ClusterAssignment) -> dict[str, Any]:
    keys = ("best_epoch", "best_step", "steps", "seconds")
    return {
        "cluster": k,
        "domains": len(assignment.targets[k]),
        "sources": len(assignment.sources[k]),
        **{key: part[key] for key in keys},
        **{f"test_{name}": part["test"][name] for name in ("domain_auc", "total_auc", "logloss", "rows")},
        "weights": part["digests"]["weights"],
    }


def _joined_calibrator(folder: RunFolder, prepared: PreparedDataset) -> Calibrator:
    """Each domain's line from its cluster; the fallback from the cluster that serves unknown domains."""
    names = prepared.schema.domains
    scale, bias = np.ones(len(names) + 1), np.zeros(len(names) + 1)
    for part in folder.parts:
        told, own = load_json(part.cluster), Calibrator.load(part.calibration)
        served = np.isin(names, told["domains"])
        served = np.append(served, told["serves_unknown"])
        scale[served], bias[served] = own.scale[served], own.bias[served]
    return Calibrator(domains=names, scale=scale, bias=bias, strength=float("inf"))
