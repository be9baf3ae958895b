"""The small bundle, built once and loaded as the service loads it."""

import pytest

from service.bundles.registry import LoadedBundle
from service.contract.store import ModelStore
from tests.support.bundles import build_bundle


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    return build_bundle(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="session")
def small_loaded_with_check(small):
    return LoadedBundle.load(ModelStore(small.store), "stable", check_ids=True)
