"""The augmenter's plan: numbers worked by hand, properties of what is drawn, and refusals."""

import numpy as np
import pytest
from pydantic import ValidationError

from training.data.augment import (
    AugmentRules,
    ItemStatistics,
    item_statistics,
    plan_augmentation,
    pool_weights,
    target_weights,
    weight_factors,
)
from training.data.augment_config import AugmentConfig
from training.data.errors import AugmentError

# Items a, b, c, d, e: (exposures, clicks) and (c + 1) / (n + 2).
EXPOSURES = np.array([2, 4, 10, 3, 40])
CLICKS = np.array([1, 1, 3, 2, 1])
POPULARITY = [0.5, 0.333333, 0.333333, 0.6, 0.047619]


def _columns(counts, *, click_every=2, items=6, seed=0):
    """Rows of len(counts) domains in mixed order; item ids from a skewed draw."""
    rng = np.random.default_rng(seed)
    domain = rng.permutation(np.repeat(np.arange(len(counts)), counts)).astype(np.int32)
    item = (rng.pareto(1.0, len(domain)) * items).astype(np.int64) % 400
    label = (np.arange(len(domain)) % click_every == 0).astype(np.float32)
    return {"domain": domain, "item": item, "label": label, "num_domains": len(counts)}


def test_statistics_and_popularity():
    item = np.repeat(np.arange(5), EXPOSURES)
    label = np.concatenate([np.arange(n) < c for n, c in zip(EXPOSURES, CLICKS, strict=True)])

    found = item_statistics(np.append(item, -1), np.append(label, 1).astype(np.float32))

    assert found.exposures.tolist() == EXPOSURES.tolist()
    assert found.clicks.tolist() == CLICKS.tolist()
    np.testing.assert_allclose(found.popularity, POPULARITY, atol=1e-6)


def test_cold_by_exposures_or_by_popularity():
    found = ItemStatistics(np.append(EXPOSURES, 0), np.append(CLICKS, 0))

    assert np.flatnonzero(found.cold(AugmentRules(cold_exposures=4))).tolist() == [0, 1, 3]
    by_rate = AugmentRules(cold_exposures=None, cold_popularity=0.34)
    # The last item has no train rows: (0 + 1) / (0 + 2) would be below 0.6, yet nobody clicked it.
    assert np.flatnonzero(found.cold(by_rate)).tolist() == [1, 2, 4]
    assert not found.cold(AugmentRules(cold_exposures=None, cold_popularity=0.6))[5]


def test_pool_rows_are_drawn_inversely_to_popularity():
    np.testing.assert_allclose(pool_weights(np.array([0.5, 0.6, 0.6])), [0.375, 0.3125, 0.3125])


def test_weights_of_small_domains():
    found = target_weights(np.array([100, 400, 900]), 1000)

    np.testing.assert_allclose(found, [0.685008, 0.234628, 0.080365], atol=1e-6)


def test_weights_stay_finite_where_domains_differ_widely():
    found = target_weights(np.array([10, 5_000_000, 5_000_000, 5_000_000]), 1000)

    assert np.isfinite(found).all()
    assert found.sum() == pytest.approx(1.0)
    assert found.argmax() == 0


def test_every_copy_is_a_click_on_a_cold_item_of_a_large_domain_put_into_a_small_one():
    columns = _columns([900, 700, 30, 10])
    rules = AugmentRules(ratio=0.15, cold_exposures=3, small_share=0.02, large_share=0.1)

    plan = plan_augmentation(**columns, rules=rules, seed=4)

    assert len(plan.sources) == len(plan.domains) == 246  # int(0.15 * 1640)
    exposures = np.bincount(columns["item"])
    assert set(columns["label"][plan.sources]) == {1.0}
    assert set(columns["domain"][plan.sources].tolist()) <= {0, 1}
    assert exposures[columns["item"][plan.sources]].max() <= 3
    assert plan.small == (2, 3)
    assert set(plan.domains.tolist()) == {2, 3}
    assert plan.large == (0, 1)
    assert plan.pool_rows == sum(
        label == 1 and domain in (0, 1) and exposures[item] <= 3
        for domain, item, label in zip(columns["domain"], columns["item"], columns["label"], strict=True)
    )
    assert plan.cold_items == int(((exposures > 0) & (exposures <= 3)).sum())


def test_draws_follow_both_weights():
    """Two items in the pool with known popularity, two small domains: shares within 5 deviations."""
    # Item 0: 1 row, a click, pop 2/3. Item 1: 4 rows, 1 click, pop 1/3. Item 2: everything else.
    item = np.array([0, 1, 1, 1, 1] + [2] * 20_000)
    label = np.array([1, 1, 0, 0, 0] + [0] * 20_000, np.float32)
    domain = np.array([0] * 19_505 + [1] * 100 + [2] * 400, np.int32)
    rules = AugmentRules(ratio=0.2, cold_exposures=4)

    plan = plan_augmentation(domain=domain, item=item, label=label, num_domains=3, rules=rules, seed=1)

    size = 4001
    assert len(plan.sources) == size
    level = (500 + size) / 2  # r = 2150.5 and 1850.5, their 30 % quantile 1940.5
    weights = np.exp(np.array([level - 100, level - 400]) / 1940.5)
    for share, expected in (
        ((item[plan.sources] == 1).mean(), 3 / (3 + 1.5)),
        ((plan.domains == 1).mean(), weights[0] / weights.sum()),
    ):
        assert abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / size)


