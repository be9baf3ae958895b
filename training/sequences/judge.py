"""How well a net ranks what came next: HR, NDCG and MRR by domain, for the mixed and the single view.

Each held-out event is ranked among items of its own domain, by the events of its user before it: among a
fixed draw of negatives that the user has not met in training, or among all items of the domain. Negatives of
other domains are trivial to reject, and serving ranks inside one domain.

An event of an item that training never met cannot be scored; figures are over the others (`num_known`), and
`all` counts it as ranked last. Invariants: only events before the held-out one are read; candidates depend on
log and seed alone, so that nets are compared on the same ones.

Letters: n held-out events, T most events read, C candidates, r width, D domains.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.contract.schema import FIRST_ID, MISSING_ID
from training.metrics import hit_rate_at_k, mrr, ndcg_at_k, ranks_of_positive
from training.models.acmoe import Side
from training.models.syncrec_net import EventRows, SequenceNet
from training.sequences.errors import SequenceError
from training.sequences.log import EventLog, Ints
from training.sequences.losses import PairLoss, pair_loss

CHUNK = 512
CUTS = (5, 10)
Negatives = int | Literal["full"]


@dataclass(frozen=True, eq=False)
class Candidates:
    """What the held-out events of one domain are ranked among.

    Attributes:
        events: (n,) indices into the log.
        items: (n, C) or, the same for all, (1, C) rows.
        positive: (n,) column of what came next; 0 where its item is unknown.
        known: (n,) bool, whether its item has a row.
    """

    events: Ints
    items: Ints
    positive: Ints
    known: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class ViewRanks:
    """What one view makes of the held-out events of one domain.

    Attributes:
        ranks: (m,) of the m events with a known item, from 0.
        losses: (m,) mean loss of each against its negatives.
        num_events: n.
        num_candidates: C.
    """

    ranks: Ints
    losses: NDArray[np.float64]
    num_events: int
    num_candidates: int

    def figures(self) -> dict[str, float | int]:
        """Named figures, over known items; with the prefix `all_` where unknown ones count as last."""
        found: dict[str, float | int] = {"num": self.num_events, "num_known": len(self.ranks)}
        unknown = np.full(self.num_events - len(self.ranks), self.num_candidates - 1)
        for prefix, ranks in (("", self.ranks), ("all_", np.concatenate([self.ranks, unknown]))):
            if not len(ranks):
                continue
            for k in CUTS:
                found[f"{prefix}hr_{k}"] = hit_rate_at_k(ranks, k)
                found[f"{prefix}ndcg_{k}"] = ndcg_at_k(ranks, k)
            found[f"{prefix}mrr"] = mrr(ranks)
        return found


Judged = dict[Side, tuple[ViewRanks | None, ...]]
"""By view: of each domain, None where nothing was held out."""


def draw_candidates(
    log: EventLog, events: Ints, *, negatives: Negatives, seed: int
) -> tuple[Candidates | None, ...]:
    """Candidates of each domain.

    Args:
        log: The log.
        events: (n,) held-out events.
        negatives: How many to draw for each, or all items of the domain.
        seed: Of the draw.

    Raises:
        SequenceError: A domain has too few items to draw from.
    """
    found: list[Candidates | None] = []
    for domain, pool in enumerate(log.pools):
        own = events[log.domain[events] == domain]
        if not len(own) or not len(pool):
            found.append(None)
            continue
        item = log.item[own]
        known = item >= FIRST_ID
        if negatives == "full":
            known &= np.isin(item, pool)
            positive = np.where(known, np.searchsorted(pool, np.where(known, item, pool[0])), 0)
            found.append(Candidates(own, pool[None, :], positive, known))
            continue
        if len(pool) < 2 * negatives + 1:
            raise SequenceError(
                f"domain '{log.domains[domain]}' has {len(pool)} items, too few to draw {negatives} "
                "negatives from; set ranking.negatives to full"
            )
        drawn = _draw(log, own, pool, count=negatives, rng=np.random.default_rng((seed, domain)))
        items = np.concatenate([np.where(known, item, drawn[:, 0])[:, None], drawn], axis=1)
        found.append(Candidates(own, items, np.zeros(len(own), np.int64), known))
    return tuple(found)


def _draw(log: EventLog, events: Ints, pool: Ints, *, count: int, rng: np.random.Generator) -> Ints:
    """(n, count) distinct items that each event's user has not met and that are not what came next."""
    user, item = log.user_of_event[events], log.item[events]
    found = np.zeros((len(events), count), np.int64)
    for row in range(len(events)):
        draw = rng.choice(pool, size=min(len(pool), 3 * count), replace=False)
        fresh = draw[~log.has_seen(np.full(len(draw), user[row]), draw) & (draw != item[row])]
        if len(fresh) < count:  # a user who has met most of the domain
            left = pool[~log.has_seen(np.full(len(pool), user[row]), pool) & (pool != item[row])]
            fresh = rng.choice(left if len(left) >= count else pool[pool != item[row]], count, replace=False)
        found[row] = fresh[:count]
    return found


