"""SyNCRec (arXiv 2407.11245) as it serves: a user's history encoded once, one inner product per candidate.

The request side holds the user's vector: the cross view of the whole history, or for domains that it harms
the single view of the domain's own events. Both views read all experts; they differ in the events they read
and in gate and tower, which are tables by task with rows only for the views that serve. The row side holds
the candidate's vector and whether it has one. An item without a vector has no score: its logit is a constant
of the domain, so that no order is claimed among such items.

Invariants: a row's score depends on its own request and item alone; a history event of an item without a
vector is not read; nothing that only training needs (other gates and towers, bilinear forms) is here.

Letters: R requests, N candidates, L events of a stored history, r width, K experts, D domains, J tasks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from service.contract.errors import SchemaError
from service.contract.layout import IDS, Slot, entity_layout
from service.contract.schema import (
    FIRST_ID,
    CategoricalFeature,
    Entity,
    FeatureSchema,
    SequenceFeature,
    VocabularyEncoder,
)
from training.models.acmoe import CROSS_TASK, ExpertBank, GateInput, TaskHeads, flat_context, prefix_mean
from training.models.base import Ranker, Sides, at_rows
from training.models.inputs import InputLayer
from training.models.sequence_encoder import EventEmbedding, at_positions, compact
from training.models.syncrec_net import SyncrecNet


class SyncrecInputs(InputLayer):
    """Vectors of users and candidates.

    Args:
        schema: With a user sequence of items and domains, and the item's id.
        history: Name of the sequence.
        item_field, domain_field: Its fields.
        item: The item's id feature, with the field's encoder.
        width: r.
        max_len: Most events, at least those that the schema stores.
        num_experts: K.
        num_layers: Of each expert.
        num_heads: Of each layer.
        gate: What gates read.
        single_domains: Names of the domains that their single view serves.
    """

    def __init__(
        self,
        schema: FeatureSchema,
        *,
        history: str,
        item_field: str,
        domain_field: str,
        item: str,
        width: int,
        max_len: int,
        num_experts: int,
        num_layers: int,
        num_heads: int,
        gate: GateInput,
        single_domains: Sequence[str],
    ) -> None:
        every = frozenset(f.name for f in schema.features) | {pair.name for pair in schema.pairs}
        super().__init__(schema, banks={}, bank_of={}, domain_dim=1, exclude=every)
        self.event_items, self.event_domains, self.item_id = _slots(
            schema, history=history, item_field=item_field, domain_field=domain_field, item=item
        )
        if self.event_items.size > max_len:
            raise SchemaError(
                f"history '{history}' keeps {self.event_items.size} events, the model reads at most {max_len}"
            )
        if unknown := sorted(set(single_domains) - set(schema.domains)):
            raise SchemaError(f"model.single_domains names {unknown}; the schema has {list(schema.domains)}")
        self.gate = gate
        self.positions = max_len + 1
        num_rows = schema.encoder(self.item_id.encoder).num_rows  # type: ignore[union-attr]
        self.register_buffer("items", torch.zeros(num_rows, width))
        self.register_buffer("known", torch.zeros(num_rows))
        self.register_buffer("event_domain", _domain_of_id(schema, self.event_domains.encoder))
        tasks = [CROSS_TASK] * (schema.num_domains + 1)
        for place, name in enumerate(single_domains):
            tasks[schema.domain_index(name)] = 1 + place
        self.num_tasks = 1 + len(single_domains)
        self.register_buffer("task_of_domain", torch.tensor(tasks))
        self.embedding = EventEmbedding(
            width=width, max_len=max_len, num_domains=schema.num_domains, dropout=0.0
        )
        self.bank = ExpertBank(
            num_experts=num_experts,
            num_cross_experts=num_experts,
            width=width,
            num_layers=num_layers,
            num_heads=num_heads,
            dropout=0.0,
        )
        self.heads = TaskHeads(
            num_tasks=self.num_tasks,
            num_experts=num_experts,
            width=width,
            context_width=width if gate == "prefix_mean" else width * self.positions,
        )
        self.request_width, self.row_width = width, width + 1

    @torch.no_grad()
    def take_over(
        self, net: SyncrecNet, *, items: Tensor, known: Tensor, domains: Sequence[int], tasks: Sequence[int]
    ) -> None:
        """Copy what serves from a trained net.

        Args:
            net: The net.
            items: (rows, r) vectors of the schema's items.
            known: (rows,) 1 for items with a vector, else 0.
            domains: For each domain of the schema, its row of the net's domain embedding; D' for one that the
                net does not know.
            tasks: The net's task of each of the J tasks here.
        """
        self.get_buffer("items").copy_(items * known.unsqueeze(1))
        self.get_buffer("known").copy_(known)
        self.embedding.start.copy_(net.embedding.start)
        self.embedding.position.copy_(net.embedding.position)
        rows = torch.tensor([*domains, len(net.embedding.domain) - 1])
        self.embedding.domain.copy_(net.embedding.domain[rows])
        self.embedding.norm.load_state_dict(net.embedding.norm.state_dict())
        self.bank.load_state_dict(net.bank.state_dict())
        for name, weight in self.heads.named_parameters():
            weight.copy_(net.heads.get_parameter(name)[list(tasks)])

    def request_side(
        self,
        user_ints: Tensor,
        user_floats: Tensor,
        context_ints: Tensor,  # noqa: ARG002 - as in the base class
        context_floats: Tensor,  # noqa: ARG002 - as in the base class
        domain: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The vector of each user in the request's domain, (R, r) float32, and a penalty of 0.

        Raises:
            SchemaError: No domains are given, although views go by domain.
        """
        ids = user_ints[:, self.event_items.columns].to(torch.int64)
        at = self.get_buffer("event_domain")[user_ints[:, self.event_domains.columns].to(torch.int64)]
        keep = self.get_buffer("known")[ids] > 0
        task: Tensor | None = None
        if self.num_tasks > 1:
            if domain is None:
                raise SchemaError("views go by domain here, but no domain is given")
            task = self.get_buffer("task_of_domain").index_select(0, domain.to(torch.int64))
            keep = keep & ((task == CROSS_TASK).unsqueeze(1) | (at == domain.unsqueeze(1)))
        ids, at, length = compact(keep, ids, at)
        states = self.embedding(self.get_buffer("items")[ids], at, length)
        outputs = self.bank.last(states, length)
        context = self._context(states, length)
        if task is None:
            vectors = self.heads(0, outputs, context)
        else:
            vectors = self.heads.by_row(task, outputs, context)
        return vectors, user_floats.new_zeros(())

    def row_side(
        self,
        item_ints: Tensor,
        item_floats: Tensor,
        pairs: Tensor,  # noqa: ARG002 - as in the base class
    ) -> tuple[Tensor, Tensor]:
        """The vector of each item and whether it has one, (N, r + 1) float32, and a penalty of 0."""
        ids = item_ints[:, self.item_id.start].to(torch.int64)
        known = self.get_buffer("known").index_select(0, ids)
        vectors = self.get_buffer("items").index_select(0, ids)
        return torch.cat([vectors, known.unsqueeze(1)], dim=1), item_floats.new_zeros(())

    def _context(self, states: Tensor, length: Tensor) -> Tensor:
        """What the gate of the last position reads, (R, C)."""
        present = torch.arange(states.shape[1], device=states.device) <= length.unsqueeze(1)
        if self.gate == "flat":
            return flat_context(states, present, positions=self.positions)
        return at_positions(prefix_mean(states, present), length)


