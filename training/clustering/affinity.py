"""Affinity matrices MI, MH and MT from what a lookahead measured.

A lookahead is handed a `LookaheadPlan` and delivers either `LookaheadLosses` (mode exact: losses after each
step) or `LookaheadGram` (mode first_order: inner products of gradients). Here they become relative gains,
positive where a step helps. Rows are sources u or treatments r, columns targets v; diagonals are kept.

What every lookahead must keep: one held-out evaluation batch E_v per domain, the same for all rows of all
tables; exactly one stateless step whatever the size of the set; model, optimiser and RNG state
bit-identical afterwards.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from training.clustering.arrays import BoolArray, FloatArray, IntArray, as_finite, as_mask
from training.clustering.errors import MatrixError, RulesError

MhScale = Literal["none", "size"]
"""`size` multiplies row u of MH by |M_u|, because MH shrinks like 1/|M_u|."""


@dataclass(frozen=True, eq=False)
class LookaheadPlan:
    """Which sets of domains the lookahead steps on.

    Attributes:
        companions: (D, D) boolean, row u is M_u: all domains at t = 0, else S_k(u) and u. Its diagonal is
            true.
        treatments: (R, D) boolean, row r is R_r, never empty.

    Raises:
        MatrixError: another shape or type, a false diagonal, an empty treatment.
    """

    companions: BoolArray
    treatments: BoolArray

    def __post_init__(self) -> None:
        num_domains = len(self.companions)
        as_mask("companions", self.companions, (num_domains, num_domains))
        as_mask("treatments", self.treatments, (None, num_domains))
        if not self.companions.diagonal().all():
            u = int(np.flatnonzero(~self.companions.diagonal())[0])
            raise MatrixError(f"companions[{u}] lacks domain {u}; M_u must hold u")
        if not self.treatments.any(axis=1).all():
            r = int(np.flatnonzero(~self.treatments.any(axis=1))[0])
            raise MatrixError(f"treatment {r} has no domain")

    @property
    def num_domains(self) -> int:
        """D."""
        return len(self.companions)

    @property
    def sizes(self) -> IntArray:
        """(D,) |M_u|."""
        sizes: IntArray = self.companions.sum(axis=1)
        return sizes

    @property
    def others(self) -> BoolArray:
        """(D, D) M_u without u; a row may be empty, which means no step at all."""
        return self.companions & ~np.eye(self.num_domains, dtype=bool)


@dataclass(frozen=True, eq=False)
class LookaheadLosses:
    """What mode exact delivers.

    Every number is a mean binary cross-entropy on E_v, nats per row, column v, by the tower that serves v.

    Attributes:
        base: (D,) L_v(Theta), all above 0.
        after_single: (D, D) row u after the step on {u}.
        after_companions: (D, D) row u after the step on M_u.
        after_others: (D, D) row u after the step on M_u without u; `base` where that set is empty.
        after_treatments: (R, D) row r after the step on R_r.
    """

    base: FloatArray
    after_single: FloatArray
    after_companions: FloatArray
    after_others: FloatArray
    after_treatments: FloatArray


@dataclass(frozen=True, eq=False)
class LookaheadGram:
    """What mode first_order delivers: no loss after a step, only gradients before it.

    Attributes:
        base: (D,) L_v(Theta) on E_v, nats per row, all above 0.
        gram: (D, D) g_u . P g'_v with g_u the gradient of L_u on B_u, g'_v of L_v on E_v, and P the step's
            preconditioner (1 for SGD).
        step_size: eta.
    """

    base: FloatArray
    gram: FloatArray
    step_size: float


@dataclass(frozen=True, eq=False)
class Affinities:
    """Gains of one update before smoothing: `mi` (D, D), `mh` (D, D), `mt` (R, D)."""

    mi: FloatArray
    mh: FloatArray
    mt: FloatArray


def loss_floor(base: FloatArray, shares: FloatArray, ratio: float) -> float:
    """Floor e: `ratio` times the global loss, so that a tiny L_v does not blow its gain up.

    Args:
        base: (D,) L_v.
        shares: (D,) w; the global loss is their weighted mean, plain where all are 0.
        ratio: 0 for the paper's formula; 0.1 is the product's.

    Raises:
        RulesError: a negative or not finite ratio.
    """
    if not (np.isfinite(ratio) and ratio >= 0):
        raise RulesError(f"floor ratio is {ratio}; it must be a finite number from 0 up")
    weights = shares if shares.sum() > 0 else np.ones_like(shares)
    return ratio * float(np.average(base, weights=weights))


def affinities(
    delivered: LookaheadLosses | LookaheadGram,
    plan: LookaheadPlan,
    *,
    floor: float = 0.0,
    mh_scale: MhScale = "none",
) -> Affinities:
    """Turn what a lookahead delivered into gains.

    Args:
        delivered: By either mode, for this plan.
        plan: What it stepped on.
        floor: e, see `loss_floor`.
        mh_scale: Whether row u of MH is multiplied by |M_u|.

    Raises:
        MatrixError: shapes that do not fit the plan, entries not finite, losses not above 0.
    """
    base = _positive("base", as_finite("base", delivered.base, (plan.num_domains,)))
    if isinstance(delivered, LookaheadLosses):
        made = _from_losses(delivered, plan, base, floor)
    else:
        made = _from_gram(delivered, plan, base, floor)
    if mh_scale == "size":
        return Affinities(made.mi, made.mh * plan.sizes[:, None], made.mt)
    return made


def _from_losses(losses: LookaheadLosses, plan: LookaheadPlan, base: FloatArray, floor: float) -> Affinities:
    square = (plan.num_domains, plan.num_domains)
    single = as_finite("after_single", losses.after_single, square)
    joint = as_finite("after_companions", losses.after_companions, square)
    without = _positive("after_others", as_finite("after_others", losses.after_others, square))
    treated = as_finite("after_treatments", losses.after_treatments, plan.treatments.shape)
    return Affinities(
        mi=1 - (single + floor) / (base + floor),
        mh=1 - (joint + floor) / (without + floor),
        mt=1 - (treated + floor) / (base + floor),
    )


def _from_gram(given: LookaheadGram, plan: LookaheadPlan, base: FloatArray, floor: float) -> Affinities:
    """Spec E5: A = eta G / L; MT[r] = mean of A over R_r; MH[u] = (A[u] - mean of A over M_u - u) / |M_u|."""
    gram = as_finite("gram", given.gram, (plan.num_domains, plan.num_domains))
    first = given.step_size * gram / (base + floor)
    return Affinities(
        mi=first,
        mh=(first - _mean_rows(plan.others, first)) / plan.sizes[:, None],
        mt=_mean_rows(plan.treatments, first),
    )


def _mean_rows(members: BoolArray, rows: FloatArray) -> FloatArray:
    """Mean of the rows of each set; 0 for an empty set. (n, D) sets over (D, D) rows."""
    counts = np.maximum(members.sum(axis=1), 1)
    mean: FloatArray = (members.astype(np.float64) @ rows) / counts[:, None]
    return mean


def _positive(name: str, losses: FloatArray) -> FloatArray:
    if (losses <= 0).any():
        where = tuple(int(i) for i in np.argwhere(losses <= 0)[0])
        raise MatrixError(f"{name}{list(where)} is {losses[where]}; a loss must be above 0")
    return losses


def smoothed(old: FloatArray | None, new: FloatArray, history_weight: float) -> FloatArray:
    """Mix alpha old + (1 - alpha) new; `new` itself where there is no history."""
    return new if old is None else history_weight * old + (1 - history_weight) * new
