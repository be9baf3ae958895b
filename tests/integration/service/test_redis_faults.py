"""When Redis is slow, stalled, killed, lying or absent: all are answered, none with others' rows."""

import asyncio
import contextlib
import random
import time

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from service.contract.layout import entity_layout
from service.contract.schema import Entity
from service.features.blob import BlobCodec
from service.features.connection import Address, Connection, pack
from service.features.errors import StoreLostError, StoreReplyError
from service.features.ids import id_limits
from service.features.keys import KeySpace
from service.features.opening import FeatureSources
from service.features.source import FAILED, FRESH, INVALID, MISSING
from service.settings import Settings
from service.telemetry.metrics import Metrics
from tests.support.bundles import NUM_ITEMS, NUM_USERS
from tests.support.process import free_port, running
from tests.support.redis_app import ask, figure, fill, running_app
from tests.support.redis_proxy import as_array, scripted_server, slow_link
from tests.support.redis_server import RedisServer, redis_server

ITEMS = [f"i{n}" for n in range(30)]
COLD = {"near_cache_user_bytes": 0, "near_cache_item_bytes": 0}


@pytest.fixture
def server(tmp_path):
    with redis_server(tmp_path) as started:
        yield started


def settings_of(small, server, **changes):
    url = f"redis://127.0.0.1:{server}/0" if isinstance(server, int) else server.url
    return Settings(store=small.store, feature_source="redis", redis_url=url, **changes)


async def load_until(app, small, stop, *, emptied=None, pause_s=0.002, num_callers=4):
    """Ask from several callers until `stop`; each reply is either right or degraded.

    While `emptied` is set, Redis has lost its rows: they are missing, which is not degraded.
    """
    outcomes = []

    async def caller(seed):
        draw = random.Random(seed)
        while not stop.is_set():
            user, items = draw.randrange(NUM_USERS), draw.sample(range(NUM_ITEMS), 10)
            begun = time.perf_counter()
            reply = await ask(app, f"u{user}", [f"i{n}" for n in items])
            took = time.perf_counter() - begun
            if not reply["degraded"] and not (emptied and emptied.is_set()):
                right = small.expected_stored("home", user, items)
                np.testing.assert_allclose(reply["scores"], right, atol=1e-6)
            outcomes.append((begun, took, bool(reply["degraded"])))
            await asyncio.sleep(pause_s)

    await asyncio.gather(*(caller(seed) for seed in range(num_callers)))
    return outcomes


async def until(check, timeout_s=10.0):
    end = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


def test_killed_and_back_under_load(small, server):
    settings = settings_of(small, server, breaker_open_s=0.2, feature_timeout_ms=200, **COLD)

    async def use():
        await fill(small, settings)
        async with running_app(settings) as app:
            stop = asyncio.Event()
            emptied = asyncio.Event()
            load = asyncio.create_task(load_until(app, small, stop, emptied=emptied))
            await asyncio.sleep(0.3)
            server.kill()
            killed = time.perf_counter()
            await until(lambda: figure(app, "ctr_feature_store_open_breakers") == 1)
            await asyncio.sleep(0.3)
            emptied.set()
            server.start()
            await fill(small, settings)
            back = time.perf_counter()
            await asyncio.sleep(0.1)  # for replies that were on their way
            emptied.clear()
            await until(lambda: figure(app, "ctr_feature_store_open_breakers") == 0)
            healthy = time.perf_counter()
            await asyncio.sleep(0.3)
            stop.set()
            counts = {c: figure(app, "ctr_feature_store_failures_total", cause=c) for c in CAUSES}
            degraded = figure(app, "ctr_degraded_replies_total", cause="item_features")
            return await load, killed, back, healthy, counts, degraded

    outcomes, killed, back, healthy, counts, counted = asyncio.run(use())
    assert not any(bad for begun, _, bad in outcomes if begun < killed - 0.2)
    assert any(bad for begun, _, bad in outcomes if killed < begun < back)
    after = [bad for begun, _, bad in outcomes if begun > healthy + 0.1]
    assert after
    assert np.mean(after) < 0.1  # a busy machine may itself stall for 200 ms
    assert counted == sum(bad for *_, bad in outcomes)
    assert counts["connect"] > 0
    # The breaker spares requests the wait: most of the outage's are refused at once.
    assert counts["breaker_open"] > counts["connect"] + counts["connection"]


CAUSES = ("timeout", "connect", "connection", "reply", "breaker_open")


