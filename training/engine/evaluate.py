"""Score a split and measure the scores.

`predict` reads rows in the reader's order without shuffling; `evaluate_scores` turns predictions into the
project's metrics. Invariant: evaluation changes neither weights, mode nor random state of the model.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray

from training.data.dataset import Batch
from training.engine.batch import model_inputs
from training.engine.errors import EngineError
from training.metrics import Evaluation, evaluate
from training.models.base import CtrModel

UNKNOWN_DOMAIN = "(unknown)"
"""Name under which rows of unknown domains are reported, where there are any."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """Logits of n rows with what they are judged by, in the reader's order.

    Attributes:
        logit: (n,) float64, before calibration.
        label: (n,) int8.
        domain: (n,) int64 in [0, D]; D is unknown.
        user_code: (n,) int64.
        true_probability: (n,) float64, nan where the data set does not know it.
    """

    logit: NDArray[np.float64]
    label: NDArray[np.int8]
    domain: NDArray[np.int64]
    user_code: NDArray[np.int64]
    true_probability: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.label)

    @property
    def knows_truth(self) -> bool:
        """Whether every row's true click probability is known."""
        return bool(len(self)) and not bool(np.isnan(self.true_probability).any())


def predict(
    model: CtrModel,
    batches: Iterable[Batch],
    *,
    device: torch.device,
    on_rows: Callable[[int], object] = lambda _rows: None,
) -> Predictions:
    """Score rows in evaluation mode, float32.

    Args:
        model: On `device`; its mode is put back.
        batches: In the order wanted.
        device: Where to compute.
        on_rows: Told the rows of each batch, for progress.

    Raises:
        EngineError: No rows, or a logit that is not finite.
    """
    parts: list[Predictions] = []
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for batch in batches:
                output = model(model_inputs(batch, device))
                parts.append(_predictions(batch, output.logits.double().cpu().numpy()))
                on_rows(len(batch.label))
    finally:
        model.train(was_training)
    if not parts:
        raise EngineError("there are no rows to score")
    joined = {f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Predictions)}
    logit = joined["logit"]
    if not np.isfinite(logit).all():
        row = int(np.flatnonzero(~np.isfinite(logit))[0])
        raise EngineError(f"the model gives row {row} the logit {logit[row]}; its weights have diverged")
    return Predictions(**joined)


def evaluate_scores(
    predictions: Predictions,
    scores: NDArray[np.float64],
    *,
    domain_names: Sequence[str],
    train_rows: Mapping[str, int],
) -> Evaluation:
    """Measure scores (n,) of the predictions' rows.

    Args:
        predictions: Labels, domains and users.
        scores: (n,) click probabilities.
        domain_names: D names; rows of unknown domains are reported under `UNKNOWN_DOMAIN`.
        train_rows: Train rows of each domain, which decide the major and minor domains.
    """
    names = list(domain_names)
    if (predictions.domain == len(names)).any():
        names.append(UNKNOWN_DOMAIN)
    return evaluate(
        labels=predictions.label,
        scores=scores,
        domains=predictions.domain,
        domain_names=names,
        users=predictions.user_code,
        train_counts=np.array([train_rows.get(name, 0) for name in names], dtype=np.int64),
    )


def _predictions(batch: Batch, logit: NDArray[np.float64]) -> Predictions:
    """One batch, in copies, so that no feature block is kept alive."""
    return Predictions(
        logit=logit,
        label=batch.label.astype(np.int8),
        domain=batch.domain.astype(np.int64),
        user_code=batch.user_code.astype(np.int64),
        true_probability=batch.true_probability.astype(np.float64, copy=True),
    )