def history(log: EventLog, events: Ints, *, max_len: int, domain: int | None = None) -> EventRows:
    """The last T events before each given one, unknown items left out.

    Args:
        log: The log.
        events: (n,) indices.
        max_len: T.
        domain: Only events of this domain, of the last T; None for all.
    """
    first = np.maximum(log.start[log.user_of_event[events]], events - max_len)
    place = first[:, None] + np.arange(max_len)
    before = place < events[:, None]
    place = np.minimum(place, len(log.item) - 1)
    keep = before & (log.item[place] >= FIRST_ID)
    if domain is not None:
        keep &= log.domain[place] == domain
    order = np.argsort(~keep, axis=1, kind="stable")
    kept = np.take_along_axis(keep, order, axis=1)
    place = np.take_along_axis(place, order, axis=1)
    length = keep.sum(axis=1)
    width = max(1, int(length.max(initial=0)))
    rows = np.where(kept, log.item[place], MISSING_ID)[:, :width]
    domains = np.where(kept, log.domain[place], 0)[:, :width]
    return EventRows(torch.from_numpy(rows), torch.from_numpy(domains), torch.from_numpy(length))


@torch.no_grad()
def judge(
    net: SequenceNet,
    log: EventLog,
    candidates: tuple[Candidates | None, ...],
    *,
    max_len: int,
    loss: PairLoss = "bce",
) -> Judged:
    """Rank held-out events with every view the net has; its mode is put back.

    Args:
        net: The net.
        log: The events.
        candidates: Of each domain.
        max_len: T.
        loss: What the net is trained by; views are compared by no other.
    """
    was_training = net.training
    net.eval()
    try:
        return {
            view: tuple(
                _judge_domain(net, log, own, view, domain, max_len=max_len, loss=loss) if own else None
                for domain, own in enumerate(candidates)
            )
            for view in net.views
        }
    finally:
        net.train(was_training)


def _judge_domain(
    net: SequenceNet,
    log: EventLog,
    own: Candidates,
    view: Side,
    domain: int,
    *,
    max_len: int,
    loss: PairLoss,
) -> ViewRanks:
    ranks: list[Ints] = []
    losses: list[NDArray[np.float64]] = []
    device = net.items.weight.device
    known = np.flatnonzero(own.known)
    for start in range(0, len(known), CHUNK):
        mine = known[start : start + CHUNK]
        rows = history(log, own.events[mine], max_len=max_len, domain=domain if view == "single" else None)
        task = torch.full((len(mine),), 1 + domain if view == "single" else 0)
        vectors = net.last(moved(rows, device), task.to(device))
        items = own.items if len(own.items) == 1 else own.items[mine]
        scores = _scores(vectors, net.items(torch.from_numpy(items).to(device))).cpu()
        ranks.append(ranks_of_positive(scores.numpy(), own.positive[mine]))
        losses.append(candidate_losses(scores, torch.from_numpy(own.positive[mine]), form=loss))
    return ViewRanks(
        ranks=np.concatenate([*ranks, np.zeros(0, np.int64)]),
        losses=np.concatenate([*losses, np.zeros(0)]),
        num_events=len(own.events),
        num_candidates=own.items.shape[1],
    )


def moved(rows: EventRows, device: torch.device) -> EventRows:
    """Sequences on a device."""
    return EventRows(rows.items.to(device), rows.domains.to(device), rows.length.to(device), rows.with_holes)


def _scores(vectors: Tensor, items: Tensor) -> Tensor:
    """(n, C) from vectors (n, r) and items (n, C, r) or (1, C, r)."""
    if items.shape[0] == 1:
        return vectors @ items[0].T
    return torch.einsum("nr,ncr->nc", vectors, items)


def candidate_losses(scores: Tensor, positive: Tensor, *, form: PairLoss) -> NDArray[np.float64]:
    """(n,) mean loss of a positive against each other candidate.

    Args:
        scores: (n, C) float32.
        positive: (n,) int64 column of what came next.
        form: The loss.
    """
    own = scores.gather(1, positive.unsqueeze(1))
    others = torch.ones_like(scores).scatter_(1, positive.unsqueeze(1), 0.0)
    total = (pair_loss(own, scores, form=form) * others).sum(dim=1)
    loss: NDArray[np.float64] = (total / max(1, scores.shape[1] - 1)).double().numpy()
    return loss


def figures(
    judged: Judged, domains: tuple[str, ...], use_single: tuple[bool, ...]
) -> dict[str, dict[str, Any]]:
    """Figures by view and domain with their mean over domains; `served` takes each domain's own view."""
    views: dict[str, tuple[ViewRanks | None, ...]] = dict(judged.items())
    if len(judged) == 2:
        chosen = zip(judged["cross"], judged["single"], use_single, strict=True)
        views["served"] = tuple(single if switch else cross for cross, single, switch in chosen)
    found: dict[str, dict[str, Any]] = {}
    for view, ranks in views.items():
        own = {name: r.figures() for name, r in zip(domains, ranks, strict=True) if r is not None}
        names = sorted({key for figure in own.values() for key in figure if not key.startswith("num")})
        mean = {key: float(np.mean([f[key] for f in own.values() if key in f])) for key in names}
        found[view] = {"mean": mean, "domains": own}
    return found
