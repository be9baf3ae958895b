"""Which edges of an expert pyramid a domain uses.

A pyramid has levels of experts; every expert of a level may read every expert of the level below. A mask
says which of these edges are there, which experts of the lowest level have their input, and which of the
highest level are read out. Pure numpy; a mask never changes. Invariant: `validated_bits` leaves an inner edge
exactly where it lies on a path from the lowest to the highest level, for any number of levels.

Letters: L + 1 levels of N_0 .. N_L experts, X edges in all.

Source: AREAD, arXiv 2412.11905, section HEMP. Where masks reach down to the experts of the base model, those
are one more level below the pyramid (ours).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from service.contract.errors import ContractError

BoolArray = NDArray[np.bool_]

MIN_LEVELS = 2
"""A pyramid of one level has no edges between experts."""


class MaskError(ContractError, ValueError):
    """A pyramid or a mask that cannot be used."""


@dataclass(frozen=True)
class PyramidShape:
    """How many experts each level has.

    Attributes:
        widths: N_0 .. N_L, from the lowest level to the highest.
        base_width: Experts of the base model that masks choose among as well; 0 where they do not.

    Raises:
        MaskError: Fewer than two levels, or a level without experts.
    """

    widths: tuple[int, ...] = (3, 6, 12)
    base_width: int = 0

    def __post_init__(self) -> None:
        if len(self.widths) < MIN_LEVELS:
            raise MaskError(f"a pyramid of levels {list(self.widths)}; it needs at least {MIN_LEVELS} levels")
        if min(self.widths) < 1 or self.base_width < 0:
            raise MaskError(
                f"a pyramid of levels {list(self.widths)} over {self.base_width} base experts; every level "
                "needs at least 1 expert, and base_width is not negative"
            )

    @property
    def levels(self) -> tuple[int, ...]:
        """Experts of every masked level, base experts first where masks reach them."""
        return (self.base_width, *self.widths) if self.base_width else self.widths

    @cached_property
    def edge_shapes(self) -> tuple[tuple[int, int], ...]:
        """Shapes of the arrays of a mask: (1, N_0), (N_0, N_1), .., (N_L, 1)."""
        ends = (1, *self.levels, 1)
        return tuple(pairwise(ends))

    @cached_property
    def spans(self) -> tuple[slice, ...]:
        """Where each array lies in a flat vector of X edges."""
        stops = np.cumsum([rows * columns for rows, columns in self.edge_shapes]).tolist()
        return tuple(slice(start, stop) for start, stop in zip([0, *stops[:-1]], stops, strict=True))

    @property
    def num_edges(self) -> int:
        """X."""
        return sum(rows * columns for rows, columns in self.edge_shapes)

    def split(self, bits: BoolArray) -> tuple[BoolArray, ...]:
        """Views (..., rows, columns) of flat vectors (..., X), in the order of `edge_shapes`."""
        return tuple(
            bits[..., span].reshape(*bits.shape[:-1], *shape)
            for span, shape in zip(self.spans, self.edge_shapes, strict=True)
        )

    def join(self, arrays: Sequence[BoolArray]) -> BoolArray:
        """Flat vectors (..., X) of arrays (..., rows, columns); the inverse of `split`.

        Raises:
            MaskError: Arrays of other shapes.
        """
        found = tuple(array.shape[-2:] for array in arrays)
        if found != self.edge_shapes:
            raise MaskError(f"mask arrays of shapes {found}; a pyramid {self.levels} has {self.edge_shapes}")
        return np.concatenate([array.reshape(*array.shape[:-2], -1) for array in arrays], axis=-1)


@dataclass(frozen=True, eq=False)
class PyramidMask:
    """The edges of one domain.

    Attributes:
        shape: Of the pyramid.
        bits: (X,) bool, the arrays one after the other, each by rows; read only.

    Raises:
        MaskError: Not X boolean values.
    """

    shape: PyramidShape
    bits: BoolArray = field(repr=False)

    def __post_init__(self) -> None:
        bits = np.array(self.bits)
        if bits.shape != (self.shape.num_edges,) or bits.dtype != np.bool_:
            raise MaskError(
                f"mask bits are {bits.dtype} of shape {bits.shape}; a pyramid {self.shape.levels} needs "
                f"bool of shape ({self.shape.num_edges},)"
            )
        bits.flags.writeable = False
        object.__setattr__(self, "bits", bits)

    @classmethod
    def full(cls, shape: PyramidShape) -> PyramidMask:
        """Every edge."""
        return cls(shape, np.ones(shape.num_edges, dtype=np.bool_))

    @classmethod
    def from_arrays(cls, shape: PyramidShape, arrays: Sequence[BoolArray]) -> PyramidMask:
        """From M_0 (1, N_0), M_l (N_{l-1}, N_l) and the outputs (N_L, 1), all bool.

        Raises:
            MaskError: Arrays of other shapes or types.
        """
        return cls(shape, shape.join([np.asarray(array) for array in arrays]))

    @cached_property
    def arrays(self) -> tuple[BoolArray, ...]:
        """M_0 (1, N_0), M_l (N_{l-1}, N_l), outputs (N_L, 1); read only."""
        return self.shape.split(self.bits)

    @property
    def inner(self) -> tuple[BoolArray, ...]:
        """The arrays between levels."""
        return self.arrays[1:-1]

    @property
    def num_edges(self) -> int:
        """Edges that are there."""
        return int(self.bits.sum())

    @property
    def density(self) -> float:
        """Share of the X edges that are there."""
        return self.num_edges / self.shape.num_edges

    @property
    def active(self) -> tuple[BoolArray, ...]:
        """(N_l,) of each level: which experts have an input."""
        return tuple(_any(array, 0) for array in self.arrays[:-1])

    @property
    def used(self) -> tuple[BoolArray, ...]:
        """(N_l,) of each level: which experts are read by something; the others need not be computed."""
        return tuple(_any(array, 1) for array in self.arrays[1:])

    @property
    def num_used(self) -> tuple[int, ...]:
        """Experts of each level that are read by something."""
        return tuple(int(level.sum()) for level in self.used)

    @property
    def inputs(self) -> BoolArray:
        """(N_0,) which experts of the pyramid's lowest level have an input; may be more than are used."""
        return self.active[1 if self.shape.base_width else 0]

    @property
    def heads(self) -> BoolArray:
        """(N_L,) which experts of the highest level are read out."""
        outputs: BoolArray = self.arrays[-1][:, 0]
        return outputs

    @property
    def is_valid(self) -> bool:
        """Whether `validate` would give an equal mask."""
        cleaned = validated_bits(self.bits, self.shape)
        return bool(self.heads.any()) and np.array_equal(cleaned, self.bits)

    def validate(self) -> PyramidMask:
        """Without the edges that lead nowhere, see `validated_bits`.

        Raises:
            MaskError: Nothing would be read out.
        """
        bits = validated_bits(self.bits, self.shape)
        if not has_output(bits, self.shape):
            kept = [int(array.sum()) for array in self.arrays]
            raise MaskError(
                f"a mask of {kept} edges by level has no path from the lowest level to the highest; "
                "at least 1 is needed"
            )
        return PyramidMask(self.shape, bits)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PyramidMask):
            return NotImplemented
        return self.shape == other.shape and np.array_equal(self.bits, other.bits)

    def __hash__(self) -> int:
        return hash((self.shape, self.bits.tobytes()))


