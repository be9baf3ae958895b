"""Builds feature sources from settings: the embedded one of each bundle, or Redis for all of them.

Bundles of one schema share a source, and with it the near cache; all sources of a process share the
connections. Invariant: a store that is down never keeps a bundle from being served; it is logged,
counted, and tried again.
"""

from __future__ import annotations

import asyncio
import math
from weakref import WeakValueDictionary

from service.contract.bundle import Bundle
from service.contract.layout import entity_layout
from service.contract.schema import Entity, FeatureSchema
from service.features.blob import BlobCodec
from service.features.cluster import ClusterReader
from service.features.connection import parse_addresses
from service.features.ids import id_limits
from service.features.keys import KeySpace
from service.features.memory_source import MemorySource
from service.features.near_cache import NearCache
from service.features.node import NodeOptions
from service.features.reader import BlobReader, ServerReader
from service.features.redis_source import EntityGroup, RedisSource
from service.features.source import FeatureSource
from service.settings import Settings
from service.telemetry.log import get_logger
from service.telemetry.metrics import FeatureMetrics, GroupMetrics

log = get_logger(__name__)


class FeatureSources:
    """The feature sources of one process.

    Args:
        settings: Which kind, and how to treat it.
        metrics: Of the feature store.
    """

    def __init__(self, settings: Settings, metrics: FeatureMetrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._reader = make_reader(settings, metrics)
        self._by_digest: WeakValueDictionary[str, RedisSource] = WeakValueDictionary()
        self._warming: asyncio.Task[None] | None = None

    def open(self, bundle: Bundle) -> FeatureSource:
        """The source of a bundle; safe off the event loop, since nothing connects here.

        Raises:
            BundleError: The bundle's own snapshot is to be served and does not fit.
        """
        if self._reader is None:
            return MemorySource.from_bundle(bundle)
        digest = bundle.schema.digest
        source = self._by_digest.get(digest)
        if source is None:
            source = self._by_digest[digest] = self._redis_source(bundle.schema, self._reader)
        return source

    def start(self) -> None:
        """Connect in the background, so that the first request need not wait for it."""
        if self._reader is not None:
            self._warming = asyncio.get_running_loop().create_task(self._warm(self._reader))

    async def probe(self) -> bool | None:
        """Whether the store answers; None for the embedded source. Leaves no connection behind."""
        if self._reader is None:
            return None
        try:
            return await self._reader.warm()
        finally:
            self._reader.close()

    def close(self) -> None:
        """Close all connections."""
        if self._warming is not None:
            self._warming.cancel()
        if self._reader is not None:
            self._reader.close()

    async def _warm(self, reader: BlobReader) -> None:
        if await reader.warm():
            log.info("feature_store_connected", source=self._settings.feature_source)
        else:
            log.warning("feature_store_down", consequence="until it is back, defaults stand in")

    def _redis_source(self, schema: FeatureSchema, reader: BlobReader) -> RedisSource:
        settings = self._settings
        users = self._group(
            schema,
            Entity.USER,
            max_bytes=settings.near_cache_user_bytes,
            max_age_s=settings.feature_user_max_age_s,
            metrics=self._metrics.user,
        )
        items = self._group(
            schema,
            Entity.ITEM,
            max_bytes=settings.near_cache_item_bytes,
            max_age_s=settings.feature_item_max_age_s,
            metrics=self._metrics.item,
        )
        return RedisSource(reader, users, items, timeout_s=settings.feature_timeout_ms / 1000)

    def _group(
        self,
        schema: FeatureSchema,
        entity: Entity,
        *,
        max_bytes: int,
        max_age_s: float,
        metrics: GroupMetrics,
    ) -> EntityGroup:
        settings = self._settings
        layout = entity_layout(schema, entity)
        space = KeySpace(settings.redis_key_prefix, schema.digest, entity)
        cache = NearCache(
            layout,
            max_bytes=max_bytes,
            ttl_s=settings.near_cache_ttl_s,
            missing_ttl_s=settings.near_cache_missing_ttl_s,
            jitter_ratio=settings.near_cache_jitter_ratio,
        )
        return EntityGroup(
            layout,
            BlobCodec(layout, id_limits(schema, layout), space),
            space,
            cache,
            max_age_s=max_age_s or math.inf,
            use_stale=settings.feature_stale == "use",
            metrics=metrics,
        )


def make_reader(settings: Settings, metrics: FeatureMetrics) -> BlobReader | None:
    """Reader of the server or cluster that the settings name; None for the embedded source.

    Raises:
        StartupError: A Redis URL cannot be read.
    """
    if settings.feature_source == "memory":
        return None
    options = NodeOptions(
        timeout_s=settings.feature_timeout_ms / 1000,
        connect_timeout_s=settings.redis_connect_timeout_ms / 1000,
        num_connections=settings.redis_connections,
        breaker_failures=settings.breaker_failures,
        breaker_window=settings.breaker_window,
        breaker_open_s=settings.breaker_open_s,
    )
    addresses = parse_addresses(settings.redis_urls())
    if settings.feature_source == "redis":
        return ServerReader(addresses[0], options, metrics)
    return ClusterReader(addresses, options, metrics)


__all__ = ["FeatureSources", "make_reader"]