class SyncrecRanker(Ranker):
    """Inner product of both sides, or the domain's constant for an item without a vector.

    Args:
        num_domains: D.
        width: r.
    """

    def __init__(self, *, num_domains: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.register_buffer("missing", torch.zeros(num_domains + 1))

    @torch.no_grad()
    def set_missing(self, logits: Tensor) -> None:
        """Logits (D + 1,) of items without a vector."""
        self.get_buffer("missing").copy_(logits)

    def forward(self, sides: Sides) -> Tensor:
        """Logits (N,) float32."""
        users = at_rows(sides.request, sides.request_index)
        scores = (users * sides.row[:, : self.width]).sum(dim=1)
        missing = at_rows(self.get_buffer("missing").index_select(0, sides.domain), sides.request_index)
        return torch.where(sides.row[:, self.width] > 0, scores, missing)


def _slots(
    schema: FeatureSchema, *, history: str, item_field: str, domain_field: str, item: str
) -> tuple[Slot, Slot, Slot]:
    """Columns of the events' items, of their domains, and of the candidate's id.

    Raises:
        SchemaError: A feature is missing, of another kind or entity, or items are encoded in two ways.
    """
    sequence, own = schema.feature(history), schema.feature(item)
    if not isinstance(sequence, SequenceFeature) or sequence.entity is not Entity.USER:
        raise SchemaError(f"model.history: '{history}' is no sequence of the user")
    fields = [field.name for field in sequence.fields]
    for field in (item_field, domain_field):
        if field not in fields:
            raise SchemaError(f"model.history: '{history}' has no field '{field}'; it has {fields}")
    if not isinstance(own, CategoricalFeature) or own.entity is not Entity.ITEM:
        raise SchemaError(f"model.item: '{item}' is no categorical feature of the item")
    layout = entity_layout(schema, Entity.USER)
    items = layout.slot(history, item_field)
    if items.encoder != own.encoder:
        raise SchemaError(
            f"'{history}.{item_field}' has encoder '{items.encoder}', '{item}' has '{own.encoder}'; one "
            "table serves both, so they must share one"
        )
    return items, layout.slot(history, domain_field), entity_layout(schema, Entity.ITEM).slot(item, IDS)


def _domain_of_id(schema: FeatureSchema, encoder: str) -> Tensor:
    """(rows,) int64: domain index of each id that events have for their domain, D where it is none.

    Raises:
        SchemaError: The encoder does not keep names.
    """
    own = schema.encoder(encoder)
    if not isinstance(own, VocabularyEncoder):
        raise SchemaError(
            f"the domain of an event has encoder '{encoder}', {own.type}; it must be a vocabulary"
        )
    return torch.tensor([schema.num_domains] * FIRST_ID + [schema.domain_index(v) for v in own.values])
