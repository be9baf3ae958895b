"""SyNCRec as it serves: the trained net's scores, and constants where there is nothing to score."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from service.contract.errors import SchemaError
from tests.support.schemas import full_schema
from tests.support.syncrec import (
    MISSING,
    WITHOUT_VECTOR,
    sequence_schema,
    serving_config,
    serving_model,
    user_row,
)
from training.models.base import CtrModel, Sides
from training.models.build import build_model
from training.models.syncrec_net import EventRows

EVENTS = ((3, 0), (4, 1), (5, 0), (9, 2), (6, 1))


def logits(model: CtrModel, users: Tensor, domain: int, items: list[int]) -> Tensor:
    """Logits of items for one user in one domain."""
    none = torch.zeros(1, 0)
    with torch.no_grad():
        at = torch.tensor([domain])
        request, _ = model.inputs.request_side(users, none, torch.zeros(1, 1, dtype=torch.int32), none, at)
        rows = torch.tensor(items, dtype=torch.int32).unsqueeze(1)
        row, _ = model.inputs.row_side(rows, torch.zeros(len(items), 0), torch.zeros(len(items), 0))
        index = torch.zeros(len(items), dtype=torch.int64)
        found: Tensor = model.ranker(Sides(request, row, index, at))
    return found


def vector(net, events: tuple[tuple[int, int], ...], task: int) -> Tensor:
    """The net's own vector after these events."""
    items = torch.tensor([[item for item, _ in events] or [0]])
    domains = torch.tensor([[domain for _, domain in events] or [0]])
    with torch.no_grad():
        found: Tensor = net.last(EventRows(items, domains, torch.tensor([len(events)])), torch.tensor([task]))
    return found


@pytest.mark.parametrize("gate", ["prefix_mean", "flat"])
def test_it_scores_by_the_cross_view(gate: str) -> None:
    """The net's vector after the whole history, times each item's."""
    model, net = serving_model(gate=gate)
    wanted = net.items.weight.detach()[[2, 8, 11]] @ vector(net, EVENTS, 0)[0]

    torch.testing.assert_close(logits(model, user_row(*EVENTS), 1, [2, 8, 11]), wanted, atol=1e-5, rtol=0)


def test_a_switched_domain_scores_by_its_own_events() -> None:
    """Domain b reads b's two events through its gate and tower; others stay with the cross view."""
    model, net = serving_model(single_domains=("c", "b"))
    items = net.items.weight.detach()[[2, 8]]
    own = tuple(event for event in EVENTS if event[1] == 1)

    torch.testing.assert_close(
        logits(model, user_row(*EVENTS), 1, [2, 8]), items @ vector(net, own, 2)[0], atol=1e-5, rtol=0
    )
    for domain in (0, 3):
        torch.testing.assert_close(
            logits(model, user_row(*EVENTS), domain, [2, 8]),
            items @ vector(net, EVENTS, 0)[0],
            atol=1e-5,
            rtol=0,
        )


def test_events_without_a_vector_are_not_read() -> None:
    """An unknown item and one that has no vector leave the score as it is."""
    model, _ = serving_model()
    events = (EVENTS[0], (1, 0), *EVENTS[1:3], (WITHOUT_VECTOR, 1), *EVENTS[3:])

    assert logits(model, user_row(*events), 1, [2, 8]).equal(logits(model, user_row(*EVENTS), 1, [2, 8]))


def test_an_item_without_a_vector_has_the_domain_s_constant() -> None:
    """Whatever the user: no order is claimed among such items."""
    model, _ = serving_model()
    for domain, constant in enumerate(MISSING):
        for users in (user_row(), user_row(*EVENTS)):
            assert logits(model, users, domain, [1, WITHOUT_VECTOR]).tolist() == [constant] * 2


def test_an_empty_history_has_finite_scores() -> None:
    """In each view."""
    model, net = serving_model(single_domains=("b",))
    for domain, task in ((0, 0), (1, 2)):
        found = logits(model, user_row(), domain, [2])
        assert bool(found.isfinite().all())
        torch.testing.assert_close(found, net.items.weight.detach()[[2]] @ vector(net, (), task)[0])


def test_a_score_is_independent_of_other_candidates() -> None:
    """Alone, or among many."""
    model, _ = serving_model()
    among = logits(model, user_row(*EVENTS), 0, [2, 3, 4, 5, 6])

    torch.testing.assert_close(logits(model, user_row(*EVENTS), 0, [4]), among[2:3], atol=1e-6, rtol=0)


def test_only_what_serves_is_held() -> None:
    """One gate and tower without switched domains, and no bilinear form."""
    plain, switched = (serving_model(single_domains=names)[0] for names in ((), ("b",)))

    assert plain.inputs.heads.gate.shape[0] == 1
    assert switched.inputs.heads.gate.shape[0] == 2
    assert not [name for name in plain.state_dict() if "agreement" in name]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"history": "item_id"}, "model.history: 'item_id' is no sequence of the user"),
        ({"domain_field": "shop"}, "'history' has no field 'shop'; it has \\['item', 'domain'\\]"),
        ({"item": "hour"}, "model.item: 'hour' is no categorical feature of the item"),
        ({"max_len": 7}, "history 'history' keeps 8 events, the model reads at most 7"),
        ({"single_domains": ("z",)}, "model.single_domains names \\['z'\\]"),
        ({"domain_field": "item"}, None),
    ],
)
def test_a_schema_that_does_not_fit_is_refused(changes: dict[str, object], message: str | None) -> None:
    """By feature, field, length and domain; a field of names that are no domains is read as unknown."""
    if message is None:
        build_model(serving_config(**changes), sequence_schema())
        return
    with pytest.raises(SchemaError, match=message):
        build_model(serving_config(**changes), sequence_schema())


def test_hashed_items_and_two_encoders_are_refused() -> None:
    """Vectors go by name, and one table serves history and candidate."""
    schema = full_schema()
    sequence = next(f for f in schema.features if f.kind == "sequence")
    fields = [field.name for field in sequence.fields]
    with pytest.raises(SchemaError, match="one table serves both, so they must share one"):
        build_model(
            serving_config(
                history=sequence.name, item_field=fields[0], domain_field=fields[-1], item="brand", max_len=50
            ),
            schema,
        )


def test_towers_are_refused() -> None:
    """It has none."""
    with pytest.raises(SchemaError, match="model syncrec has no towers"):
        build_model(serving_config(), sequence_schema(), [0, 0, 0, 0])


def test_switched_domains_must_be_given() -> None:
    """A graph that is not told the domain cannot choose the view."""
    model, _ = serving_model(single_domains=("b",))
    none = torch.zeros(1, 0)
    with pytest.raises(SchemaError, match="views go by domain here, but no domain is given"):
        model.inputs.request_side(user_row(), none, torch.zeros(1, 1, dtype=torch.int32), none, None)
