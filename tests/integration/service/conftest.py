"""A small bundle in a store, and a real Redis that is empty at the start of each test."""

import pytest

from tests.support.bundles import build_bundle
from tests.support.redis_server import redis_server


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return build_bundle(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with redis_server(tmp_path_factory.mktemp("redis")) as started:
        yield started


@pytest.fixture
def client(server):
    with server.client() as opened:
        opened.flushall()
        opened.config_resetstat()
        yield opened
