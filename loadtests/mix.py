"""What load is made of: kinds of requests, popular and rare users and items, domains by their size.

Reads a bundle of a model store. Invariant: the same bundle and seed give the same requests in the same order.

Users and items are drawn by Zipf's law over a shuffled list of stored ids, so that near caches are hit as
they would be; some are unknown to the store, as new ones are. Domains are drawn by their rows of training.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from service.contract.bundle import Bundle
from service.contract.ids import read_ids
from service.contract.schema import CategoricalFeature, Entity, VocabularyEncoder
from service.contract.store import ModelStore

ZIPF_EXPONENT: Final = 1.0
UNKNOWN_USER_RATIO: Final = 0.1
UNKNOWN_ITEM_RATIO: Final = 0.02
LEAST_DOMAIN_SHARE: Final = 0.01
SESSIONS_PER_USER: Final = 3


@dataclass(frozen=True)
class Profile:
    """A kind of request.

    Attributes:
        name: As in slo.yaml.
        weight: How many of them there are beside the others.
        fewest, most: Candidates, evenly drawn.
    """

    name: str
    weight: float
    fewest: int
    most: int


PROFILES: Final = {
    profile.name: profile
    for profile in (
        Profile("browse", 8, 10, 100),
        Profile("tiny", 4, 1, 5),
        Profile("heavy", 1, 200, 500),
    )
}


@dataclass(frozen=True)
class Ask:
    """One request to /score.

    Attributes:
        profile: Its kind.
        domain, user, session: Names and ids.
        context: By feature.
        items: Ids of the candidates, each once.
    """

    profile: str
    domain: str
    user: str
    session: str
    context: Mapping[str, str]
    items: tuple[str, ...]

    def body(self) -> bytes:
        """As JSON, items by column."""
        return json.dumps(
            {
                "domain": self.domain,
                "user": {"id": self.user},
                "session_id": self.session,
                "context": self.context,
                "items": {"id": self.items},
            },
            separators=(",", ":"),
        ).encode()


class Zipf:
    """Draws stored ids, the k-th most popular one in proportion to k ** -exponent.

    Args:
        ids: Any order.
        rng: Decides who is popular.
        exponent: Above 0.
    """

    def __init__(self, ids: list[str], rng: np.random.Generator, *, exponent: float = ZIPF_EXPONENT) -> None:
        self._ids: list[str] = [ids[place] for place in rng.permutation(len(ids))]
        self._cumulative: NDArray[np.float64] = np.cumsum(np.arange(1, len(ids) + 1) ** -exponent)

    def one(self, rng: np.random.Generator) -> str:
        """One id."""
        return self._ids[int(self._ranks(rng, 1)[0])]

    def distinct(self, rng: np.random.Generator, count: int) -> list[str]:
        """Different ids, at most as many as there are; drawn, and then filled up by the most popular left."""
        count = min(count, len(self._ids))
        found = dict.fromkeys(self._ranks(rng, 2 * count).tolist())
        for rank in range(len(self._ids)):
            if len(found) >= count:
                break
            found.setdefault(rank)
        return [self._ids[rank] for rank in list(found)[:count]]

    def _ranks(self, rng: np.random.Generator, count: int) -> NDArray[np.intp]:
        """(count,) places in the order of popularity."""
        drawn = rng.random(count) * self._cumulative[-1]
        return np.searchsorted(self._cumulative[:-1], drawn, side="right").astype(np.intp)


class Mix:
    """Draws requests for a bundle.

    Args:
        bundle: With a snapshot of users and items.
        seed: Of everything.
        max_items: Most candidates that the service takes.
    """

    def __init__(self, bundle: Bundle, *, seed: int, max_items: int = 1000) -> None:
        self._rng = np.random.default_rng(seed)
        manifest = bundle.manifest
        users, items = (read_ids(bundle.path / manifest.features[side].ids) for side in ("user", "item"))
        self._users, self._items = Zipf(users, self._rng), Zipf(items, self._rng)
        self._max_items = max_items
        self._domains = list(manifest.domains)
        rows = np.array([manifest.domains[name].num_train_rows for name in self._domains], np.float64)
        weights = np.maximum(rows, max(LEAST_DOMAIN_SHARE * rows.sum(), 1.0))
        self.domain_shares = dict(zip(self._domains, (weights / weights.sum()).tolist(), strict=True))
        self._context = {
            feature.name: encoder.values
            for feature in bundle.schema.of_entity(Entity.CONTEXT)
            if isinstance(feature, CategoricalFeature)
            and isinstance(encoder := bundle.schema.encoder(feature.encoder), VocabularyEncoder)
        }
        self._new_users = 0
        self._new_items = 0

    def draw(self, profile: Profile | None = None) -> Ask:
        """One request, of a given kind or of any."""
        rng = self._rng
        if profile is None:
            kinds = list(PROFILES.values())
            weights = np.array([kind.weight for kind in kinds])
            profile = kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]
        domain = self._domains[int(rng.choice(len(self._domains), p=list(self.domain_shares.values())))]
        user = self._user()
        return Ask(
            profile=profile.name,
            domain=domain,
            user=user,
            session=f"{user}-{rng.integers(SESSIONS_PER_USER)}",
            context={name: values[int(rng.integers(len(values)))] for name, values in self._context.items()},
            items=self._candidates(int(rng.integers(profile.fewest, profile.most + 1))),
        )

    def _user(self) -> str:
        if self._rng.random() < UNKNOWN_USER_RATIO:
            self._new_users += 1
            return f"new-user-{self._new_users}"
        return self._users.one(self._rng)

    def _candidates(self, count: int) -> tuple[str, ...]:
        """Ids of candidates; the number of unknown ones is rounded at random, so that their ratio holds."""
        count = min(count, self._max_items)
        num_new = math.floor(count * UNKNOWN_ITEM_RATIO + self._rng.random())
        known = self._items.distinct(self._rng, count - num_new)
        first = self._new_items
        self._new_items += num_new
        return (*known, *(f"new-item-{number}" for number in range(first, first + num_new)))


def mix_of(store: Path, alias: str = "stable", *, seed: int) -> Mix:
    """A mix for the bundle that an alias names."""
    return Mix(ModelStore(store).open(alias, verify=False), seed=seed)


def as_text(mix: Mix) -> dict[str, Any]:
    """What a report says of a mix."""
    return {
        "profiles": {
            p.name: {"weight": p.weight, "candidates": [p.fewest, p.most]} for p in PROFILES.values()
        },
        "zipf_exponent": ZIPF_EXPONENT,
        "unknown_user_ratio": UNKNOWN_USER_RATIO,
        "unknown_item_ratio": UNKNOWN_ITEM_RATIO,
        "domain_shares": mix.domain_shares,
    }
