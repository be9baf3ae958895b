"""What a pre-training leaves behind: tables, vocabulary, users, items, and what is known of its sources.

    RUN/hier/representation.json   names of entities, source domains with rates and lines, digests
    RUN/hier/tables.pt             tables by name, see `training.models.hier.HierInputs`
    RUN/hier/{users,items}.npz, {users,items}.txt   entities of all users and items, and their ids

Invariant: `version` is a digest of tables, names of their rows, rates and start; equal versions score alike.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from torch import Tensor

from service.contract.ids import read_ids, write_ids
from service.contract.schema import Encoder
from training.engine.checkpoint import load_tensors, weights_digest
from training.engine.files import write_atomically, write_text
from training.hier.bags import UserBags
from training.hier.entities import Encoders, EntityVocabulary
from training.hier.errors import OnboardError
from training.hier.ragged import IntArray, Ragged
from training.hier.start import Start
from training.models.hier_net import HierNet

FOLDER = "hier"


@dataclass(frozen=True)
class SourceDomain:
    """A domain of the pre-training.

    Attributes:
        name: Of it.
        num_train_rows, num_valid_rows: Labelled impressions.
        rate: Click rate of its train rows; None without rows.
        scale, bias: Its line.
        auc: On validation rows; None where it is not defined.
        mean_score: Mean probability of its validation rows; None without rows.
        mean_item: (d,) mean x_v of its train rows' items; empty without rows.
    """

    name: str
    num_train_rows: int
    num_valid_rows: int
    rate: float | None
    scale: float
    bias: float
    auc: float | None = None
    mean_score: float | None = None
    mean_item: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Representation:
    """A pre-training, frozen.

    Attributes:
        vocabulary: Of the entities.
        encoders: Of item features that make entities of numbers and names.
        tables: By name of the serving model's buffer.
        user_ids: Of users that touched an entity or were shown something.
        user_entities, user_weights: (U, L) int32 and float32 of these users.
        user_rates, item_rates: (U,) and (V,) float32 log odds ratios over the sources' train rows.
        start: How a new domain starts; None for the score alone.
        item_ids: Of all items.
        item_sets: Their entities.
        sources: In the order of the schema.
        fallback: (scale, bias) of unknown domains.
        facts: Digests, times and figures for the record.
    """

    vocabulary: EntityVocabulary
    encoders: Encoders
    tables: dict[str, Tensor]
    user_ids: list[str]
    user_entities: NDArray[np.int32]
    user_weights: NDArray[np.float32]
    user_rates: NDArray[np.float32]
    item_rates: NDArray[np.float32]
    start: Start | None
    item_ids: list[str]
    item_sets: Ragged
    sources: tuple[SourceDomain, ...]
    fallback: tuple[float, float]
    facts: dict[str, Any]

    @property
    def version(self) -> str:
        """Sha256 (hex) of tables and names."""
        names = "\n".join(self.vocabulary.names)
        total = hashlib.sha256(f"{weights_digest(self.tables)}{names}{self.start}".encode())
        total.update(self.user_rates.tobytes() + self.item_rates.tobytes())
        return total.hexdigest()

    def save(self, run: Path) -> None:
        """Write the files."""
        folder = run / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "tables.pt", lambda part: torch.save(self.tables, part))
        write_ids(folder / "users.txt", self.user_ids)
        write_ids(folder / "items.txt", self.item_ids)
        np.savez(
            folder / "users.npz",
            entities=self.user_entities,
            weights=self.user_weights,
            rates=self.user_rates,
        )
        sets = self.item_sets
        np.savez(folder / "items.npz", starts=sets.starts, values=sets.values, rates=self.item_rates)
        content = {
            "version": self.version,
            "entities": self.vocabulary.names,
            "encoders": {name: encoder.model_dump(mode="json") for name, encoder in self.encoders.items()},
            "sources": [asdict(source) for source in self.sources],
            "fallback": self.fallback,
            "start": None if self.start is None else asdict(self.start),
            "facts": self.facts,
        }
        write_text(folder / "representation.json", json.dumps(content, indent=1) + "\n")

    @staticmethod
    def load(run: Path) -> Representation:
        """Read the files.

        Raises:
            OnboardError: The folder holds no finished pre-training, or files of two.
        """
        folder = run / FOLDER
        try:
            told = json.loads((folder / "representation.json").read_text(encoding="utf-8"))
            users, items = np.load(folder / "users.npz"), np.load(folder / "items.npz")
            found = Representation(
                vocabulary=EntityVocabulary(tuple(told["entities"])),
                encoders=TypeAdapter(dict[str, Encoder]).validate_python(told["encoders"]),  # type: ignore[arg-type]
                tables=dict(load_tensors(folder / "tables.pt")),
                user_ids=read_ids(folder / "users.txt"),
                user_entities=users["entities"],
                user_weights=users["weights"],
                user_rates=users["rates"],
                item_rates=items["rates"],
                start=None if told["start"] is None else Start.of(**told["start"]),
                item_ids=read_ids(folder / "items.txt"),
                item_sets=Ragged(items["starts"], items["values"]),
                sources=tuple(SourceDomain(**source) for source in told["sources"]),
                fallback=(told["fallback"][0], told["fallback"][1]),
                facts=told["facts"],
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OnboardError(f"{run}: no finished `ctr-train pretrain`: {error}") from error
        if found.version != told["version"]:
            raise OnboardError(
                f"{folder}: tables of version {found.version[:12]} beside a record of {told['version'][:12]}"
            )
        return found


def serving_tables(net: HierNet, mean_user: NDArray[np.float32]) -> dict[str, Tensor]:
    """Tables of the serving model, from a network in evaluation mode and its mean U."""
    with torch.no_grad():
        layers = net.entity_layers()
        tables = {f"hop_{hop}": table for hop, table in enumerate(layers.hops[:-1])}
        tables |= {
            "items": layers.total,
            "intents": net.intents,
            "exemplars": net.exemplars,
            "paths": net.paths(),
            "mean_user": torch.from_numpy(mean_user),
        }
    return {name: table.detach().clone().contiguous() for name, table in tables.items()}


def stored_users(bags: UserBags, shown: IntArray) -> tuple[IntArray, NDArray[np.int32], NDArray[np.float32]]:
    """Slots, entities and weights of the users that touched an entity or are among the `shown` (n,)."""
    stored = np.zeros(len(bags), dtype=np.bool_)
    stored[shown[shown >= 0]] = True
    kept: IntArray = np.flatnonzero(stored | ~bags.is_cold)
    entities, weights = bags.take(kept)
    return kept, entities.astype(np.int32), weights
