"""HIER (arXiv 2405.17132) as it serves: frozen tables, and one inner product for each candidate.

Users and items come as lists of entities, so one that was never seen has a vector as soon as it has
attributes. The request side holds U and what other domains say of the user, the row side V, what they say of
the item, and what the request's domain says of both; a domain's head is linear in these and in the parts of
U . V, so it is folded into U. Letters as in `hier_parts`, D domains.
Invariant: U and V come from the tables of one pre-training, so vectors of two versions never meet.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from service.contract.errors import SchemaError
from service.contract.layout import IDS, VALUES, WEIGHTS, Slot, entity_layout
from service.contract.schema import DOMAIN_ENCODER, Entity, FeatureSchema, LookupPair
from training.models.base import Ranker, Sides, at_rows
from training.models.hier_parts import item_factors, item_vectors, user_factors, user_vectors
from training.models.inputs import InputLayer

USER_ENTITIES, ITEM_ENTITIES = "user_entities", "item_entities"
CLICKS_IN, ITEM_HERE = "clicks_in", "item_here"
SEEN_IN, USER_HERE = "seen_in", "user_here"
ITEM_ELSEWHERE, USER_ELSEWHERE = "item_elsewhere", "user_elsewhere"
ENTITY_ENCODER = "entity"

RATES = (ITEM_ELSEWHERE, USER_ELSEWHERE, ITEM_HERE, USER_HERE)
NEEDED = (USER_ENTITIES, ITEM_ENTITIES, CLICKS_IN, SEEN_IN, USER_ELSEWHERE, ITEM_ELSEWHERE)
NUM_ROW_RATES = 4
HEAD_COLUMNS = ("score", "inner", "path", "popularity", "bias", *RATES)
"""Of a domain's head, before the d weights of h_u * x_v."""


def zero_shot_head(width: int) -> list[float]:
    """Head of a domain without clicks: the score as it is. 9 + d weights."""
    return [1.0, *[0.0] * (len(HEAD_COLUMNS) - 1 + width)]


