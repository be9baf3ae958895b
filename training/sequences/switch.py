"""Which domains are served by their single view, decided on validation events.

A domain is switched where the mixed view has the higher loss by more than so many standard errors, the limit.
A limit is given, or chosen: validation events are halved many times; one half decides the switch under every
limit, the other tells what the views so chosen are worth. Invariants: nothing here reads a test event; a
limit is judged on no event that it was applied to.

Letters: D domains, m validation events of a domain, L limits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from training.metrics import ndcg_at_k
from training.sequences.judge import Judged

Limit = float | Literal["halves"] | None
LIMITS = (None, 2.0, 1.0, 0.5, 0.0)
"""None never switches. Of equals the first is taken: each switched domain costs a head to serve."""
NUM_HALVINGS = 100
CUT = 10
"""Of the NDCG that limits are compared by, as epochs are."""


@dataclass(frozen=True)
class Transfer:
    """Single against mixed view of one domain, over the same held-out events.

    Attributes:
        phi: Mean of single loss - cross loss, above 0 where the mixed view helps.
        error: Its standard error.
    """

    phi: float
    error: float

    def hurts(self, *, deviations: float) -> bool:
        """Whether the mixed view is worse by more than so many standard errors."""
        return self.phi < -deviations * self.error


def transfer_of(differences: NDArray[np.float64]) -> Transfer | None:
    """Of (m,) single loss - cross loss by event; None for fewer than two."""
    if len(differences) < 2:
        return None
    error = float(differences.std(ddof=1)) / math.sqrt(len(differences))
    return Transfer(float(differences.mean()), error)


def transfer(judged: Judged) -> tuple[Transfer | None, ...] | None:
    """Of each domain, None where nothing known was held out; None for a net without both views."""
    if set(judged) != {"cross", "single"}:
        return None
    return tuple(
        None if cross is None or single is None else transfer_of(single.losses - cross.losses)
        for cross, single in zip(judged["cross"], judged["single"], strict=True)
    )


def switches(
    limit: float | None, found: tuple[Transfer | None, ...] | None, *, num_domains: int
) -> tuple[bool, ...]:
    """(D,) which domains are served by their single view."""
    if found is None or limit is None:
        return (False,) * num_domains
    return tuple(one is not None and one.hurts(deviations=limit) for one in found)


def chosen_limit(limit: Limit, valid: Judged, *, seed: int) -> float | None:
    """The limit itself, or the best of LIMITS where it is `halves`.

    Args:
        limit: What the config says.
        valid: Both views of validation events; a net of one view has nothing to switch.
        seed: Of the halvings.
    """
    if limit != "halves":
        return limit
    if set(valid) != {"cross", "single"}:
        return None
    worth = limit_worths(valid, seed=seed)
    return LIMITS[int(np.argmax(worth))]


def limit_worths(valid: Judged, *, seed: int) -> NDArray[np.float64]:
    """(L,) mean NDCG of the views that each limit chooses on other events, over domains and halvings.

    A half has half the events, so its standard errors are larger by a factor of 1.4 than those the limit is
    used with in the end.
    """
    rng = np.random.default_rng(seed)
    worths: list[NDArray[np.float64]] = []
    for cross, single in zip(valid["cross"], valid["single"], strict=True):
        if cross is None or single is None or len(cross.ranks) < 4:
            continue
        difference = single.losses - cross.losses
        size = len(difference) // 2
        for _ in range(NUM_HALVINGS):
            order = rng.permutation(len(difference))
            for one, other in ((order[:size], order[size:]), (order[size:], order[:size])):
                found = transfer_of(difference[one])
                chosen = [switches(limit, (found,), num_domains=1)[0] for limit in LIMITS]
                mixed, own = ndcg_at_k(cross.ranks[other], CUT), ndcg_at_k(single.ranks[other], CUT)
                worths.append(np.where(chosen, own, mixed))
    return np.mean(worths, axis=0) if worths else np.zeros(len(LIMITS))
