"""Pre-training on a small planted world: what it may not see, and that it learns."""

import numpy as np
import pytest
import torch

from training.hier.bags import UserBags
from training.hier.clicks import Impressions
from training.hier.entities import EntityVocabulary
from training.hier.errors import GraphError
from training.hier.factors import compute_factors
from training.hier.graph import build_graph
from training.hier.network import NetSizes, make_net
from training.hier.planted import PlantedSetting, failures, learn, make_world, measure
from training.hier.planted_paths import measure as measure_paths
from training.hier.pretrain import LossWeights, PretrainData, PretrainPlan, pretrain, silent
from training.hier.ragged import Ragged

SMALL = PlantedSetting(num_domains=3, num_items=60, num_attributes=20, num_users=150, clicks=6)
SIZES = NetSizes(width=8, num_intents=4, num_exemplars=6)
PLAN = PretrainPlan(max_steps=30, batch_size=64, evaluate_every=15, lr=1e-2)


def bits(world):
    factors, _ = learn(world, sizes=SIZES, weights=LossWeights(), plan=PLAN)
    return factors.users.tobytes(), factors.items.tobytes(), factors.mean_user.tobytes()


def test_the_targets_clicks_change_no_vector():
    world = make_world(SMALL, 0)
    expected = bits(world)
    rng = np.random.default_rng(9)
    shuffled = world.target.where(rng.permutation(len(world.target)))
    mixed = Impressions(world.target.user, shuffled.item, world.target.domain, world.target.label)
    for target in (mixed, world.target.where(np.zeros(0, dtype=np.int64))):
        # The whole log goes in and the target is taken out, as a run does.
        log = Impressions(
            *(
                np.concatenate(pair)
                for pair in zip(vars(world.clicks).values(), vars(target).values(), strict=True)
            )
        )
        changed = type(world)(world.setting, world.names, log.without(2), world.held, target)
        assert bits(changed) == expected


def test_a_rows_score_ignores_whether_its_item_was_clicked():
    world = make_world(SMALL, 1)
    vocabulary = EntityVocabulary.fit(world.names, min_items=2, max_share=0.2)
    sets = vocabulary.sets(world.names)
    net = make_net(build_graph(sets, vocabulary), SIZES, seed=0).eval()

    def score(log, user, item):
        bags = UserBags.of(log, sets, num_users=SMALL.num_users)
        ids, weights = bags.take(np.array([user]), left_out=np.array([item]))
        with torch.no_grad():
            layers = net.entity_layers()
            users = net.users(layers, torch.from_numpy(ids), torch.from_numpy(weights))
            items = net.items(layers, torch.from_numpy(sets.take(np.array([item]))[0]))
            return float((net.user_factors(users, net.paths()) * net.item_factors(items)).sum())

    for user, item in zip(world.clicks.user[:20], world.clicks.item[:20], strict=True):
        own = (world.clicks.user == user) & (world.clicks.item == item)
        with_it, without = (score(log, user, item) for log in (world.clicks, world.clicks.where(~own)))
        assert with_it == pytest.approx(without, abs=1e-6)


def test_users_without_entities_have_the_mean_of_the_others():
    sets = Ragged.of([[2], [3]])
    vocabulary = EntityVocabulary(("a:1", "a:2"))
    rows = Impressions(*(np.array(column) for column in ([0, 1], [0, 1], [0, 0])), np.ones(2, np.float32))
    bags = UserBags.of(rows, sets, num_users=3)
    factors = compute_factors(make_net(build_graph(sets, vocabulary), SIZES, seed=0).eval(), bags, sets)
    np.testing.assert_allclose(factors.users[2], factors.users[:2].mean(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(factors.user_rows(np.array([-1]))[0], factors.mean_user)


def test_a_held_out_domain_is_ranked_better_than_by_chance():
    plan = PretrainPlan(max_steps=150, batch_size=128, evaluate_every=50, lr=2e-2)
    out = measure(SMALL, 0, sizes=SIZES, weights=LossWeights(), plan=plan)
    assert out.zero_shot.ndcg > 2 * out.random.ndcg
    assert out.trained.step > 0
    assert any("zero-shot NDCG" in line for line in failures([out])) == (
        out.zero_shot.ndcg < max(1.2 * out.popularity.ndcg, 4 * out.random.ndcg)
    )


def test_gates_close_where_the_penalty_is_all_there_is():
    out = measure_paths(0, weight=10.0, steps=300)
    assert out.open_share == 0.0


def test_nothing_to_learn_from_is_refused():
    world = make_world(SMALL, 0)
    none = world.clicks.where(np.zeros(0, dtype=np.int64))
    sets = Ragged.of([[2]])
    net = make_net(build_graph(sets, EntityVocabulary(("a:1",))), SIZES, seed=0)
    data = PretrainData(none, UserBags.of(none, sets, num_users=1), sets, sets, ())
    with pytest.raises(GraphError, match="pre-training needs clicks of source domains, got none"):
        pretrain(net, data, LossWeights(), PLAN, silent)
