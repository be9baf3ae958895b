"""What a pre-training learns from, and the training itself.

Reads a prepared data set and, where the config names one, a file of triples. Invariant: with a domain held
out, none of its clicks is read: neither by the graph, nor by the loss, nor by users' sets.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from service.contract.schema import Entity
from training.data.prepare import prepare
from training.data.prepared import MANIFEST_FILE, PreparedDataset
from training.data.source import open_data
from training.hier.bags import UserBags
from training.hier.clicks import Impressions, listed_items
from training.hier.config import PretrainConfig
from training.hier.entities import EntityVocabulary, attribute_encoders, read_triples, stored_names
from training.hier.errors import GraphError
from training.hier.graph import KnowledgeGraph, build_graph
from training.hier.network import NetSizes, make_net
from training.hier.pretrain import LossWeights, PretrainData, Pretrained, PretrainPlan, Told, pretrain
from training.hier.ranking import RankingTask
from training.hier.sampling import items_of_domains
from training.models.hier_net import HierNet


class SourceData:
    """What a run reads, with the held-out domain taken out.

    Args:
        prepared: The data.
        config: Of the run.
        data: Raw data, where the triples lie; None without triples.
        also_out: A second domain to take out.

    Raises:
        GraphError: There is no such domain, no entity, or no triples where some are wanted.
    """

    def __init__(
        self,
        prepared: PreparedDataset,
        config: PretrainConfig,
        data: Path | None,
        *,
        also_out: int | None = None,
    ) -> None:
        self.prepared, self.config, self.raw = prepared, config, data
        self.held_out = _held_out(prepared, config.hold_out)
        self.train = Impressions.read(prepared, "train").without(self.held_out, also_out)
        self.valid = Impressions.read(prepared, "valid").without(self.held_out, also_out)
        self.item_ids = prepared.entity_ids(Entity.ITEM)
        self.encoders = attribute_encoders(prepared.schema, config.graph.attributes)
        names = stored_names(prepared, self.encoders)
        ontology: tuple[tuple[str, str, str], ...] = ()
        if config.graph.triples is not None:
            if data is None:
                raise GraphError(f"graph.triples is {config.graph.triples}: give --data, where it lies")
            triples = read_triples(
                data / config.graph.triples, self.item_ids, item_prefix=config.graph.item_prefix
            )
            names = [own + more for own, more in zip(names, triples.items, strict=True)]
            ontology = triples.ontology
        graph = config.graph
        self.vocabulary = EntityVocabulary.fit(names, min_items=graph.min_items, max_share=graph.max_share)
        self.item_sets = self.vocabulary.sets(names, limit=graph.max_entities)
        self.graph: KnowledgeGraph = build_graph(self.item_sets, self.vocabulary, ontology)
        num_users = len(prepared.entity_ids(Entity.USER))
        clicks = self.train.clicks()
        listed = listed_items(prepared, graph.user_lists)
        self.bags = UserBags.of(clicks.plus(listed), self.item_sets, num_users=num_users, top=graph.top)
        self.pools = items_of_domains(self.train, num_domains=prepared.schema.num_domains)
        self.data = PretrainData(clicks, self.bags, self.item_sets, self.pools, self._tasks())

    def _tasks(self) -> tuple[RankingTask, ...]:
        clicks = self.valid.clicks()
        found = []
        for domain in np.unique(clicks.domain).tolist():
            pool = self.pools.take(np.array([domain]))[0][0]
            if not self.pools.sizes[domain]:
                continue
            limit = self.config.training.validation_rows
            task = RankingTask.draw(clicks.of(domain), pool, self.bags, seed=domain, max_rows=limit)
            found.append(task)
        return tuple(found)


def _held_out(prepared: PreparedDataset, name: str | None) -> int | None:
    if name is None:
        return None
    if name not in prepared.schema.domains:
        raise GraphError(f"hold_out is '{name}'; the data have {', '.join(prepared.schema.domains)}")
    return prepared.schema.domain_index(name)


def open_prepared(folder: Path, config: PretrainConfig, data: Path) -> PreparedDataset:
    """The prepared data of a folder, made from raw data where there are none yet."""
    if not (folder / MANIFEST_FILE).is_file():
        prepare(open_data(data, config.data.recipe), folder)
    return PreparedDataset.open(folder)


def train_network(source: SourceData, told: Told) -> tuple[HierNet, Pretrained]:
    """Pre-train on the sources."""
    config = source.config
    torch.set_num_threads(config.training.num_threads)
    plan = PretrainPlan(**config.training.model_dump(exclude={"validation_rows", "num_threads"}))
    net = make_net(source.graph, NetSizes(**config.model.model_dump(exclude={"type"})), seed=plan.seed)
    found = pretrain(net, source.data, LossWeights(**config.loss.model_dump()), plan, told)
    return net, found
