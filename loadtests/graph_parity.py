"""Scores of replies beside those of the bundle's own graph, run here on the same stored rows.

Reads bundles of a model store. Holds for requests that bring no features of their own but context, whose
users and items are those of the snapshot or unknown, and whose reply is neither degraded nor blended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadtests.mix import Ask
from service.contract.bundle import Bundle
from service.contract.encode import EncodedBlock, EntityEncoder
from service.contract.ids import read_ids
from service.contract.schema import Entity
from service.contract.store import ModelStore
from service.scoring.predictor import GraphRows, Predictor


class Opened:
    """A bundle with its graphs and snapshot, ready to score.

    Args:
        bundle: With a snapshot of users and items.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._manifest = bundle.manifest
        self._predictors = {
            name: Predictor(bundle.file(graph.file), graph) for name, graph in bundle.manifest.graphs.items()
        }
        self._encoders = {entity: EntityEncoder(bundle.schema, entity) for entity in Entity}
        self._stored: dict[Entity, EncodedBlock] = {}
        self._rows: dict[Entity, dict[str, int]] = {}
        snapshot = bundle.manifest.features
        for entity, files in ((Entity.USER, snapshot["user"]), (Entity.ITEM, snapshot["item"])):
            ints, floats = (np.load(bundle.path / name, mmap_mode="r") for name in (files.ints, files.floats))
            self._stored[entity] = EncodedBlock(ints, floats)
            self._rows[entity] = {key: row for row, key in enumerate(read_ids(bundle.path / files.ids))}

    def score(self, ask: Ask) -> NDArray[np.float32]:
        """Scores of one request for a domain that the manifest lists, (N,) float32."""
        entry = self._manifest.domains[ask.domain]
        context = {name: [value] for name, value in ask.context.items()}
        return self._predictors[entry.graph].score(
            GraphRows(
                user=self._block(Entity.USER, [ask.user]),
                context=self._encoders[Entity.CONTEXT].encode(context, 1),
                item=self._block(Entity.ITEM, ask.items),
                domain=np.array([entry.index], np.int64),
                request_index=np.zeros(len(ask.items), np.int64),
            )
        )

    def _block(self, entity: Entity, ids: Sequence[str]) -> EncodedBlock:
        """Stored rows by id, default rows where there are none."""
        block = self._encoders[entity].defaults(len(ids))
        stored, rows = self._stored[entity], self._rows[entity]
        for place, key in enumerate(ids):
            if key in rows:
                block.ints[place], block.floats[place] = stored.ints[rows[key]], stored.floats[rows[key]]
        return block


@dataclass
class GraphParity:
    """Takes replies and tells the largest difference.

    Attributes:
        store: Where the bundles of the replies are.
        num_rows: Candidates compared.
        max_abs_difference: The largest of their |score of the reply - score here|.
    """

    store: Path
    num_rows: int = 0
    max_abs_difference: float = 0.0
    _opened: dict[str, Opened] = field(default_factory=dict)

    def compare(self, ask: Ask, reply: Mapping[str, Any]) -> None:
        """Take one good reply; one that cannot be compared is passed over."""
        model = reply["model"]
        if reply["degraded"] or "blend" in model:
            return
        bundle = model["bundle"]
        if bundle not in self._opened:
            self._opened[bundle] = Opened(ModelStore(self.store).open(bundle, verify=False))
        expected = self._opened[bundle].score(ask)
        difference = np.abs(np.asarray(reply["scores"], np.float32) - expected)
        self.num_rows += len(expected)
        self.max_abs_difference = max(self.max_abs_difference, float(difference.max()))

    def figures(self) -> dict[str, float]:
        """As a run keeps them; empty where nothing was compared."""
        if not self.num_rows:
            return {}
        return {"num_rows": self.num_rows, "max_abs_difference": self.max_abs_difference}


__all__ = ["GraphParity", "Opened"]
