"""Prune masks where gates are weak.

Works on many candidates at once. Invariant: pruning only deletes inner edges and what then leads nowhere,
and never the last way to an output.

Letters: C candidates, X edges, N_l experts of level l.

Source: AREAD, arXiv 2412.11905, section HEMP; pruning on to a wanted density is ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from training.models.mask import BoolArray, PyramidShape, density, has_output, validated_bits

FloatArray = NDArray[np.floating]


def thresholds(
    gates: Sequence[FloatArray], masks: Sequence[BoolArray], *, quantile: float
) -> NDArray[np.float64]:
    """(C,) lowest over levels of the quantile of the gates of edges that are there and not 0.

    Args:
        gates: (C, N_{l-1}, N_l) of each gated level, before they are scaled to sum 1 over active experts.
        masks: Edges of the same levels, of the same shapes.
        quantile: In [0, 1], with linear interpolation.

    Returns:
        inf where no gate is left.
    """
    levels = []
    for values, edges in zip(gates, masks, strict=True):
        flat = np.where(edges & (values > 0), values, np.inf).astype(np.float64)
        flat = np.sort(flat.reshape(len(flat), -1), axis=1)
        last = np.isfinite(flat).sum(axis=1) - 1
        place = quantile * np.maximum(last, 0)
        low = np.floor(place).astype(np.int64)
        high = np.minimum(low + 1, np.maximum(last, 0))
        every = np.arange(len(flat))
        below, above = flat[every, low], flat[every, high]
        with np.errstate(invalid="ignore"):  # inf - inf where a level has no gate left
            between = below + (above - below) * (place - low)
        levels.append(np.where(last >= 0, between, np.inf))
    lowest: NDArray[np.float64] = np.min(levels, axis=0)
    return lowest


def pruned(
    bits: BoolArray, gates: Sequence[FloatArray], shape: PyramidShape, *, quantile: float
) -> BoolArray:
    """(C, X) masks without the edges whose gate is below the threshold; as given where nothing would be left.

    Args:
        bits: (C, X) valid masks.
        gates: (C, N_{l-1}, N_l) of each level above the lowest.
        shape: Of the pyramid.
        quantile: Of `thresholds`.
    """
    arrays = list(shape.split(bits))
    first = len(arrays) - 1 - len(gates)
    gated = arrays[first:-1]
    threshold = thresholds(gates, gated, quantile=quantile)[:, None, None]
    arrays[first:-1] = [edges & (values >= threshold) for edges, values in zip(gated, gates, strict=True)]
    found = validated_bits(shape.join(arrays), shape)
    kept: BoolArray = np.where(has_output(found, shape)[:, None], found, bits)
    return kept


def pruned_to(
    bits: BoolArray,
    gates: Sequence[FloatArray],
    shape: PyramidShape,
    *,
    quantile: float,
    target_density: float,
) -> BoolArray:
    """(C, X) masks pruned again and again until the target is reached or nothing more can go.

    A mask stops where it is no denser than the target, where the next prune would leave no output, or where
    all its gates are equal. Gates stay as given: pruning never changes what they depend on.
    """
    found = bits
    while True:
        denser = density(found) > target_density
        if not denser.any():
            return found
        after = found.copy()
        after[denser] = pruned(found[denser], [values[denser] for values in gates], shape, quantile=quantile)
        if np.array_equal(after, found):
            return found
        found = after
