"""Make a network for a graph: where sizes meet the module."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from training.hier.graph import KnowledgeGraph
from training.models.hier_net import HierNet


@dataclass(frozen=True)
class NetSizes:
    """Sizes and switches of `HierNet`; see there."""

    width: int = 64
    num_intents: int = 12
    num_exemplars: int = 24
    num_hops: int = 2
    normalise: bool = True
    intent_temperature: float = 1.0
    exemplar_temperature: float = 1.0


def make_net(graph: KnowledgeGraph, sizes: NetSizes, *, seed: int) -> HierNet:
    """A freshly initialised network of a seed."""
    torch.manual_seed(seed)
    return HierNet(
        head=torch.from_numpy(graph.head),
        relation=torch.from_numpy(graph.relation),
        tail=torch.from_numpy(graph.tail),
        num_entities=graph.num_entities,
        num_relations=max(1, len(graph.relations)),
        **vars(sizes),
    )
