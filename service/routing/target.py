"""What answers a request: a scorer, the metrics of its arm, and what is blended in.

Invariant: a blended score lies between those it is made of, and says so in the reply.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from service.scoring.admission import Deadline
from service.scoring.query import Query
from service.scoring.scorer import Scored, Scorer
from service.telemetry.metrics import BundleMetrics

SMALLEST = 1e-7  # probabilities are kept this far from 0 and 1, where logits are infinite


@dataclass(frozen=True, slots=True)
class Blend:
    """A second opinion.

    Attributes:
        scorer: Gives it.
        weight: Of its logits; 1 - weight is left to the first.
    """

    scorer: Scorer
    weight: float


@dataclass(frozen=True, slots=True)
class Target:
    """Who answers.

    Attributes:
        scorer: Scores and names the bundle of the reply.
        metrics: Of the bundle and arm.
        arm: Metric label, `experiment/arm`; `none` without one.
        blend: Blended into the scores; None for most domains.
    """

    scorer: Scorer
    metrics: BundleMetrics
    arm: str
    blend: Blend | None = None

    async def score(self, query: Query, deadline: Deadline) -> Scored:
        """Score the candidates of one request.

        Raises:
            ServiceError: As `Scorer.score`, of either scorer.
            GraphRunError: A graph failed.
        """
        if self.blend is None:
            return await self.scorer.score(query, deadline)
        with self.blend.scorer.loaded.leases:  # it must not be closed while the first one scores
            scored = await self.scorer.score(query, deadline)
            other = await self.blend.scorer.score(query, deadline)
        return msgspec.structs.replace(
            scored,
            scores=blend_logits(scored.scores, other.scores, self.blend.weight),
            degraded=tuple(dict.fromkeys((*scored.degraded, *other.degraded))),
            features_s=scored.features_s + other.features_s,
            infer_s=scored.infer_s + other.infer_s,
        )


def blend_logits(
    first: NDArray[np.float32], second: NDArray[np.float32], weight: float
) -> NDArray[np.float32]:
    """Probabilities, (N,) float32, whose logits are the weighted mean of those of two (N,) float32."""
    logits = (1.0 - weight) * _logit(first) + weight * _logit(second)
    blended: NDArray[np.float32] = (1.0 / (1.0 + np.exp(-logits))).astype(np.float32)
    return blended


def _logit(probability: NDArray[np.float32]) -> NDArray[np.float64]:
    inside = np.clip(probability.astype(np.float64), SMALLEST, 1.0 - SMALLEST)
    logit: NDArray[np.float64] = np.log(inside) - np.log1p(-inside)
    return logit


__all__ = ["Blend", "Target", "blend_logits"]
