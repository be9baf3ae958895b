"""A bundle of another schema finds its own rows in Redis."""

import weakref

import pytest

from service.contract.schema import HashEncoder
from service.settings import Settings
from tests.support import bundles
from tests.support.asgi import with_app
from tests.support.bundles import build_bundle, make_schema
from tests.support.redis_app import fill
from tests.support.reloads import point, served, until


def test_a_bundle_of_another_schema_reads_rows_of_its_own_from_redis(tmp_path, server, client, monkeypatch):
    def other_schema():
        schema = make_schema()
        encoders = {**schema.encoders, "tag": HashEncoder(num_buckets=32, seed=8)}
        return schema.model_copy(update={"encoders": encoders})

    store = tmp_path / "models"
    first = build_bundle(store)
    monkeypatch.setattr(bundles, "make_schema", other_schema)
    second = build_bundle(store, alias="next", seed=3)
    assert first.schema.digest != second.schema.digest
    settings = {"feature_source": "redis", "redis_url": server.url, "feature_timeout_ms": 2000}

    async def use(app):
        for one in (first, second):
            await fill(one, Settings(store=store, **settings))
        before = await served(app)
        old = weakref.ref(app.serving.scorer.loaded.source)
        point(store, stable=second.bundle.bundle_id)
        done = await app.serving.reload()
        after = await served(app)
        await until(lambda: old() is None)
        return before, done.result, after

    before, result, after = with_app(store, use, alias_poll_s=0, **settings)
    assert result == "loaded"
    for one, (bundle, scores) in ((first, before), (second, after)):
        assert bundle == one.bundle.bundle_id
        assert scores == pytest.approx(one.expected_stored("home", 1, [1, 2, 3]).tolist(), abs=1e-6)
