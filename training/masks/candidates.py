"""Candidate masks: what the gates point at, what the domain has, and random flips.

Pure numpy. Invariant: every candidate is valid, has an output and differs from the mask that the domain has.

Letters: X edges, N_l experts of level l.

Source: AREAD, arXiv 2412.11905, section HEMP. We differ in reading the gates in closed form at the current
weights, where the published code averages what it recorded, and in moving the flip rate towards one
half after draws that made no mask, where it would draw for ever.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from training.masks.errors import MaskSearchError
from training.models.mask import BoolArray, PyramidMask, PyramidShape, density, has_output, validated_bits

FloatArray = NDArray[np.floating]

PATIENT_DRAWS = 10
"""Draws of flips at the rate first drawn; then the rate doubles up to one half, or falls to that."""

MOST_DRAWS = 100
"""Draws after which a pyramid is said to have no other mask."""


def gated_edges(gates: Sequence[FloatArray], shape: PyramidShape, *, active: float) -> BoolArray:
    """(X,) edges that gates point at, tidied; b in the paper's terms.

    An edge is taken where its gate reaches theta, the lowest over levels of the (1 - active)-quantile of the
    level's gates that are not 0.

    Args:
        gates: (N_{l-1}, N_l) of each level above the lowest, all at least 0.
        shape: Of the pyramid; edges from base experts have no gate by domain and are all taken.
        active: q in [0, 1].
    """
    theta = min(float(np.quantile(level[level > 0], 1.0 - active)) for level in gates)
    taken = [level >= theta for level in gates]
    arrays = [np.zeros(size, dtype=np.bool_) for size in shape.edge_shapes]
    free = len(arrays) - 2 - len(taken)
    for number in range(1, 1 + free):
        arrays[number][:] = True
    arrays[1 + free : -1] = taken
    return validated_bits(shape.join(arrays), shape)


def flip_rate(rng: np.random.Generator, sigma: float) -> float:
    """min(1, |N(0, sigma)|)."""
    return min(1.0, abs(float(rng.normal(0.0, sigma))))


def candidate(
    current: PyramidMask | None,
    proposed: BoolArray,
    shape: PyramidShape,
    *,
    active: float,
    sigma: float,
    rng: np.random.Generator,
) -> PyramidMask:
    """One candidate for a domain.

    Args:
        current: The domain's mask o; None takes the proposed edges for it.
        proposed: (X,) bool, b.
        shape: Of the pyramid.
        active: q: where o is denser, flips delete as well as add.
        sigma: Of the flip rate.
        rng: Of rate and flips.

    Raises:
        MaskSearchError: No draw made another mask, as in a pyramid of one path.
    """
    own = proposed if current is None else current.bits
    both = own | proposed
    rate = flip_rate(rng, sigma)
    deletes = float(density(own)) > active
    for draw in range(MOST_DRAWS):
        if draw >= PATIENT_DRAWS:
            rate = min(0.5, max(rate, 2.0 ** (draw - PATIENT_DRAWS) / shape.num_edges))
        flips = rng.random(shape.num_edges) < rate
        found = validated_bits(both ^ flips if deletes else both | flips, shape)
        if has_output(found, shape) and not np.array_equal(found, own):
            return PyramidMask(shape, found)
    raise MaskSearchError(
        f"{MOST_DRAWS} draws made no mask other than the {int(own.sum())} of {shape.num_edges} edges that "
        f"the domain has; a pyramid {shape.levels} is too small to search"
    )