def test_stalled_for_two_seconds_every_request_is_answered_in_time(small, server):
    settings = settings_of(
        small, server, breaker_open_s=0.2, feature_timeout_ms=100, deadline_ms=1000, **COLD
    )

    async def use():
        await fill(small, settings)
        async with running_app(settings) as app:
            await ask(app, "u1", ITEMS)
            stop = asyncio.Event()
            load = asyncio.create_task(load_until(app, small, stop))
            await asyncio.sleep(0.2)
            server.stall()
            stalled = time.perf_counter()
            await asyncio.sleep(2.0)
            server.go_on()
            went_on = time.perf_counter()
            await until(lambda: figure(app, "ctr_feature_store_open_breakers") == 0)
            healthy = time.perf_counter()
            await asyncio.sleep(0.3)
            stop.set()
            return (
                await load,
                stalled,
                went_on,
                healthy,
                figure(app, "ctr_feature_store_failures_total", cause="timeout"),
            )

    outcomes, stalled, went_on, healthy, timeouts = asyncio.run(use())
    during = [(took, bad) for begun, took, bad in outcomes if stalled + 0.1 < begun < went_on - 0.1]
    assert all(bad for _, bad in during)
    assert np.median([took for took, _ in during]) < 0.03  # the breaker, not the time limit, answers
    assert max(took for took, _ in during) < 0.5
    after = [bad for begun, _, bad in outcomes if begun > healthy + 0.1]
    assert after
    assert np.mean(after) < 0.1  # a busy machine may itself stall for 100 ms
    assert 5 <= timeouts <= 5 + 4 + 2.5 / 0.2  # those that opened it, those on their way, and trials


def test_down_at_start_it_becomes_ready_degraded_and_says_so(small, tmp_path):
    port = free_port()
    variables = {
        "CTR_FEATURE_SOURCE": "redis",
        "CTR_REDIS_URL": f"redis://127.0.0.1:{port}/0",
        "CTR_BREAKER_OPEN_S": "0.2",
    }
    body = {"domain": "home", "user": {"id": "u3"}, "items": {"id": ["i1", "i2"]}}
    with running(small.store, tmp_path, "--drain-pause-s", "0", **variables) as service:
        service.wait_until("/health/ready", 200)
        reply = httpx.post(service.url + "/score", json=body)
        assert (reply.status_code, reply.json()["degraded"]) == (200, ["user_features", "item_features"])
        np.testing.assert_allclose(
            reply.json()["scores"], small.expected_stored("home", None, [None, None]), atol=1e-6
        )
        text = httpx.get(service.url + "/metrics").text
        assert 'ctr_degraded_replies_total{cause="user_features"} 1.0' in text
        assert '"feature_store_down"' in service.log()
        server = RedisServer(tmp_path)
        server.port = port
        server.start()
        try:
            asyncio.run(fill(small, settings_of(small, server)))
            end = time.monotonic() + 10
            while (reply := httpx.post(service.url + "/score", json=body).json())["degraded"]:
                assert time.monotonic() < end
                time.sleep(0.1)
        finally:
            server.kill()
        np.testing.assert_allclose(reply["scores"], small.expected_stored("home", 3, [1, 2]), atol=1e-6)


@examples(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), timeout_ms=st.integers(1, 60), cancel_ratio=st.floats(0, 0.6))
def test_through_a_slow_link_no_reply_ever_reaches_another_request(
    small, shared, seed, timeout_ms, cancel_ratio
):
    settings = settings_of(small, shared)
    draw = random.Random(seed)

    async def use():
        async with slow_link(shared.port, seed=seed, longest_s=0.004) as link:
            source, sources = open_source(
                small, link.port, feature_timeout_ms=timeout_ms, breaker_failures=1000, breaker_window=1000
            )

            async def one():
                await asyncio.sleep(draw.random() * 0.05)
                user, items = (
                    draw.randrange(NUM_USERS),
                    [draw.randrange(NUM_ITEMS) for _ in range(draw.randint(1, 9))],
                )
                read = asyncio.create_task(source.fetch(f"u{user}", [f"i{n}" for n in items]))
                if draw.random() < cancel_ratio:
                    await asyncio.sleep(draw.random() * 0.02)
                    read.cancel()
                try:
                    of_user, of_items = await read
                except asyncio.CancelledError:
                    return
                check_rows(of_user, small.users, [user])
                check_rows(of_items, small.items, items)

            await asyncio.gather(*(one() for _ in range(40)))
            sources.close()

    asyncio.run(fill(small, settings))
    asyncio.run(use())


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with redis_server(tmp_path_factory.mktemp("redis")) as started:
        yield started


def open_source(small, port, **changes):
    options = {**COLD, "feature_timeout_ms": 500, **changes}
    settings = settings_of(small, port, **options)
    sources = FeatureSources(settings, Metrics().features)
    return sources.open(small.bundle), sources


