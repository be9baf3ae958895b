"""Onboard a domain: its items by their attributes, its line from a prior, its head as clicks arrive.

Nothing is trained but a line and a linear head. Invariant: a domain too few of whose items share an
entity with the sources is refused, with the share; what was onboarded before stays as it was.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.engine.platt import sigmoid
from training.hier.clicks import Impressions
from training.hier.config import PretrainConfig, load_pretrain_config
from training.hier.domain_line import DomainLine, line_from_prior, refitted_line
from training.hier.domains import NAME_PATTERN, OnboardedDomain, load_domains
from training.hier.entities import coverage
from training.hier.errors import OnboardError
from training.hier.factors import Factors
from training.hier.head import DEFAULT_STRENGTH, fit_head, head_inputs
from training.hier.onboard_files import LabelledRows, read_items, read_labels
from training.hier.ragged import IntArray, Ragged
from training.hier.rates import DEFAULT_PRIOR, Counted, Elsewhere, columns_before
from training.hier.representation import Representation
from training.hier.serving import serving_schema, stored_factors, write_serving
from training.models.hier import zero_shot_head

MIN_COVERAGE = 0.6
MIN_HEAD_ROWS = 50
SAMPLE_ROWS = 2000
SAMPLE_SEED = 17


def onboard(
    run: Path,
    name: str,
    items: Path,
    *,
    prior_rate: float | None = None,
    labels: Path | None = None,
    strength: float | None = None,
) -> OnboardedDomain:
    """Register a domain, or refit one that is registered, and write the run anew.

    Args:
        run: Folder of a `ctr-train pretrain`.
        name: Of the domain.
        items: File of its items.
        prior_rate: Click rate that is expected; None takes the median of the sources.
        labels: File of its labelled impressions so far; None without any.
        strength: Pull of the head to its start; None takes what the rehearsals found.

    Raises:
        OnboardError: The name is taken or unusable, the run is not finished, a file cannot be used, or too
            few items have a known entity.
    """
    config, representation = open_run(run)
    others = load_domains(run, representation.version)
    _check_name(name, representation)
    ids, names = read_items(items, representation)
    sets = representation.vocabulary.sets(names, limit=config.graph.max_entities)
    covered = require_coverage(name, sets, representation)
    before = next((domain for domain in others if domain.name == name), None)
    others = [domain for domain in others if domain.name != name]
    order = before.order if before else 1 + max((domain.order for domain in others), default=-1)
    start = _Start(config, representation, ids, sets)
    domain = start.fitted(
        name,
        order,
        covered=covered,
        rows=None if labels is None else read_labels(labels),
        rate=_prior(prior_rate, representation),
        strength=strength,
    )
    domain.save(run)
    publishable = sorted([*others, domain], key=lambda own: own.order)
    write_serving(run, representation, config.model, publishable, max_entities=config.graph.max_entities)
    return domain


def open_run(run: Path) -> tuple[PretrainConfig, Representation]:
    """Config and representation of a finished pre-training."""
    representation = Representation.load(run)
    return load_pretrain_config(run / "config.yaml"), representation


def _check_name(name: str, representation: Representation) -> None:
    if not NAME_PATTERN.match(name):
        raise OnboardError(f"domain '{name}' must match {NAME_PATTERN.pattern}")
    if name in {source.name for source in representation.sources}:
        raise OnboardError(f"domain '{name}' is one of the sources, which are served already")


def require_coverage(name: str, sets: Ragged, representation: Representation) -> float:
    """Share of items with a known entity.

    Raises:
        OnboardError: It is below 60 %.
    """
    covered = coverage(sets)
    if covered < MIN_COVERAGE:
        kinds = sorted({known.partition(":")[0] for known in representation.vocabulary.names})
        raise OnboardError(
            f"domain '{name}': {covered:.1%} of its {len(sets)} items have an entity that the sources know, "
            f"at least {MIN_COVERAGE:.0%} are needed to score them without clicks; serve it by popularity or "
            f"by priors, or give more attributes (known kinds: {', '.join(kinds)})"
        )
    return covered


def _prior(given: float | None, representation: Representation) -> float:
    if given is not None:
        return given
    rates = [source.rate for source in representation.sources if source.rate]
    if not rates or float(np.median(rates)) >= 1.0:
        raise OnboardError("the sources have no impressions to take a click rate from: give --prior-ctr")
    return float(np.median(rates))


class _Start:
    """The items of a domain under the frozen tables."""

    def __init__(
        self, config: PretrainConfig, representation: Representation, ids: list[str], sets: Ragged
    ) -> None:
        self.representation = representation
        self.ids = ids
        known = {identity: slot for slot, identity in enumerate(representation.item_ids)}
        stored = representation.item_sets
        # An item that the sources know keeps what they say of it, here as in the bundle.
        self.rows = [
            stored.values[stored.starts[known[identity]] : stored.starts[known[identity] + 1]].tolist()
            if identity in known
            else sets.values[sets.starts[i] : sets.starts[i + 1]].tolist()
            for i, identity in enumerate(ids)
        ]
        schema = serving_schema(representation, (), max_entities=config.graph.max_entities)
        self.factors: Factors = stored_factors(representation, config.model, schema, Ragged.of(self.rows))
        elsewhere = np.append(representation.item_rates, 0.0)
        self.item_rates = elsewhere[[known.get(identity, len(elsewhere) - 1) for identity in ids]]
        start = representation.start
        self.head = np.asarray(zero_shot_head(config.model.width) if start is None else start.head)
        self.prior = DEFAULT_PRIOR if start is None else start.prior
        self.strength = DEFAULT_STRENGTH if start is None else start.strength
        # A start is in log odds, the score is not.
        slopes = [source.scale for source in representation.sources]
        self.scale = float(np.median(slopes)) if start is None else 1.0

    def fitted(
        self,
        name: str,
        order: int,
        *,
        covered: float,
        rows: LabelledRows | None,
        rate: float,
        strength: float | None,
    ) -> OnboardedDomain:
        """The domain with its line and head."""
        own, user_ids = self._located(rows)
        factors, elsewhere = self._with_users(user_ids)
        counted = Counted.of(own, elsewhere, prior=self.prior)
        users, items = self._sample()
        unseen = Counted.of(own.where(np.zeros(0, dtype=np.int64)), elsewhere, prior=self.prior)
        head = self.head
        fresh = head_inputs(factors, users, items, unseen.columns(users, items)) @ head
        line = line_from_prior(fresh, scale=self.scale, rate=rate)
        if len(own):
            before = columns_before(own, elsewhere, prior=self.prior)
            inputs = head_inputs(factors, own.user, own.item, before)
            head, line = self._refitted(inputs, own.label, line=line, strength=strength)
            users, items = own.user, own.item
        sample = head_inputs(factors, users, items, counted.columns(users, items)) @ head
        shown = np.unique(own.item).tolist()
        return OnboardedDomain(
            name=name,
            version=self.representation.version,
            order=order,
            items=dict(zip(self.ids, self.rows, strict=True)),
            item_clicks={self.ids[i]: round(float(np.expm1(counted.popularity[i]))) for i in shown},
            item_rates={self.ids[i]: float(counted.items_here[i]) for i in shown},
            user_rates={user_ids[u]: float(counted.users_here[u]) for u in np.unique(own.user).tolist()},
            num_rows=len(own),
            num_clicks=int(own.label.sum()),
            coverage=covered,
            head=[float(weight) for weight in head],
            scale=line.scale,
            bias=line.bias,
            stage=line.stage,
            mean_score=float(sigmoid(line.scale * sample + line.bias).mean()),
            nearest=self._nearest(),
        )

    def _refitted(
        self,
        inputs: NDArray[np.float64],
        labels: NDArray[np.float32],
        *,
        line: DomainLine,
        strength: float | None,
    ) -> tuple[NDArray[np.float64], DomainLine]:
        """Head from 50 rows on, then the line on what it gives."""
        head = self.head
        if len(labels) >= MIN_HEAD_ROWS:
            pull = self.strength if strength is None else strength
            head = fit_head(inputs, labels, scale=line.scale, bias=line.bias, strength=pull, start=self.head)
        return head, refitted_line(line, inputs @ head, labels.astype(np.float64))

    def _sample(self) -> tuple[IntArray, IntArray]:
        """Random users with random items, as requests may bring them together."""
        rng = np.random.default_rng(SAMPLE_SEED)
        users = rng.integers(0, len(self.factors.users), SAMPLE_ROWS)
        return users, rng.integers(0, len(self.ids), SAMPLE_ROWS)

    def _located(self, rows: LabelledRows | None) -> tuple[Impressions, list[str]]:
        """Labelled rows by slots, and the ids of all users: the stored ones, then those met here alone.

        Raises:
            OnboardError: An item is not listed.
        """
        user_ids = list(self.representation.user_ids)
        if rows is None:
            none = np.zeros(0, dtype=np.int64)
            return Impressions(none, none, none, np.zeros(0, dtype=np.float32)), user_ids
        item_slots = {identity: slot for slot, identity in enumerate(self.ids)}
        if strangers := sorted(set(rows.items) - set(item_slots)):
            raise OnboardError(
                f"labels of item '{strangers[0]}', which the items file does not list; "
                f"{len(strangers)} items are not listed"
            )
        user_ids = list(dict.fromkeys([*user_ids, *rows.users]))
        user_slots = {identity: slot for slot, identity in enumerate(user_ids)}
        users = np.array([user_slots[identity] for identity in rows.users], dtype=np.int64)
        items = np.array([item_slots[identity] for identity in rows.items], dtype=np.int64)
        return Impressions(users, items, np.zeros(len(users), dtype=np.int64), rows.labels), user_ids

    def _with_users(self, user_ids: list[str]) -> tuple[Factors, Elsewhere]:
        """Vectors and rates of all users; those met here alone have the mean and 0."""
        more = len(user_ids) - len(self.factors.users)
        users = np.concatenate([self.factors.users, np.tile(self.factors.mean_user, (more, 1))])
        rates = np.concatenate([self.representation.user_rates, np.zeros(more)]).astype(np.float64)
        return replace(self.factors, users=users), Elsewhere(self.item_rates.astype(np.float64), rates)

    def _nearest(self) -> tuple[str, float] | None:
        """The source whose mean item has the largest cosine with that of the domain."""
        own = self.factors.items[:, : self.factors.width].mean(axis=0)
        best: tuple[str, float] | None = None
        for source in self.representation.sources:
            if source.mean_item:
                other = np.asarray(source.mean_item)
                size = float(np.linalg.norm(own) * np.linalg.norm(other))
                cosine = float(own @ other) / size if size else 0.0
                best = (source.name, cosine) if best is None or cosine > best[1] else best
        return best