class HierInputs(InputLayer):
    """U of requests and V of candidates.

    Args:
        schema: With the features that `training.hier.serving` writes.
        width: d.
        num_intents: M.
        num_exemplars: K.
        num_hops: Entity tables that users read.
        normalise: Whether each hop's mean is brought to length 1.
        intent_temperature, exemplar_temperature: Of the two softmaxes.
    """

    def __init__(
        self,
        schema: FeatureSchema,
        *,
        width: int,
        num_intents: int,
        num_exemplars: int,
        num_hops: int,
        normalise: bool,
        intent_temperature: float,
        exemplar_temperature: float,
    ) -> None:
        every = frozenset(f.name for f in schema.features) | {pair.name for pair in schema.pairs}
        super().__init__(schema, banks={}, bank_of={}, domain_dim=1, exclude=every)
        self.ids, self.weights, self.entities = _slots(schema)
        self.of_user = entity_layout(schema, Entity.USER).slot(USER_ELSEWHERE, VALUES)
        self.of_item = entity_layout(schema, Entity.ITEM).slot(ITEM_ELSEWHERE, VALUES)
        self.width, self.normalise = width, normalise
        self.intent_temperature, self.exemplar_temperature = intent_temperature, exemplar_temperature
        num_rows = len(schema.encoders[ENTITY_ENCODER].values) + 2  # type: ignore[union-attr]
        for hop in range(num_hops):
            self.register_buffer(f"hop_{hop}", torch.zeros(num_rows, width))
        self.num_hops = num_hops
        self.register_buffer("items", torch.zeros(num_rows, width))
        self.register_buffer("intents", torch.zeros(num_intents, width))
        self.register_buffer("exemplars", torch.zeros(num_exemplars, width))
        self.register_buffer("paths", torch.zeros(num_intents, num_exemplars))
        self.register_buffer("mean_user", torch.zeros(width + num_exemplars))
        self.request_width = width + num_exemplars + 1
        self.row_width = width + num_exemplars + NUM_ROW_RATES

    @torch.no_grad()
    def fill(self, tables: Mapping[str, Tensor]) -> None:
        """Take over the tables of a pre-training, by name of the buffer."""
        for name, values in tables.items():
            self.get_buffer(name).copy_(values)

    def request_side(
        self,
        user_ints: Tensor,
        user_floats: Tensor,
        context_ints: Tensor,  # noqa: ARG002 - as in the base class
        context_floats: Tensor,  # noqa: ARG002 - as in the base class
        domain: Tensor | None,  # noqa: ARG002 - as in the base class
    ) -> tuple[Tensor, Tensor]:
        """U and the user's rate elsewhere, (R, d + K + 1) float32, and a penalty of 0.

        Where there is no entity U is the mean of all users.
        """
        ids, weights = user_ints[:, self.ids.columns], user_floats[:, self.weights.columns].clamp_min(0.0)
        hops = [self.get_buffer(f"hop_{hop}") for hop in range(self.num_hops)]
        users = user_vectors(hops, ids, weights, normalise=self.normalise)
        factors = user_factors(
            users, self.get_buffer("intents"), self.get_buffer("paths"), temperature=self.intent_temperature
        )
        known = (weights * (ids > 1).to(weights.dtype)).sum(dim=1, keepdim=True) > 0
        factors = torch.where(known, factors, self.get_buffer("mean_user"))
        return torch.cat([factors, user_floats[:, self.of_user.columns]], dim=1), user_floats.new_zeros(())

    def row_side(
        self,
        item_ints: Tensor,
        item_floats: Tensor,
        pairs: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """V, log popularity, rates of item and user here, and of the item elsewhere: (N, d + K + 4) float32.

        The penalty beside it is 0.
        """
        items = item_vectors(self.get_buffer("items"), item_ints[:, self.entities.columns])
        factors = item_factors(items, self.get_buffer("exemplars"), temperature=self.exemplar_temperature)
        elsewhere = item_floats[:, self.of_item.columns]
        return torch.cat([factors, pairs, elsewhere], dim=1), pairs.new_zeros(())


def _slots(schema: FeatureSchema) -> tuple[Slot, Slot, Slot]:
    """Columns of the users' entities, of their weights, and of the items' entities.

    Raises:
        SchemaError: The schema is not one for HIER.
    """
    features = {feature.name: feature for feature in schema.features}
    for name in NEEDED:
        if name not in features:
            raise SchemaError(
                f"a model of type hier needs the feature '{name}'; it is made by `ctr-train pretrain`, "
                f"not by `ctr-train run` on a schema with {sorted(features)}"
            )
    user, item = entity_layout(schema, Entity.USER), entity_layout(schema, Entity.ITEM)
    return user.slot(USER_ENTITIES, IDS), user.slot(USER_ENTITIES, WEIGHTS), item.slot(ITEM_ENTITIES, IDS)


class HierRanker(Ranker):
    """U . V under the head of the request's domain.

    Args:
        num_domains: D.
        width: d.
        num_exemplars: K.
    """

    def __init__(self, *, num_domains: int, width: int, num_exemplars: int) -> None:
        super().__init__()
        self.width, self.num_exemplars = width, num_exemplars
        heads = torch.tensor(zero_shot_head(width)).repeat(num_domains + 1, 1)
        self.register_buffer("heads", heads)

    def forward(self, sides: Sides) -> Tensor:
        """Logits (N,) float32."""
        head = self.get_buffer("heads").index_select(0, sides.domain)  # (R, 5 + d)
        whole, inner, path, popularity, bias, item_elsewhere, user_elsewhere, item_here, user_here = (
            head[:, i : i + 1] for i in range(len(HEAD_COLUMNS))
        )
        users, links = sides.request[:, : self.width], sides.request[:, self.width : -1]
        left = torch.cat(
            [
                users * (whole + inner + head[:, len(HEAD_COLUMNS) :]),
                links * (whole + path),
                popularity,
                item_here,
                user_here,
                item_elsewhere,
            ],
            dim=1,
        )
        level = bias + user_elsewhere * sides.request[:, -1:]
        products = at_rows(left, sides.request_index) * sides.row
        return products.sum(dim=1) + at_rows(level, sides.request_index).squeeze(1)


def domain_pairs() -> tuple[LookupPair, LookupPair]:
    """What the request's domain says: of the item, its log popularity and rate, and of the user, the rate."""
    return (
        LookupPair(name=ITEM_HERE, holder=CLICKS_IN, key=DOMAIN_ENCODER),
        LookupPair(name=USER_HERE, holder=SEEN_IN, key=DOMAIN_ENCODER),
    )
