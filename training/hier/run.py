"""A pre-training run: prepared data in, a run folder out, which is exported and onboards domains.

Reads a prepared data set and, where the config names one, a file of triples. Invariant: with a domain held
out, none of its clicks is read: neither by the graph, nor by the loss, nor by users' sets, nor by lines.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from service.contract.schema import Entity
from training.data.prepared import PreparedDataset
from training.engine.calibrate import Calibrator, fit_calibrator, identity_calibrator
from training.engine.files import write_text
from training.hier.config import PretrainConfig
from training.hier.factors import Factors, compute_factors
from training.hier.pretrain import Told
from training.hier.ragged import IntArray
from training.hier.rates import DEFAULT_PRIOR, Elsewhere
from training.hier.rehearsal import make_stages, rehearse
from training.hier.representation import Representation, SourceDomain, serving_tables, stored_users
from training.hier.source import SourceData, train_network
from training.metrics import auc


def run_pretraining(
    prepared: PreparedDataset, config: PretrainConfig, out: Path, *, data: Path | None, told: Told
) -> Representation:
    """Pre-train and write what is left of it, not yet in the form that export reads."""
    source = SourceData(prepared, config, data)
    net, found = train_network(source, told)
    factors = compute_factors(net, source.bags, source.item_sets)
    lines = _source_lines(source, factors)
    users, entities, weights = stored_users(source.bags, source.train.user)
    ids = prepared.entity_ids(Entity.USER)
    rehearsed = rehearse(make_stages(source, number=config.rehearsals)) if config.rehearsals else None
    elsewhere = Elsewhere.count(
        source.train,
        num_items=len(source.item_sets),
        num_users=len(source.bags),
        prior=DEFAULT_PRIOR if rehearsed is None else rehearsed.start.prior,
    )
    representation = Representation(
        vocabulary=source.vocabulary,
        encoders=source.encoders,
        tables=serving_tables(net, factors.mean_user),
        user_ids=[ids[i] for i in users.tolist()],
        user_entities=entities,
        user_weights=weights,
        user_rates=elsewhere.users[users].astype(np.float32),
        item_rates=elsewhere.items.astype(np.float32),
        start=None if rehearsed is None else rehearsed.start,
        item_ids=source.item_ids,
        item_sets=source.item_sets,
        sources=tuple(
            _described(source, factors, lines, index)
            for index in range(prepared.schema.num_domains)
            if index != source.held_out
        ),
        fallback=(float(lines.scale[-1]), float(lines.bias[-1])),
        facts={
            "data_digest": prepared.data_digest,
            "feature_time_ms": prepared.feature_time_ms,
            "graph_digest": source.graph.digest,
            "num_edges": len(source.graph.head),
            "ndcg": found.ndcg,
            "step": found.step,
            "open_gates": found.open_share,
            "rehearsed": None if rehearsed is None else rehearsed.stages,
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )
    representation.save(out)
    write_text(out / "config.yaml", config.to_yaml())
    return representation


def _source_lines(source: SourceData, factors: Factors) -> Calibrator:
    """Lines of all domains from validation rows; the identity where there are not both labels."""
    rows, names = source.valid, source.prepared.schema.domains
    if len(np.unique(rows.label)) < 2:
        return identity_calibrator(names)
    return fit_calibrator(
        logits=factors.score(rows.user, rows.item),
        labels=rows.label,
        domains=rows.domain,
        users=rows.user,
        domain_names=names,
    )


def mean_item(factors: Factors, items: IntArray) -> tuple[float, ...]:
    """(d,) mean x_v of items (n,); empty without items."""
    if not len(items):
        return ()
    return tuple(float(value) for value in factors.items[items][:, : factors.width].mean(axis=0))


def _described(source: SourceData, factors: Factors, lines: Calibrator, index: int) -> SourceDomain:
    train, valid = source.train.of(index), source.valid.of(index)
    logits = factors.score(valid.user, valid.item)
    both = len(np.unique(valid.label)) == 2
    return SourceDomain(
        name=source.prepared.schema.domains[index],
        num_train_rows=len(train),
        num_valid_rows=len(valid),
        rate=float(train.label.mean()) if len(train) else None,
        scale=float(lines.scale[index]),
        bias=float(lines.bias[index]),
        auc=float(auc(valid.label, logits)) if both else None,
        mean_score=float(lines.apply(logits, valid.domain).mean()) if len(valid) else None,
        mean_item=mean_item(factors, np.unique(train.item)),
    )