def validated_bits(bits: BoolArray, shape: PyramidShape) -> BoolArray:
    """Tidy masks; the order of the rules is part of the definition.

    1. An expert of the lowest level that anything reads gets its input bit; bits already set stay.
    2. Inner edges without a way up from the lowest level, or on to the highest, are deleted.
    3. An expert of the highest level is read out exactly where it has an input.

    One pass up and one pass down reach what deleting dead ends one by one would reach. An input bit may stay
    set for an expert that nothing reads: it does not count in any sum, but does in the group embedding.

    Args:
        bits: (..., X) bool.
        shape: Of the pyramid.

    Returns:
        (..., X) bool, new. A mask without any path keeps its input bits only.
    """
    first, *inner, _ = shape.split(bits)
    fed: list[BoolArray] = [np.ones((*first.shape[:-2], shape.levels[0]), dtype=np.bool_)]
    for edges in inner:
        fed.append(_any(edges & fed[-1][..., :, None], -2))
    leads: BoolArray = np.ones_like(fed[-1])
    kept: list[BoolArray] = []
    for edges, below in zip(reversed(inner), reversed(fed[:-1]), strict=True):
        kept.append(edges & below[..., :, None] & leads[..., None, :])
        leads = _any(edges & leads[..., None, :], -1)
    read = _any(inner[0], -1)[..., None, :]
    outputs = _any(kept[0], -2)[..., :, None]
    return shape.join([first | read, *reversed(kept), outputs])


def has_output(bits: BoolArray, shape: PyramidShape) -> BoolArray:
    """(...) bool: whether validated masks (..., X) have anything to read out."""
    return _any(bits[..., shape.spans[-1]], -1)


def density(bits: BoolArray) -> NDArray[np.float64]:
    """(...) share of edges that are there, of masks (..., X)."""
    share: NDArray[np.float64] = bits.mean(axis=-1, dtype=np.float64)
    return share


def random_mask(shape: PyramidShape, wanted: float, rng: np.random.Generator) -> PyramidMask:
    """A valid mask about as dense as wanted.

    Inner edges are put in random order; of the masks that the first n of them make once dead ends are gone,
    the one nearest to the wanted density is taken, the smaller n among equals.

    Args:
        shape: Of the pyramid.
        wanted: Density in [0, 1]; the sparsest mask is a single path.
        rng: Of the order.
    """
    start, stop = shape.spans[0].stop, shape.spans[-1].start
    order = start + rng.permutation(stop - start)
    rank = np.full(shape.num_edges, shape.num_edges)
    rank[order] = np.arange(len(order))
    grown = validated_bits(rank[None, :] <= np.arange(len(order))[:, None], shape)
    # Input bits of edges that led nowhere are not this mask's choice.
    grown[:, shape.spans[0]] = _any(shape.split(grown)[1], -1)
    distance = np.where(has_output(grown, shape), np.abs(density(grown) - wanted), np.inf)
    return PyramidMask(shape, grown[int(distance.argmin())])


def _any(values: BoolArray, axis: int) -> BoolArray:
    found: BoolArray = np.logical_or.reduce(values, axis=axis)
    return found