def test_plan_is_a_function_of_rows_rules_and_seed():
    columns = _columns([900, 10])
    plans = [plan_augmentation(**columns, rules=AugmentRules(), seed=seed) for seed in (3, 3, 4)]

    assert np.array_equal(plans[0].sources, plans[1].sources)
    assert np.array_equal(plans[0].domains, plans[1].domains)
    assert not np.array_equal(plans[0].sources, plans[2].sources)


@pytest.mark.parametrize("ratio", [0.0, 0.05, 0.10, 0.15])
def test_ratio_decides_the_number_of_copies(ratio):
    plan = plan_augmentation(**_columns([900, 10]), rules=AugmentRules(ratio=ratio), seed=0)

    assert len(plan.sources) == int(ratio * 910)
    assert (plan.note == "") == (ratio > 0)


def test_rows_of_unknown_domains_and_items_are_never_copied():
    columns = _columns([900, 10])
    columns["domain"][:300] = 2
    columns["item"][300:600] = -1

    plan = plan_augmentation(**columns, rules=AugmentRules(), seed=0)

    assert plan.sources.min() >= 600


def test_nothing_to_do_says_why():
    columns = _columns([500, 500])
    assert plan_augmentation(**columns, rules=AugmentRules(), seed=0).note == (
        "no domain has at most 0.02 of the train rows; the smallest has 0.5000"
    )
    off = plan_augmentation(**columns, rules=AugmentRules(ratio=0.0), seed=0)
    assert off.note == "ratio 0.0 of 1000 rows is no row"
    assert len(off.sources) == len(off.domains) == 0


def test_small_domains_without_a_row_to_copy_are_an_error():
    columns = _columns([900, 10])
    columns["item"][:] = np.arange(910) % 5

    with pytest.raises(AugmentError, match=r"no train row to copy: 1 domains .* 0 of 5 items are cold"):
        plan_augmentation(**columns, rules=AugmentRules(), seed=0)


def test_factors_keep_rate_and_weight_of_every_domain():
    columns = _columns([900, 40, 12, 6], click_every=3, seed=8)
    columns["label"][columns["domain"] == 3] = 0  # a domain whose real click rate is 0
    weight = np.random.default_rng(2).uniform(0.5, 2.0, 958).astype(np.float32)
    plan = plan_augmentation(**columns, rules=AugmentRules(small_share=0.05, large_share=0.5), seed=0)
    names = {name: columns[name] for name in ("domain", "label")}

    factors = weight_factors(**names, weight=weight, plan=plan, num_domains=4)

    assert set(plan.domains.tolist()) == {1, 2, 3}
    for d in range(4):
        own, copied = columns["domain"] == d, plan.sources[plan.domains == d]
        before = weight[own]
        clicks = columns["label"][own] > 0
        after = np.concatenate([np.where(clicks, before * factors[d], before), weight[copied] * factors[d]])
        all_clicks = np.concatenate([clicks, np.ones(len(copied), bool)])
        assert after.sum() == pytest.approx(before.sum())
        assert (after * all_clicks).sum() == pytest.approx((before * clicks).sum())
    assert factors[0] == 1.0
    assert factors[3] == 0.0


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"cold_exposures": None}, "cold_exposures is None and cold_popularity is None; give one"),
        ({"cold_popularity": 0.1}, "cold_exposures is 4 and cold_popularity is 0.1; give one"),
        ({"cold_exposures": 0}, "cold_exposures is 0; allowed: 1 and more"),
        ({"ratio": 1.5}, "ratio is 1.5; allowed: 0 to 1"),
        ({"large_share": -0.1}, "large_share is -0.1; allowed: 0 to 1"),
        ({"cold_exposures": None, "cold_popularity": 2}, "cold_popularity is 2; allowed: 0 to 1"),
        ({"small_share": 0.05}, "small_share is 0.05 and large_share 0.03; a domain cannot be"),
    ],
)
def test_rules_that_cannot_be(rules, said):
    with pytest.raises(AugmentError, match=said):
        AugmentRules(**rules)


def test_config_gives_rules():
    assert AugmentConfig(ratio=0.1).rules() == AugmentRules()
    rules = AugmentConfig(ratio=0.05, cold_popularity=0.05, small_share=0.015, large_share=0.015).rules()
    assert (rules.cold_exposures, rules.cold_popularity, rules.small_share) == (None, 0.05, 0.015)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"small_share": 0.1}, r"small_share 0.1 is above large_share 0.03"),
        ({"in_training": True}, "in_training needs a ratio above 0"),
        ({"share": 0.1}, "Extra inputs are not permitted"),
        ({"ratio": 2}, "less than or equal to 1"),
    ],
)
def test_config_that_cannot_be(config, said):
    with pytest.raises(ValidationError, match=said):
        AugmentConfig(**config)
