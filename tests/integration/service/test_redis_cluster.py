"""Features from a real cluster of three: one round trip per server, partial failure, moved slots."""

import asyncio

import numpy as np
import pytest

from service.contract.schema import Entity
from service.features.cluster import slot_of, slot_owners
from service.features.errors import StoreLostError
from service.features.keys import KeySpace
from service.settings import Settings
from tests.support.redis_app import ask, fill, running_app
from tests.support.redis_server import redis_cluster

NUMBERS = list(range(60))
ITEMS = [f"i{n}" for n in NUMBERS]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with redis_cluster(tmp_path_factory.mktemp("cluster")) as servers:
        yield servers


def run(small, cluster, use, **changes):
    options = {"feature_timeout_ms": 1000, "deadline_ms": 5000, "near_cache_item_bytes": 0, **changes}
    urls = f"redis://127.0.0.1:1, {cluster[1].url}"  # the first seed is dead
    settings = Settings(store=small.store, feature_source="redis_cluster", redis_url=urls, **options)

    async def whole():
        await fill(small, settings)
        async with running_app(settings) as app:
            return await use(app)

    return asyncio.run(whole())


def calls(server, command):
    with server.client() as client:
        return client.info("commandstats").get(f"cmdstat_{command}", {}).get("calls", 0)


def owners_of(small, cluster):
    """Which server each item's key is on, by asking the servers."""
    space = KeySpace("ctr", small.schema.digest, Entity.ITEM)
    owner = {}
    for place, server in enumerate(cluster):
        with server.client() as client:
            here = set(client.keys("*"))
            owner.update({n: place for n in NUMBERS if space.key(f"i{n}") in here})
    return owner


def test_scores_come_from_all_servers(small, cluster):
    async def use(app):
        before = [calls(server, "get") for server in cluster]
        reply = await ask(app, "u3", ITEMS)
        return reply, [calls(s, "get") - b for s, b in zip(cluster, before, strict=True)]

    reply, gets = run(small, cluster, use)
    np.testing.assert_allclose(reply["scores"], small.expected_stored("home", 3, NUMBERS), atol=1e-6)
    assert reply["degraded"] == []
    assert sum(gets) == 61
    assert min(gets) > 5


def test_loading_needs_a_seed_that_answers(small):
    url = "redis://127.0.0.1:1"
    settings = Settings(store=small.store, feature_source="redis_cluster", redis_url=url)
    with pytest.raises(StoreLostError, match=r"127.0.0.1:1: .*[Cc]onnect"):
        asyncio.run(fill(small, settings, retries=2))


def test_moved_slots_are_followed(small, cluster):
    space = KeySpace("ctr", small.schema.digest, Entity.ITEM)
    slot = slot_of(space.key("i7"))

    async def use(app):
        await ask(app, "u3", ITEMS)
        source = owners_of(small, cluster)[7]
        target = (source + 1) % 3
        await asyncio.to_thread(move_slot, cluster, slot, source, target, space.key("i7"))
        reply = await ask(app, "u3", ITEMS)
        return reply, source, owners_of(small, cluster)[7]

    reply, source, owner = run(small, cluster, use)
    assert owner != source
    np.testing.assert_allclose(reply["scores"], small.expected_stored("home", 3, NUMBERS), atol=1e-6)
    assert reply["degraded"] == []


def test_a_slot_being_moved_is_asked_for_at_both_ends(small, cluster):
    space = KeySpace("ctr", small.schema.digest, Entity.ITEM)
    key = space.key("i11")
    slot = slot_of(key)

    async def use(app):
        source = owners_of(small, cluster)[11]
        target = (source + 1) % 3
        await asyncio.to_thread(begin_move, cluster, slot, source, target, key)
        try:
            return await ask(app, "u3", ITEMS)
        finally:
            await asyncio.to_thread(end_move, cluster, slot, target)

    reply = run(small, cluster, use)
    np.testing.assert_allclose(reply["scores"], small.expected_stored("home", 3, NUMBERS), atol=1e-6)


def name_of(server):
    with server.client() as client:
        return client.execute_command("CLUSTER", "MYID").decode()


def begin_move(cluster, slot, source, target, key):
    with cluster[source].client() as old, cluster[target].client() as new:
        new.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", name_of(cluster[source]))
        old.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", name_of(cluster[target]))
        for there in old.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
            old.execute_command("MIGRATE", "127.0.0.1", cluster[target].port, there, 0, 5000)
        assert key not in old.keys("*")


def end_move(cluster, slot, target):
    for server in (cluster[target], *cluster):
        with server.client() as client:
            client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", name_of(cluster[target]))


def move_slot(cluster, slot, source, target, key):
    begin_move(cluster, slot, source, target, key)
    end_move(cluster, slot, target)


def test_a_stalled_server_costs_its_own_rows_only(small, cluster):
    async def use(app):
        await ask(app, "u3", ITEMS)
        owner = owners_of(small, cluster)
        stalled = owner[0]
        cluster[stalled].stall()
        try:
            reply = await ask(app, None, ITEMS)
        finally:
            cluster[stalled].go_on()
        await asyncio.sleep(0.3)
        return reply, [None if owner[n] == stalled else n for n in NUMBERS], await ask(app, "u3", ITEMS)

    reply, there, after = run(small, cluster, use, feature_timeout_ms=300)
    assert reply["degraded"] == ["item_features"]
    assert 0 < there.count(None) < 60
    np.testing.assert_allclose(reply["scores"], small.expected_stored("home", None, there), atol=1e-6)
    assert after["degraded"] == []


def test_slots_without_a_server_make_no_map():
    assert slot_owners([[0, 16383, [b"10.0.0.1", 7000, b"id"]]], "x")[9] == "10.0.0.1:7000"
    assert slot_owners([[0, 16383, [b"", 7000]]], "10.0.0.9")[9] == "10.0.0.9:7000"
    assert slot_owners([[0, 9, [b"h", 1]], [11, 16383, [b"h", 1]]], "x") is None
    assert slot_owners("ERR", "x") is None
