"""A pre-training and its onboarded domains in the form of a finished run, which `ctr-export build` reads.

Writes `prepared/` (feature schema and the rows of users and items), `model.pt`, `calibration.json` and, last,
`metrics.json`. Users and items are stored as their entities, so a request may name those of an item
that nobody registered. Invariant: what is written depends on the representation and the domains alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from service.contract.encode import EncodedBlock
from service.contract.files import write_atomic
from service.contract.layout import IDS, VALUES, WEIGHTS, entity_layout
from service.contract.schema import (
    DOMAIN_ENCODER,
    FIRST_ID,
    Entity,
    FeatureSchema,
    MultiFeature,
    NumericFeature,
    StandardiseEncoder,
    VocabularyEncoder,
)
from training.data.entity_rows import EntityRows, write_entities
from training.data.prepared import FORMAT, MANIFEST_FILE, SCHEMA_FILE
from training.engine.artefacts import RunFolder, save_json, save_model
from training.engine.calibrate import GLOBAL_ONLY, Calibrator
from training.hier.domains import OnboardedDomain
from training.hier.factors import Factors
from training.hier.ragged import Ragged
from training.hier.representation import Representation
from training.models.build import build_model
from training.models.config import HierConfig
from training.models.hier import (
    CLICKS_IN,
    ENTITY_ENCODER,
    ITEM_ELSEWHERE,
    ITEM_ENTITIES,
    SEEN_IN,
    USER_ELSEWHERE,
    USER_ENTITIES,
    HierInputs,
    domain_pairs,
    zero_shot_head,
)

MAX_DOMAINS = 8
"""Onboarded domains of which an item or a user keeps what they say: of items, those with most clicks."""
PLAIN_ENCODER = "plain"
LARGEST_RATE = 1e3
CHUNK = 8192


def serving_schema(
    representation: Representation, domains: Sequence[OnboardedDomain], *, max_entities: int
) -> FeatureSchema:
    """The feature schema of the bundle: entities of users and items, and clicks by onboarded domain."""
    names = (*(source.name for source in representation.sources), *(domain.name for domain in domains))
    return FeatureSchema(
        name="hier",
        domains=names,
        encoders={
            ENTITY_ENCODER: VocabularyEncoder(values=representation.vocabulary.names),
            PLAIN_ENCODER: StandardiseEncoder(clip=LARGEST_RATE),
        },
        features=(
            MultiFeature(
                name=USER_ENTITIES,
                entity=Entity.USER,
                encoder=ENTITY_ENCODER,
                max_len=representation.user_entities.shape[1],
                num_weights=1,
                description="entities of clicked items, weighted by log(1 + clicked items)",
            ),
            MultiFeature(
                name=ITEM_ENTITIES,
                entity=Entity.ITEM,
                encoder=ENTITY_ENCODER,
                max_len=max_entities,
                description="what the item is, `kind:value` each",
            ),
            _by_domain(CLICKS_IN, Entity.ITEM, "log(1 + clicks)", "log odds ratio"),
            _by_domain(SEEN_IN, Entity.USER, "log odds ratio"),
            _over_sources(ITEM_ELSEWHERE, Entity.ITEM),
            _over_sources(USER_ELSEWHERE, Entity.USER),
        ),
        pairs=domain_pairs(),
    )


def _by_domain(name: str, entity: Entity, *held: str) -> MultiFeature:
    """What is held of an entity for each onboarded domain that knows it."""
    return MultiFeature(
        name=name,
        entity=entity,
        encoder=DOMAIN_ENCODER,
        max_len=MAX_DOMAINS,
        num_weights=len(held),
        source="statistic",
        description=f"{' and '.join(held)} in each onboarded domain",
    )


def _over_sources(name: str, entity: Entity) -> NumericFeature:
    """The rate of an entity in the source domains."""
    return NumericFeature(
        name=name,
        entity=entity,
        encoder=PLAIN_ENCODER,
        source="statistic",
        description="log odds ratio over the source domains",
    )


def item_registry(
    representation: Representation, domains: Sequence[OnboardedDomain]
) -> tuple[list[str], Ragged]:
    """Ids and entities of all items; one that the sources know keeps what they say of it."""
    known = set(representation.item_ids)
    fresh: dict[str, list[int]] = {}
    for domain in domains:
        fresh |= {identity: rows for identity, rows in domain.items.items() if identity not in known}
    more = Ragged.of(list(fresh.values()))
    sets = representation.item_sets
    starts = np.concatenate([sets.starts, sets.starts[-1] + more.starts[1:]])
    return [*representation.item_ids, *fresh], Ragged(starts, np.concatenate([sets.values, more.values]))


def write_serving(
    run: Path,
    representation: Representation,
    config: HierConfig,
    domains: Sequence[OnboardedDomain],
    *,
    max_entities: int,
) -> None:
    """Write the files.

    Args:
        run: The run folder.
        representation: Of it.
        config: Sizes of the model.
        domains: Onboarded ones, in their order.
        max_entities: Entities of an item that count.
    """
    folder = RunFolder(run)
    folder.metrics.unlink(missing_ok=True)
    schema = serving_schema(representation, domains, max_entities=max_entities)
    _write_prepared(folder.prepared, schema, representation, domains)
    model = build_model(config, schema)
    inputs, ranker = model.inputs, model.ranker
    if isinstance(inputs, HierInputs):
        inputs.fill(representation.tables)
    heads = [*(zero_shot_head(config.width) for _ in representation.sources), *(d.head for d in domains)]
    ranker.get_buffer("heads")[: len(heads)] = torch.tensor(heads, dtype=torch.float32)
    save_model(folder.model, model, config=config, schema=schema)
    lines = [*((s.scale, s.bias) for s in representation.sources), *((d.scale, d.bias) for d in domains)]
    scale, bias = np.array([*lines, representation.fallback], dtype=np.float64).T
    Calibrator(schema.domains, scale, bias, strength=GLOBAL_ONLY).save(folder.calibration)
    save_json(folder.metrics, _metrics(representation, domains))


def _write_prepared(
    folder: Path,
    schema: FeatureSchema,
    representation: Representation,
    domains: Sequence[OnboardedDomain],
) -> None:
    (folder / MANIFEST_FILE).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / SCHEMA_FILE, schema.model_dump_json(indent=1).encode())
    ids, sets = item_registry(representation, domains)
    users = user_registry(representation, domains)
    for entity, rows, names in (
        (Entity.USER, _user_rows(schema, representation, users, domains), users),
        (Entity.ITEM, _item_rows(schema, ids, sets, domains, representation.item_rates), ids),
    ):
        layout = entity_layout(schema, entity)
        block = EntityRows(layout, rows.ints, rows.floats)
        write_entities(folder / "entities" / str(entity), block, names)
    train = {s.name: s.num_train_rows for s in representation.sources} | {d.name: d.num_rows for d in domains}
    valid = {s.name: s.num_valid_rows for s in representation.sources}
    info = {
        "format": FORMAT,
        "name": schema.name,
        "data_digest": representation.facts["data_digest"],
        "schema_digest": schema.digest,
        "feature_time_ms": representation.facts["feature_time_ms"],
        "rows": {"train": sum(train.values()), "valid": sum(valid.values()), "test": 0},
        "domains": {"train": train, "valid": valid, "test": {}},
    }
    write_atomic(folder / MANIFEST_FILE, (json.dumps(info, indent=1) + "\n").encode())


def user_registry(representation: Representation, domains: Sequence[OnboardedDomain]) -> list[str]:
    """Ids of all users: those of the sources, then those who were met in an onboarded domain alone."""
    known = dict.fromkeys(representation.user_ids)
    for domain in domains:
        known |= dict.fromkeys(domain.user_rates)
    return list(known)


def _user_rows(
    schema: FeatureSchema,
    representation: Representation,
    ids: list[str],
    domains: Sequence[OnboardedDomain],
) -> EncodedBlock:
    layout = entity_layout(schema, Entity.USER)
    ints = np.zeros((len(ids), layout.int_width), dtype=np.int32)
    floats = np.zeros((len(ids), layout.float_width), dtype=np.float32)
    known = len(representation.user_ids)
    ints[:known, layout.slot(USER_ENTITIES, IDS).columns] = representation.user_entities
    floats[:known, layout.slot(USER_ENTITIES, WEIGHTS).columns] = representation.user_weights
    floats[:known, layout.slot(USER_ELSEWHERE, VALUES).start] = representation.user_rates
    place, weight = layout.slot(SEEN_IN, IDS).start, layout.slot(SEEN_IN, WEIGHTS).start
    slots = {identity: slot for slot, identity in enumerate(ids)}
    held = np.zeros(len(ids), dtype=np.int64)
    for domain in domains:
        for identity, rate in domain.user_rates.items():
            slot = slots[identity]
            if held[slot] < MAX_DOMAINS:
                ints[slot, place + held[slot]] = FIRST_ID + schema.domain_index(domain.name)
                floats[slot, weight + held[slot]] = rate
                held[slot] += 1
    return EncodedBlock(ints, floats)


def _item_rows(
    schema: FeatureSchema,
    ids: list[str],
    sets: Ragged,
    domains: Sequence[OnboardedDomain],
    elsewhere: NDArray[np.float32],
) -> EncodedBlock:
    layout = entity_layout(schema, Entity.ITEM)
    ints = np.zeros((len(ids), layout.int_width), dtype=np.int32)
    floats = np.zeros((len(ids), layout.float_width), dtype=np.float32)
    place = layout.slot(ITEM_ENTITIES, IDS)
    held, _ = sets.take(np.arange(len(ids), dtype=np.int64))
    ints[:, place.start : place.start + held.shape[1]] = held
    clicked, weight = layout.slot(CLICKS_IN, IDS).start, layout.slot(CLICKS_IN, WEIGHTS).start
    floats[: len(elsewhere), layout.slot(ITEM_ELSEWHERE, VALUES).start] = elsewhere
    counts: dict[str, list[tuple[int, int, float]]] = {}
    for domain in domains:
        index = FIRST_ID + schema.domain_index(domain.name)
        for identity, rate in domain.item_rates.items():
            counts.setdefault(identity, []).append((-domain.item_clicks.get(identity, 0), index, rate))
    slots = {identity: slot for slot, identity in enumerate(ids)}
    for identity, found in counts.items():
        for number, (count, index, rate) in enumerate(sorted(found)[:MAX_DOMAINS]):
            ints[slots[identity], clicked + number] = index
            pair = slice(weight + 2 * number, weight + 2 * number + 2)
            floats[slots[identity], pair] = np.log1p(-count), rate
    return EncodedBlock(ints, floats)


def _metrics(representation: Representation, domains: Sequence[OnboardedDomain]) -> dict[str, Any]:
    """What `metrics.json` says: figures of sources, and for each onboarded domain how it stands."""
    figures: dict[str, dict[str, Any]] = {
        source.name: {"rows": source.num_valid_rows, "auc": source.auc, "mean_score": source.mean_score}
        for source in representation.sources
    }
    figures |= {domain.name: {"mean_score": domain.mean_score} for domain in domains}
    facts = representation.facts
    return {
        "model": "hier",
        "finished_at": facts["finished_at"],
        "valid": {
            "rows": sum(source.num_valid_rows for source in representation.sources),
            "ndcg": facts["ndcg"],
            "open_gates": facts["open_gates"],
            "domains": figures,
        },
        "representation": representation.version,
        "onboarded": {
            domain.name: {
                "coverage": domain.coverage,
                "rows": domain.num_rows,
                "clicks": domain.num_clicks,
                "line": domain.stage,
                "items": len(domain.items),
            }
            for domain in domains
        },
    }


@torch.no_grad()
def stored_factors(
    representation: Representation, config: HierConfig, schema: FeatureSchema, sets: Ragged
) -> Factors:
    """U and V of the stored users and of items (n lists), by the serving model itself."""
    inputs = HierInputs(schema, **config.model_dump(exclude={"type"}))
    inputs.fill(representation.tables)
    inputs.eval()
    users = _user_rows(schema, representation, representation.user_ids, ())
    empty, size = torch.zeros((0, 0)), len(representation.tables["mean_user"])
    left = [
        inputs.request_side(
            torch.from_numpy(users.ints[i : i + CHUNK]),
            torch.from_numpy(users.floats[i : i + CHUNK]),
            empty,
            empty,
            None,
        )[0].numpy()[:, :size]
        for i in range(0, len(users), CHUNK)
    ]
    items = _item_rows(schema, [""] * len(sets), sets, (), np.zeros(0, dtype=np.float32))
    right = [
        inputs.row_side(
            torch.from_numpy(items.ints[i : i + CHUNK]),
            torch.from_numpy(items.floats[i : i + CHUNK]),
            torch.zeros((len(items.ints[i : i + CHUNK]), 3)),
        )[0].numpy()[:, :size]
        for i in range(0, len(items), CHUNK)
    ]
    none = np.zeros((0, size), dtype=np.float32)
    return Factors(
        users=np.concatenate([none, *left]),
        items=np.concatenate([none, *right]),
        mean_user=representation.tables["mean_user"].numpy(),
        width=config.width,
    )
