"""Requests of the mix: sizes by profile, popular ids more often, domains by rows, the same for a seed."""

from collections import Counter

import numpy as np
import pytest

from loadtests.mix import PROFILES, UNKNOWN_ITEM_RATIO, Mix, Zipf
from tests.support.bundles import NUM_ITEMS, NUM_USERS, build_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return build_bundle(tmp_path_factory.mktemp("store")).bundle


@pytest.fixture(scope="module")
def asks(bundle):
    mix = Mix(bundle, seed=0)
    return [mix.draw() for _ in range(3000)]


def test_popular_ids_come_as_zipf_says():
    """Of 4 ids with weights 1, 1/2, 1/3, 1/4 the first has a share of 12 / 25."""
    rng = np.random.default_rng(0)
    zipf = Zipf(list("abcd"), rng)
    counts = Counter(zipf.one(rng) for _ in range(20_000))
    shares = [count / 20_000 for _, count in counts.most_common()]
    assert shares == pytest.approx([12 / 25, 6 / 25, 4 / 25, 3 / 25], abs=0.015)


def test_distinct_ids_are_distinct_and_no_more_than_there_are():
    rng = np.random.default_rng(0)
    zipf = Zipf([f"i{n}" for n in range(50)], rng)
    for count in (0, 1, 49, 50, 70):
        found = zipf.distinct(rng, count)
        assert len(found) == len(set(found)) == min(count, 50)


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_profiles_have_their_number_of_candidates(bundle, name):
    profile = PROFILES[name]
    mix = Mix(bundle, seed=0)
    sizes = [len(mix.draw(profile).items) for _ in range(300)]
    most = min(profile.most, NUM_ITEMS)  # of what is stored; some more are unknown
    assert min(sizes) >= min(profile.fewest, NUM_ITEMS)
    assert max(sizes) <= profile.most
    assert max(sizes) >= 0.9 * most


def test_no_request_has_more_than_the_service_takes(bundle):
    mix = Mix(bundle, seed=0, max_items=3)
    assert {len(mix.draw(PROFILES["heavy"]).items) for _ in range(20)} == {3}


def test_profiles_come_by_their_weights(asks):
    counts = Counter(ask.profile for ask in asks)
    whole = sum(profile.weight for profile in PROFILES.values())
    for name, profile in PROFILES.items():
        assert counts[name] / len(asks) == pytest.approx(profile.weight / whole, abs=0.04)


def test_domains_come_by_their_rows_of_training(asks):
    """The bundle has 1,000, 2,000 and 3,000 rows."""
    counts = Counter(ask.domain for ask in asks)
    shares = {name: counts[name] / len(asks) for name in ("home", "sport", "music")}
    assert shares == pytest.approx({"home": 1 / 6, "sport": 1 / 3, "music": 1 / 2}, abs=0.04)


def test_domains_without_rows_are_asked_for_too(tmp_path):
    def only_music(arguments):
        for name in ("home", "sport"):
            arguments["domains"][name] = arguments["domains"][name].model_copy(update={"num_train_rows": 0})

    mix = Mix(build_bundle(tmp_path, change_manifest=only_music).bundle, seed=0)
    assert mix.domain_shares == pytest.approx({"home": 1 / 102, "sport": 1 / 102, "music": 100 / 102})


def test_some_users_and_items_are_new(asks):
    items = [item for ask in asks for item in ask.items]
    new_items = [item for item in items if item.startswith("new-item-")]
    new_users = [ask.user for ask in asks if ask.user.startswith("new-user-")]
    # Heavy requests find fewer stored items than they ask for, so unknown ones are a larger part of them.
    small = [item for ask in asks if ask.profile != "heavy" for item in ask.items]
    ratio = sum(item.startswith("new-item-") for item in small) / len(small)
    assert ratio == pytest.approx(UNKNOWN_ITEM_RATIO, rel=0.2)
    assert len(set(new_items)) == len(new_items)
    assert len(new_users) / len(asks) == pytest.approx(0.1, abs=0.03)
    assert {ask.user for ask in asks} - set(new_users) == {f"u{n}" for n in range(NUM_USERS)}


def test_context_has_values_of_the_schema_and_bodies_are_what_the_service_reads(asks):
    import json

    assert {ask.context["hour"] for ask in asks} == {str(hour) for hour in range(24)}
    body = json.loads(asks[0].body())
    assert body == {
        "domain": asks[0].domain,
        "user": {"id": asks[0].user},
        "session_id": asks[0].session,
        "context": dict(asks[0].context),
        "items": {"id": list(asks[0].items)},
    }


def test_the_same_seed_draws_the_same_requests(bundle):
    first, again, other = (Mix(bundle, seed=seed) for seed in (5, 5, 6))
    drawn = [first.draw() for _ in range(20)]
    assert drawn == [again.draw() for _ in range(20)]
    assert drawn != [other.draw() for _ in range(20)]
