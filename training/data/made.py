"""What a maker of derived features hands to `prepare`: features with their encoded columns.

Pure values. Makers (statistics, histories) know nothing of each other; `prepare` appends their columns to the
rows of the described features, in order, which is where the contract's layout expects them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from service.contract.schema import (
    Encoder,
    FeatureSchema,
    MultiFeature,
    PairFeature,
    StandardiseEncoder,
    StoredFeature,
)

Int32s = NDArray[np.int32]
Float32s = NDArray[np.float32]


@dataclass(frozen=True)
class MadeFeature:
    """A derived feature with its encoded values.

    Attributes:
        feature: As it stands in the schema.
        ints: (n, k) int32 ids, one row per known entity; k may be 0.
        floats: (n, j) float32 numbers; j may be 0.
        encoder: Its own encoder, named after the feature; None when it uses another's.
    """

    feature: StoredFeature
    ints: Int32s
    floats: Float32s
    encoder: Encoder | None = None


@dataclass
class Made:
    """Derived features and pairs, in schema order."""

    features: list[MadeFeature] = field(default_factory=list)
    pairs: list[PairFeature] = field(default_factory=list)

    def extend(self, other: Made) -> None:
        """Append another maker's features."""
        self.features += other.features
        self.pairs += other.pairs

    def extend_schema(self, schema: FeatureSchema) -> FeatureSchema:
        """The schema with these features at the end."""
        own = {made.feature.name: made.encoder for made in self.features if made.encoder is not None}
        return FeatureSchema(
            name=schema.name,
            domains=schema.domains,
            encoders=schema.encoders | own,
            features=schema.features + tuple(made.feature for made in self.features),
            pairs=schema.pairs + tuple(self.pairs),
        )


def no_ints(n: int) -> Int32s:
    """(n, 0) int32."""
    return np.zeros((n, 0), dtype=np.int32)


def zero_preserving(rms: float, clip: float = 8.0) -> StandardiseEncoder:
    """An encoder that divides by `rms` and keeps 0 at 0, so that "nothing known" is exactly 0."""
    return StandardiseEncoder(mean=0.0, std=rms if rms > 0 else 1.0, clip=clip)


def weighted_rms(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """Root of the weighted mean square; 0 when nothing has weight."""
    total = float(weights.sum())
    return float(np.sqrt((weights * values**2).sum() / total)) if total else 0.0


def multi_block(feature: MultiFeature, ids: Int32s, weights: Float32s) -> MadeFeature:
    """A weighted multi feature from (n, L) ids and (n, L, W) weights."""
    return MadeFeature(feature, ids, np.ascontiguousarray(weights.reshape(len(ids), -1)))