def check_rows(found, block, numbers):
    """Every row is the id's own, or was not read at all; a foreign one would be invalid."""
    statuses = found.status
    if statuses is None:
        statuses = np.where(found.known, FRESH, MISSING)
    for place, number in enumerate(numbers):
        assert statuses[place] in (FRESH, FAILED)
        if statuses[place] == FRESH:
            np.testing.assert_array_equal(found.block.ints[place], block.ints[number])
            np.testing.assert_array_equal(found.block.floats[place], block.floats[number])


@examples(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_replies_keep_to_their_commands_whoever_stops_waiting(shared, seed):
    draw = random.Random(seed)

    async def use():
        async with slow_link(shared.port, seed=seed, longest_s=0.002) as link:
            connection = await Connection.connect(Address(port=link.port), timeout_s=5)

            async def one(n):
                word = f"{n}-{'x' * draw.randint(0, 300)}"
                wait = asyncio.wait_for(connection.ask(pack("ECHO", word)), draw.choice([0.001, 0.01, 5]))
                with contextlib.suppress(TimeoutError):
                    assert await wait == word.encode()

            await asyncio.gather(*(one(n) for n in range(60)))
            assert await connection.ask(pack("ECHO", "last")) == b"last"
            connection.close()
            with pytest.raises(StoreLostError, match="the connection broke before the reply came"):
                await connection.ask(pack("PING"))

    asyncio.run(use())


def test_rows_swapped_between_two_requests_are_found_out(small):
    codec = codec_of(small)

    def blobs(command):
        ids = [key.rpartition(b":")[2].decode() for key in command[1:]]
        numbers = [int(value[1:]) for value in ids]
        block = type(small.items)(small.items.ints[numbers], small.items.floats[numbers])
        return as_array(codec.encode(ids, block, np.zeros(len(ids), np.int64)))

    def swapped(commands):
        return [blobs(commands[1]), blobs(commands[0])]

    async def use():
        async with scripted_server(swapped, together=2) as port:
            source, sources = open_source(small, port)
            results = await asyncio.gather(source.fetch(None, ["i1", "i2"]), source.fetch(None, ["i3", "i4"]))
            sources.close()
            return results

    for _, items in asyncio.run(use()):
        assert items.status.tolist() == [INVALID, INVALID]
        assert not items.known.any()


def test_a_reply_of_another_length_ends_the_connection(small):
    async def use():
        replies = iter([[None] * 3, [None] * 2])
        async with scripted_server(lambda _: [as_array(next(replies))], together=1) as port:
            source, sources = open_source(small, port)
            _, first = await source.fetch(None, ["i1", "i2"])
            lost = sources._reader._node._connections[0].closed
            _, second = await source.fetch(None, ["i1", "i2"])
            sources.close()
            return first, lost, second

    first, lost, second = asyncio.run(use())
    assert first.status.tolist() == [FAILED, FAILED]
    assert lost
    assert second.status.tolist() == [MISSING, MISSING]


@pytest.mark.parametrize("sent", [b"hello\r\n", b"*1\r\n$1\r\nx\r\n+OK\r\n+unasked\r\n"])
def test_nonsense_fails_the_command_and_nothing_hangs(small, sent):
    async def use():
        async with scripted_server(lambda _: [sent], together=1) as port:
            source, sources = open_source(small, port)
            _, items = await asyncio.wait_for(source.fetch(None, ["i1", "i2"]), 5)
            sources.close()
            return items

    assert asyncio.run(use()).status.tolist() == [FAILED, FAILED]


def test_connecting_fails_with_a_reason(shared):
    async def use():
        with pytest.raises(StoreLostError, match=r"127.0.0.1:1: .*[Cc]onnect"):
            await Connection.connect(Address(port=1), timeout_s=1)
        with pytest.raises(StoreLostError, match="AUTH"):
            await Connection.connect(Address(port=shared.port, password="x"), timeout_s=1)
        connection = await Connection.connect(Address(port=shared.port), timeout_s=1)
        with pytest.raises(StoreReplyError, match="unknown command"):
            await connection.ask(pack("NOSUCH"))
        connection.close()
        async with scripted_server(lambda _: [], together=1) as port:
            with pytest.raises(StoreLostError, match=r"no answer in 0.1 s"):
                await Connection.connect(Address(port=port, password="x"), timeout_s=0.1)

    asyncio.run(use())


def codec_of(small):
    layout = entity_layout(small.schema, Entity.ITEM)
    space = KeySpace("ctr", small.schema.digest, Entity.ITEM)
    return BlobCodec(layout, id_limits(small.schema, layout), space)
