"""A small real bundle without training: every feature kind, two ONNX graphs, three domains, a snapshot.

    p = sigmoid(scale_d * (U[request_index] + I + t_d) + bias_d)
    U = sum of user and context id weights + numbers . w;   I = the same of the item

`reference` evaluates that formula in plain numpy: the second opinion on every score.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.contract.bundle import Bundle
from service.contract.encode import EncodedBlock, EntityEncoder
from service.contract.manifest import (
    Calibration,
    DomainEntry,
    Graph,
    Manifest,
    Provenance,
    SnapshotFiles,
    UnknownDomain,
)
from service.contract.schema import (
    BucketiseEncoder,
    CategoricalFeature,
    Entity,
    FeatureSchema,
    HashEncoder,
    LookupPair,
    MultiFeature,
    NumericFeature,
    SequenceFeature,
    SequenceField,
    StandardiseEncoder,
    VocabularyEncoder,
)
from service.contract.store import ModelStore
from service.scoring.golden import write_golden
from tests.support.linear_graph import Weights, graph_inputs, make_weights, reference, write_graph

NUM_USERS = 20
NUM_ITEMS = 120
DOMAINS = ("home", "sport", "music")
GRAPH_OF = {"home": "whole", "sport": "whole", "music": "cluster-1"}
UNLISTED = len(DOMAINS)


def make_schema() -> FeatureSchema:
    """Every kind of feature and encoder once."""
    user, item, context = Entity.USER, Entity.ITEM, Entity.CONTEXT
    return FeatureSchema(
        name="small",
        domains=DOMAINS,
        encoders={
            "user": VocabularyEncoder(values=tuple(f"u{i}" for i in range(NUM_USERS))),
            "item": VocabularyEncoder(values=tuple(f"i{i}" for i in range(NUM_ITEMS))),
            "tag": HashEncoder(num_buckets=16, seed=7),
            "age": BucketiseEncoder(boundaries=(18.0, 30.0, 50.0)),
            "price": StandardiseEncoder(mean=2.0, std=0.5, transform="log1p", clip=4.0),
            "plain": StandardiseEncoder(),
            "hour": VocabularyEncoder(values=tuple(str(h) for h in range(24))),
        },
        features=(
            CategoricalFeature(name="user_id", entity=user, encoder="user", is_id=True),
            NumericFeature(name="age", entity=user, encoder="age"),
            MultiFeature(name="tastes", entity=user, encoder="domain", max_len=3, num_weights=1),
            SequenceFeature(
                name="history",
                entity=user,
                max_len=4,
                fields=(
                    SequenceField(name="item", encoder="item"),
                    SequenceField(name="domain", encoder="domain"),
                ),
            ),
            CategoricalFeature(name="item_id", entity=item, encoder="item", is_id=True),
            CategoricalFeature(name="tag", entity=item, encoder="tag"),
            NumericFeature(name="price", entity=item, encoder="price"),
            NumericFeature(name="vector", entity=item, encoder="plain", width=3),
            CategoricalFeature(name="hour", entity=context, encoder="hour"),
        ),
        pairs=(LookupPair(name="taste_here", holder="tastes", key="domain"),),
    )


@dataclass(frozen=True)
class SmallBundle:
    """What tests need to know of a published bundle."""

    store: Path
    bundle: Bundle
    schema: FeatureSchema
    weights: dict[str, Weights]
    users: EncodedBlock
    items: EncodedBlock

    def expected(
        self,
        domain: str,
        user: dict[str, list[Any]],
        items: dict[str, list[Any]],
        context: dict[str, list[Any]],
    ) -> NDArray[np.float64]:
        """Scores of raw columns (1 user row, N item rows) by the formula, without the service."""
        encode = {entity: EntityEncoder(self.schema, entity).encode for entity in Entity}
        num_items = len(next(iter(items.values())))
        blocks = {
            Entity.USER: encode[Entity.USER](user, 1),
            Entity.CONTEXT: encode[Entity.CONTEXT](context, 1),
            Entity.ITEM: encode[Entity.ITEM](items, num_items),
        }
        index = np.array([self.schema.domain_index(domain)])
        graph = GRAPH_OF.get(domain, "whole")
        return reference(self.weights[graph], blocks, index, np.zeros(num_items, np.int64))

    def expected_stored(self, domain: str, user: int | None, items: list[int | None]) -> NDArray[np.float64]:
        """Scores of stored rows by number; None is an id that is not stored."""

        def rows(entity: Entity, block: EncodedBlock, wanted: list[int | None]) -> EncodedBlock:
            out = EntityEncoder(self.schema, entity).defaults(len(wanted))
            for place, row in enumerate(wanted):
                if row is not None:
                    out.ints[place], out.floats[place] = block.ints[row], block.floats[row]
            return out

        blocks = {
            Entity.USER: rows(Entity.USER, self.users, [user]),
            Entity.CONTEXT: EntityEncoder(self.schema, Entity.CONTEXT).defaults(1),
            Entity.ITEM: rows(Entity.ITEM, self.items, items),
        }
        index = np.array([self.schema.domain_index(domain)])
        graph = GRAPH_OF.get(domain, "whole")
        return reference(self.weights[graph], blocks, index, np.zeros(len(items), np.int64))


def user_columns(rng: np.random.Generator) -> dict[str, list[Any]]:
    """Raw features of the stored users; empty, short and full histories."""
    events = [
        [{"item": f"i{rng.integers(NUM_ITEMS)}", "domain": str(rng.choice(DOMAINS))} for _ in range(i % 6)]
        for i in range(NUM_USERS)
    ]
    tastes = [
        {"ids": ["home", "music"], "weights": [0.1 * i, 0.5]} if i % 3 else None for i in range(NUM_USERS)
    ]
    return {
        "user_id": [f"u{i}" for i in range(NUM_USERS)],
        "age": [None if i % 5 == 0 else int(rng.integers(10, 80)) for i in range(NUM_USERS)],
        "tastes": tastes,
        "history": events,
    }


def item_columns(rng: np.random.Generator) -> dict[str, list[Any]]:
    """Raw features of the stored items."""
    return {
        "item_id": [f"i{i}" for i in range(NUM_ITEMS)],
        "tag": [f"tag-{rng.integers(12)}" for _ in range(NUM_ITEMS)],
        "price": [float(rng.uniform(0, 50)) for _ in range(NUM_ITEMS)],
        "vector": [rng.normal(size=3).tolist() for _ in range(NUM_ITEMS)],
    }


Golden = dict[str, tuple[dict[str, NDArray[Any]], NDArray[np.float32]]]


def golden_rows(
    schema: FeatureSchema, weights: dict[str, Weights], users: EncodedBlock, items: EncodedBlock
) -> Golden:
    """Two requests per graph, scored by the formula: known rows, and a user and items not stored."""
    defaults = {entity: EntityEncoder(schema, entity).defaults(1) for entity in Entity}
    rows: Golden = {}
    for graph, own in weights.items():
        block = {
            Entity.USER: _stack(EncodedBlock(users.ints[3:4], users.floats[3:4]), defaults[Entity.USER]),
            Entity.CONTEXT: _stack(defaults[Entity.CONTEXT], defaults[Entity.CONTEXT]),
            Entity.ITEM: _stack(EncodedBlock(items.ints[:4], items.floats[:4]), defaults[Entity.ITEM]),
        }
        listed = [i for i, name in enumerate(schema.domains) if GRAPH_OF[name] == graph]
        domain = np.array([listed[0], UNLISTED], np.int64)
        request_index = np.array([0, 0, 1, 1, 1], np.int64)
        inputs: dict[str, NDArray[Any]] = {"domain": domain, "request_index": request_index}
        for entity in Entity:
            inputs[f"{entity}_ints"] = block[entity].ints
            if block[entity].floats.shape[1]:
                inputs[f"{entity}_floats"] = block[entity].floats
        rows[graph] = inputs, reference(own, block, domain, request_index).astype(np.float32)
    return rows


def _stack(first: EncodedBlock, second: EncodedBlock) -> EncodedBlock:
    return EncodedBlock(
        np.concatenate([first.ints, second.ints]), np.concatenate([first.floats, second.floats])
    )


def build_bundle(
    store: Path,
    *,
    alias: str = "stable",
    policy: str = "reject",
    change_golden: Callable[[Golden], None] | None = None,
    change_manifest: Callable[[dict[str, Any]], None] | None = None,
    seed: int = 0,
    ballast: int = 0,
) -> SmallBundle:
    """Publish the small bundle and point an alias at it.

    Args:
        store: Folder of the model store.
        alias: To set.
        policy: For unknown domains.
        change_golden: Changes the golden rows before they are written.
        change_manifest: Changes the manifest's arguments before it is made.
        seed: Of weights and features.
        ballast: Makes graphs slow, see `write_graph`.
    """
    schema = make_schema()
    rng = np.random.default_rng(seed)
    users = EntityEncoder(schema, Entity.USER).encode(user_columns(rng), NUM_USERS)
    items = EntityEncoder(schema, Entity.ITEM).encode(item_columns(rng), NUM_ITEMS)
    weights = {"whole": make_weights(schema, seed + 1), "cluster-1": make_weights(schema, seed + 2)}
    golden = golden_rows(schema, weights, users, items)
    if change_golden is not None:
        change_golden(golden)
    with ModelStore(store).writer() as writer:
        (writer.path / "graphs").mkdir()
        (writer.path / "features").mkdir()
        for graph, own in weights.items():
            write_graph(
                writer.path / f"graphs/{graph}.onnx",
                schema,
                own,
                external=f"{graph}.weights",
                ballast=ballast,
            )
        for name, block in (("user", users), ("item", items)):
            ids = "\n".join(f"{name[0]}{i}" for i in range(len(block))) + "\n"
            (writer.path / f"features/{name}_ids.txt").write_text(ids)
            np.save(writer.path / f"features/{name}_ints.npy", block.ints)
            np.save(writer.path / f"features/{name}_floats.npy", block.floats)
        write_golden(writer.path / "golden.npz", golden)
        arguments = manifest_arguments(schema, weights, policy)
        if change_manifest is not None:
            change_manifest(arguments)
        bundle = writer.publish(lambda files: Manifest(**arguments, files=files), schema)
    ModelStore(store).set_alias(alias, bundle.bundle_id)
    return SmallBundle(store, bundle, schema, weights, users, items)


def manifest_arguments(schema: FeatureSchema, weights: dict[str, Weights], policy: str) -> dict[str, Any]:
    """Everything in the manifest but the files."""
    calibration = Calibration(scale=1.0, bias=0.0)
    return {
        "name": "small",
        "model": "linear",
        "schema_digest": schema.digest,
        "domains": {
            name: DomainEntry(
                index=index,
                graph=GRAPH_OF[name],
                cluster=1 if GRAPH_OF[name] == "cluster-1" else 0,
                num_train_rows=1000 * (index + 1),
                calibration=calibration,
                experts_kept=("e0", "e2"),
            )
            for index, name in enumerate(schema.domains)
        },
        "unknown_domain": UnknownDomain(policy=policy, graph="whole", calibration=calibration),
        "graphs": {
            graph: Graph(
                file=f"graphs/{graph}.onnx",
                external_files=(f"graphs/{graph}.weights",),
                inputs=graph_inputs(schema),
                output="probability",
                form="whole" if graph == "whole" else "cluster",
                max_error=0.0,
            )
            for graph in weights
        },
        "features": {
            name: SnapshotFiles(
                ids=f"features/{name}_ids.txt",
                ints=f"features/{name}_ints.npy",
                floats=f"features/{name}_floats.npy",
                num_rows=count,
            )
            for name, count in (("user", NUM_USERS), ("item", NUM_ITEMS))
        },
        "provenance": Provenance(data_digest="d", config_digest="c", code_version="test", trained_at="never"),
    }
