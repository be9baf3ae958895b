"""How far a mask update may reach, by the number of the update.

Flip rates, the share of edges that gates propose and the number of candidates fall from update to update;
the wanted density falls from 1. Invariant: a function of the number alone, so a run that goes on needs no
state of its own here.

Source: AREAD, arXiv 2412.11905, section HEMP, with the constants of its published code. The wanted density
is ours: the paper speaks of a sparsity and its code has none.
"""

from __future__ import annotations

from dataclasses import dataclass

from training.masks.errors import MaskSearchError


@dataclass(frozen=True)
class UpdateSettings:
    """Settings of one update.

    Attributes:
        sigma: Deviation of the flip rate, which is |N(0, sigma)|, at most 1.
        active: q, share of the gates' edges that are proposed, and density above which flips also delete.
        num_candidates: Z.
        target_density: Density at or below which candidates are no longer pruned beyond the tuning steps.
    """

    sigma: float
    active: float
    num_candidates: int
    target_density: float


@dataclass(frozen=True)
class SearchSchedule:
    """Settings of all updates.

    Attributes:
        sigma, sigma_decay: sigma_k = sigma * sigma_decay^k.
        active, active_decay, active_floor: q_k = max(active_floor, active * active_decay^k).
        candidates, candidates_decay: Z_k = max(1, int(candidates * candidates_decay^k)).
        target_density: Wanted density from update `target_updates` on; 1 prunes in the tuning steps only.
        target_updates: Updates over which the wanted density falls from 1, in equal steps.
    """

    sigma: float = 0.2
    sigma_decay: float = 0.99
    active: float = 0.7
    active_decay: float = 0.95
    active_floor: float = 0.1
    candidates: int = 10
    candidates_decay: float = 0.99
    target_density: float = 0.5
    target_updates: int = 5

    def at(self, update: int) -> UpdateSettings:
        """Settings of update k = 1, 2, ..

        Raises:
            MaskSearchError: A number below 1.
        """
        if update < 1:
            raise MaskSearchError(f"mask update {update}; updates are numbered from 1")
        fallen = min(1.0, update / self.target_updates)
        return UpdateSettings(
            sigma=self.sigma * self.sigma_decay**update,
            active=max(self.active_floor, self.active * self.active_decay**update),
            num_candidates=max(1, int(self.candidates * self.candidates_decay**update)),
            target_density=1.0 - fallen * (1.0 - self.target_density),
        )
