"""The run folder: what a training run leaves behind, and where.

    config.yaml          resolved config
    prepared/            prepared data, or a link to it
    schema.json          the feature schema the model was built on
    log.jsonl            one event a line
    checkpoint/last.pt   everything needed to go on
    model.pt             {"state_dict", "model" (config), "schema_digest", "weights_digest"}, best weights
    calibration.json     one line per domain, and the fallback
    predictions/*.parquet  user_code, domain, label, logit, score, in the reader's order
    metrics.json         the run's figures
    report.html          the same for people

A run with clusters also has

    clusters/            assignment.json, matrices.npz, state.npz, choice.json, report.html

and a run of version `split` one run folder per cluster in place of model.pt:

    cluster-0/, ...      all of the above for one cluster, with cluster.json: which domains it serves

Invariant: every file is written whole; `metrics.json` comes after all it speaks of, so a folder that has it
is a finished run.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from service.contract.schema import FeatureSchema
from training.engine.checkpoint import load_tensors, weights_digest
from training.engine.errors import RunError
from training.engine.evaluate import UNKNOWN_DOMAIN, Predictions
from training.engine.files import write_atomically, write_text
from training.models.base import CtrModel
from training.models.build import build_model
from training.models.config import ModelConfig, wants_clusters

CLUSTER_TABLES = ("ranker.tower_of_domain", "ranker.gates.cluster_of_domain")
"""Names that a `state_dict` may have for the (D + 1,) table from domain to tower or cluster, the last entry
for unknown domains."""


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run."""

    root: Path

    @property
    def config(self) -> Path:
        """Resolved config."""
        return self.root / "config.yaml"

    @property
    def prepared(self) -> Path:
        """Prepared data, or a link to it."""
        return self.root / "prepared"

    @property
    def schema(self) -> Path:
        """The feature schema."""
        return self.root / "schema.json"

    @property
    def log(self) -> Path:
        """Events."""
        return self.root / "log.jsonl"

    @property
    def checkpoint(self) -> Path:
        """Everything needed to go on."""
        return self.root / "checkpoint" / "last.pt"

    @property
    def model(self) -> Path:
        """The best weights."""
        return self.root / "model.pt"

    @property
    def calibration(self) -> Path:
        """The calibrator."""
        return self.root / "calibration.json"

    @property
    def metrics(self) -> Path:
        """The run's figures."""
        return self.root / "metrics.json"

    @property
    def report(self) -> Path:
        """The figures for people."""
        return self.root / "report.html"

    @property
    def clusters(self) -> Path:
        """Folder of the clusters."""
        return self.root / "clusters"

    @property
    def cluster(self) -> Path:
        """Which cluster the run is of, where it is one of several."""
        return self.root / "cluster.json"

    def part(self, cluster: int) -> "RunFolder":
        """The run of one cluster."""
        return RunFolder(self.root / f"cluster-{cluster}")

    @property
    def parts(self) -> tuple["RunFolder", ...]:
        """The runs of all clusters, in order; none in a run of one model."""
        found: list[RunFolder] = []
        while (part := self.part(len(found))).root.is_dir():
            found.append(part)
        return tuple(found)

    def predictions(self, split: str) -> Path:
        """Scores of one split."""
        return self.root / "predictions" / f"{split}.parquet"

    def require_finished(self) -> None:
        """Refuse a folder without a finished run.

        Raises:
            RunError: It is not one; the message says what is missing.
        """
        if not self.root.is_dir():
            raise RunError(f"{self.root}: no such run folder")
        models = tuple(part.model for part in self.parts) or (self.model,)
        for path in (self.config, *models, self.calibration, self.metrics):
            if not path.is_file():
                raise RunError(
                    f"{self.root}: not a finished run, {path.relative_to(self.root)} is missing; "
                    "go on with --resume"
                )


def save_model(path: Path, model: CtrModel, *, config: ModelConfig, schema: FeatureSchema) -> str:
    """Write `model.pt`; gives the digest of the weights."""
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    digest = weights_digest(state)
    content = {
        "state_dict": state,
        "model": config.model_dump(mode="json"),
        "schema_digest": schema.digest,
        "weights_digest": digest,
    }
    write_atomically(path, lambda part: torch.save(content, part))
    return digest


def load_model(path: Path, schema: FeatureSchema) -> CtrModel:
    """Rebuild a model from `model.pt`, on the CPU and in evaluation mode.

    Raises:
        CheckpointError: The file is missing or damaged.
        RunError: It was trained on another schema, or is not a model file.
    """
    content = load_tensors(path)
    try:
        if content["schema_digest"] != schema.digest:
            raise RunError(
                f"{path}: trained on schema {content['schema_digest'][:12]}, "
                f"the data has {schema.digest[:12]}"
            )
        config: ModelConfig = TypeAdapter(ModelConfig).validate_python(content["model"])
        weights = content["state_dict"]
        towers = _cluster_table(weights) if wants_clusters(config) else None
        model = build_model(config, schema, towers)
        model.load_state_dict(weights)
    except (KeyError, ValidationError, RuntimeError) as error:
        raise RunError(f"{path}: not a model of this version: {error}") from error
    return model.eval()


def _cluster_table(weights: Mapping[str, Tensor]) -> list[int]:
    for name in CLUSTER_TABLES:
        if name in weights:
            table: list[int] = weights[name].tolist()
            return table
    raise KeyError(" or ".join(CLUSTER_TABLES))


def save_predictions(
    path: Path, predictions: Predictions, scores: NDArray[np.float64], *, domain_names: Sequence[str]
) -> None:
    """Write predictions as parquet: user_code, domain (name), label, logit, score."""
    names = pl.Series([*domain_names, UNKNOWN_DOMAIN])
    frame = pl.DataFrame(
        {
            "user_code": predictions.user_code,
            "domain": names.gather(predictions.domain),
            "label": predictions.label,
            "logit": predictions.logit,
            "score": scores,
        }
    )
    write_atomically(path, frame.write_parquet)


def save_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON; refuses nan, which JSON lacks."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def load_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        RunError: Missing or not JSON.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from error
    return content
