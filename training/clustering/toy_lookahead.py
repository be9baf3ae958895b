"""Lookahead for logistic regression in numpy: the smallest model that delivers what an update needs.

Reads features and labels of equal-sized batches, one per domain; gives `LookaheadLosses` or `LookaheadGram`.
Invariant: stateless steps, each one step on the mean gradient of its set. The planted
experiment and the tests stand on it; real models have their own lookahead.
"""

from collections.abc import Callable

import numpy as np

from training.clustering.affinity import LookaheadGram, LookaheadLosses, LookaheadPlan
from training.clustering.arrays import BoolArray, FloatArray

MeasureLosses = Callable[[FloatArray], FloatArray]
"""(n, p) parameter vectors -> (n, D) mean losses."""


def domain_gradients(theta: FloatArray, features: FloatArray, labels: FloatArray) -> FloatArray:
    """Gradient of the mean cross-entropy of each domain.

    Args:
        theta: (p,) weights.
        features: (D, B, p).
        labels: (D, B) 0 or 1.

    Returns:
        (D, p).
    """
    error = 1 / (1 + np.exp(-(features @ theta))) - labels
    gradients: FloatArray = np.einsum("db,dbp->dp", error, features) / features.shape[1]
    return gradients


def domain_losses(thetas: FloatArray, features: FloatArray, labels: FloatArray) -> FloatArray:
    """Mean cross-entropy of each domain under each parameter vector.

    Args:
        thetas: (n, p).
        features: (D, B, p).
        labels: (D, B).

    Returns:
        (n, D) nats per row.
    """
    logits = np.einsum("dbp,np->ndb", features, thetas, optimize=True)
    losses: FloatArray = (np.logaddexp(0, logits) - labels * logits).mean(axis=2)
    return losses


def after_steps(theta: FloatArray, gradients: FloatArray, sets: BoolArray, step_size: float) -> FloatArray:
    """Theta_A of each set by gradient reuse; theta itself for an empty set.

    Args:
        theta: (p,).
        gradients: (D, p).
        sets: (n, D).
        step_size: eta.

    Returns:
        (n, p).
    """
    counts = np.maximum(sets.sum(axis=1), 1)[:, None]
    stepped: FloatArray = theta - step_size * (sets.astype(np.float64) @ gradients) / counts
    return stepped


def exact_lookahead(
    theta: FloatArray,
    gradients: FloatArray,
    plan: LookaheadPlan,
    measure: MeasureLosses,
    *,
    step_size: float,
) -> LookaheadLosses:
    """Losses after every step of the plan.

    Args:
        theta: (p,).
        gradients: (D, p) on B_u.
        plan: Sets to step on.
        measure: Losses on E_v.
        step_size: eta.
    """

    def after(sets: BoolArray) -> FloatArray:
        return measure(after_steps(theta, gradients, sets, step_size))

    return LookaheadLosses(
        base=measure(theta[None])[0],
        after_single=after(np.eye(plan.num_domains, dtype=bool)),
        after_companions=after(plan.companions),
        after_others=after(plan.others),
        after_treatments=after(plan.treatments),
    )


def first_order_lookahead(
    base: FloatArray, gradients: FloatArray, eval_gradients: FloatArray, *, step_size: float
) -> LookaheadGram:
    """Gram matrix of gradients on B_u (rows) and on E_v (columns).

    Args:
        base: (D,) losses on E_v.
        gradients: (D, p) on B_u.
        eval_gradients: (D, p) on E_v.
        step_size: eta.
    """
    return LookaheadGram(base=base, gram=gradients @ eval_gradients.T, step_size=step_size)
