"""What follows from a model's weights: calibrator, predictions, figures.

Invariant: the calibrator is fitted on validation rows alone; figures of a split are of the predictions that
are stored for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.config import RunConfig
from training.data.prepared import PreparedDataset
from training.engine.artefacts import RunFolder, save_model, save_predictions
from training.engine.calibrate import GLOBAL_ONLY, Calibrator, fit_calibrator, identity_calibrator
from training.engine.evaluate import Predictions, evaluate_scores
from training.engine.platt import sigmoid
from training.metrics import Evaluation
from training.models.base import CtrModel

EVALUATED_SPLITS = ("valid", "test")


def write_judged(
    config: RunConfig,
    prepared: PreparedDataset,
    folder: RunFolder,
    *,
    model: CtrModel,
    predictions: Mapping[str, Predictions],
) -> dict[str, Any]:
    """Write model, calibrator and predictions; gives the figures that `metrics.json` has of any run.

    Args:
        config: Of the run.
        prepared: What it is judged on.
        folder: Where files go.
        model: With its best weights.
        predictions: Of each evaluated split.

    Raises:
        CalibrationError: Validation rows do not allow a calibration.
    """
    weights = save_model(folder.model, model, config=config.model, schema=prepared.schema)
    calibrator = _calibrator(config, predictions["valid"], prepared)
    calibrator.save(folder.calibration)
    metrics: dict[str, Any] = {"raw": {}}
    oracle: dict[str, Any] = {}
    for split, rows in predictions.items():
        scores = calibrator.apply(rows.logit, rows.domain)
        save_predictions(folder.predictions(split), rows, scores, domain_names=prepared.schema.domains)
        metrics[split] = measured(rows, scores, prepared).to_json_dict()
        metrics["raw"][split] = measured(rows, sigmoid(rows.logit), prepared).to_json_dict()
        if rows.knows_truth:
            oracle[split] = measured(rows, rows.true_probability, prepared).to_json_dict()
    if oracle:
        metrics["oracle"] = oracle
    metrics |= {
        "name": config.name,
        "model": config.model.type,
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": config.training.seed,
        "digests": {
            "config": config.digest,
            "data": prepared.data_digest,
            "schema": prepared.schema.digest,
            "weights": weights,
        },
    }
    return metrics


def _calibrator(config: RunConfig, valid: Predictions, prepared: PreparedDataset) -> Calibrator:
    settings = config.calibration
    if settings.method == "none":
        return identity_calibrator(prepared.schema.domains)
    return fit_calibrator(
        logits=valid.logit,
        labels=valid.label,
        domains=valid.domain,
        users=valid.user_code,
        domain_names=prepared.schema.domains,
        strengths=(*settings.strengths, *([GLOBAL_ONLY] if settings.global_only else [])),
        num_folds=settings.num_folds,
        seed=config.training.seed,
    )


def measured(rows: Predictions, scores: NDArray[np.float64], prepared: PreparedDataset) -> Evaluation:
    """The project's metrics of scores (n,)."""
    return evaluate_scores(
        rows, scores, domain_names=prepared.schema.domains, train_rows=prepared.domain_rows["train"]
    )
