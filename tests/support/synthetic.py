"""The small synthetic data set."""

import numpy as np

from training.data.synthetic import (
    PRESETS,
    SyntheticConfig,
)

SMALL = PRESETS["small"]


def small(**changes: object) -> SyntheticConfig:
    return SyntheticConfig.model_validate(SMALL.model_dump() | changes)


def brute_auc(label: np.ndarray, score: np.ndarray) -> float:
    """Second formula: count the won pairs one by one."""
    positive, negative = score[label == 1][:, None], score[label == 0][None, :]
    return float((positive > negative).mean() + 0.5 * (positive == negative).mean())
