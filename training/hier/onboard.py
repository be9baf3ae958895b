"""Onboard a domain: its items by their attributes, its line from a prior, its head as clicks arrive.

Nothing is trained but a line and a linear head. Invariant: a domain too few of whose items share an
entity with the sources is refused, with the share; what was onboarded before stays as it was.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.engine.platt import sigmoid
from training.hier.config import PretrainConfig, load_pretrain_config
from training.hier.domain_line import DomainLine, line_from_prior, refitted_line
from training.hier.domains import NAME_PATTERN, OnboardedDomain, load_domains
from training.hier.entities import coverage
from training.hier.errors import OnboardError
from training.hier.factors import Factors
from training.hier.head import DEFAULT_STRENGTH, fit_head, head_inputs, popularity_before
from training.hier.onboard_files import LabelledRows, read_items, read_labels
from training.hier.ragged import IntArray, Ragged
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
    strength: float = DEFAULT_STRENGTH,
) -> OnboardedDomain:
    """Register a domain, or refit one that is registered, and write the run anew.

    Args:
        run: Folder of a `ctr-train pretrain`.
        name: Of the domain.
        items: File of its items.
        prior_rate: Click rate that is expected; None takes the median of the sources.
        labels: File of its labelled impressions so far; None without any.
        strength: Pull of the head to the zero-shot score.

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

    def fitted(
        self,
        name: str,
        order: int,
        *,
        covered: float,
        rows: LabelledRows | None,
        rate: float,
        strength: float,
    ) -> OnboardedDomain:
        """The domain with its line and head."""
        users, items = self._sample()
        inputs = head_inputs(self.factors, users, items, np.zeros(len(users)))
        head = np.asarray(zero_shot_head(self.factors.width))
        slopes = [source.scale for source in self.representation.sources]
        line = line_from_prior(inputs @ head, scale=float(np.median(slopes)), rate=rate)
        clicks: dict[str, int] = {}
        num_rows = num_clicks = 0
        if rows is not None:
            users, items, labels = self._located(rows)
            num_rows, num_clicks = len(labels), int(labels.sum())
            counts = np.bincount(items[labels > 0], minlength=len(self.ids))
            clicks = {self.ids[i]: int(counts[i]) for i in np.flatnonzero(counts).tolist()}
            head, line = self._refitted(users, items, labels, line=line, strength=strength)
        popularity = np.log1p([clicks.get(self.ids[i], 0) for i in items.tolist()])
        sample = head_inputs(self.factors, users, items, np.asarray(popularity, dtype=np.float64)) @ head
        return OnboardedDomain(
            name=name,
            version=self.representation.version,
            order=order,
            items=dict(zip(self.ids, self.rows, strict=True)),
            item_clicks=clicks,
            num_rows=num_rows,
            num_clicks=num_clicks,
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
        users: IntArray,
        items: IntArray,
        labels: NDArray[np.float32],
        *,
        line: DomainLine,
        strength: float,
    ) -> tuple[NDArray[np.float64], DomainLine]:
        """Head from 50 rows on, then the line on what it gives."""
        inputs = head_inputs(self.factors, users, items, popularity_before(items, labels))
        head = np.asarray(zero_shot_head(self.factors.width))
        if len(labels) >= MIN_HEAD_ROWS:
            head = fit_head(inputs, labels, scale=line.scale, bias=line.bias, strength=strength)
        return head, refitted_line(line, inputs @ head, labels.astype(np.float64))

    def _sample(self) -> tuple[IntArray, IntArray]:
        """Random users with random items, as requests may bring them together."""
        rng = np.random.default_rng(SAMPLE_SEED)
        users = rng.integers(0, len(self.factors.users), SAMPLE_ROWS)
        return users, rng.integers(0, len(self.ids), SAMPLE_ROWS)

    def _located(self, rows: LabelledRows) -> tuple[IntArray, IntArray, NDArray[np.float32]]:
        """Slots of users (-1 where not known) and of items; rows of items that are not listed are refused."""
        user_slots = {identity: slot for slot, identity in enumerate(self.representation.user_ids)}
        item_slots = {identity: slot for slot, identity in enumerate(self.ids)}
        if strangers := sorted(set(rows.items) - set(item_slots)):
            raise OnboardError(
                f"labels of item '{strangers[0]}', which the items file does not list; "
                f"{len(strangers)} items are not listed"
            )
        users = np.array([user_slots.get(identity, -1) for identity in rows.users], dtype=np.int64)
        items = np.array([item_slots[identity] for identity in rows.items], dtype=np.int64)
        return users, items, rows.labels

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
