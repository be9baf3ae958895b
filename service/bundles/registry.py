"""A bundle in memory, verified and warm.

`LoadedBundle.load` opens a bundle, its graphs, its feature snapshot and its encoders, replays the
golden rows and times warm-up runs. It blocks for as long as that takes: call it off the event loop.
Invariant: a `LoadedBundle` that exists has scored its golden rows right.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from service.bundles.leases import Leases
from service.contract.bundle import GOLDEN_FILE, Bundle
from service.contract.encode import EntityEncoder
from service.contract.manifest import InputSource, Manifest
from service.contract.schema import Entity, FeatureSchema
from service.contract.store import ModelStore
from service.errors import GraphError
from service.features.ids import id_limits
from service.features.memory_source import MemorySource
from service.features.source import FeatureSource
from service.scoring.golden import TOLERANCE, check_golden, read_golden
from service.scoring.placement import Device
from service.scoring.predictor import GraphRows, Predictor
from service.telemetry.log import get_logger

WARM_UP_REPEATS = 3

UnknownPolicy = Literal["manifest", "reject", "zero_shot"]
Encoders = dict[Entity, EntityEncoder]

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Route:
    """What scores one domain.

    Attributes:
        index: (1,) int64, the domain's row in the graph's tables.
        graph: Key of the graph.
        predictor: The graph, ready to run.
        cluster: Of the domain, when it has one; of unknown domains, the default cluster.
        listed: False for the route of unknown domains.
    """

    index: NDArray[np.int64]
    graph: str
    predictor: Predictor
    cluster: int | None
    listed: bool


@dataclass(frozen=True)
class LoadedBundle:
    """Everything one bundle needs to score.

    Attributes:
        bundle: As opened.
        alias: Under which it was asked for.
        predictors: By graph key.
        routes: By domain name.
        unknown: Route of domains that are not listed; None when they are rejected.
        encoders: By entity.
        source: Stored features.
        golden_error: Largest |score - expected| over the golden rows, by graph.
        load_s: Seconds it took.
        leases: Requests that score on it now; shared by all copies of one loaded bundle.
    """

    bundle: Bundle
    alias: str
    predictors: dict[str, Predictor]
    routes: dict[str, Route]
    unknown: Route | None
    encoders: Encoders
    source: FeatureSource
    golden_error: dict[str, float]
    load_s: float
    leases: Leases = field(default_factory=Leases, compare=False)

    @cached_property
    def bundle_id(self) -> str:
        """Sha256 (hex) of the bundle; kept, since the manifest would hash itself on every request."""
        return self.bundle.bundle_id

    @property
    def version(self) -> str:
        """Short id for labels and logs: 12 hex digits."""
        return self.bundle_id[:12]

    @cached_property
    def num_bytes(self) -> int:
        """Estimate of the memory it takes."""
        return estimate_bytes(self.bundle.manifest)

    @classmethod
    def load(
        cls,
        store: ModelStore,
        alias: str,
        *,
        device: Device = "cpu",
        unknown_domain: UnknownPolicy = "manifest",
        tolerance: float = TOLERANCE,
        check_ids: bool = False,
        open_source: Callable[[Bundle], FeatureSource] = MemorySource.from_bundle,
    ) -> LoadedBundle:
        """Open, verify, replay and warm.

        Args:
            store: Where bundles are.
            alias: Alias, id or prefix of an id.
            device: Where graphs run.
            unknown_domain: Overrides the bundle's policy unless `manifest`.
            tolerance: Largest allowed golden difference.
            check_ids: Range-check ids before every run.
            open_source: Opens the feature source of a bundle.

        Raises:
            ContractError: The store lacks the bundle, or it is damaged.
            StartupError: A graph does not open or fit, or golden rows differ.
        """
        begun = time.perf_counter()
        bundle = store.open(alias)
        encoders = {entity: EntityEncoder(bundle.schema, entity) for entity in Entity}
        limits = _limits(bundle.schema, encoders) if check_ids else None
        predictors = {
            key: Predictor(bundle.file(graph.file), graph, device=device, id_limits=limits)
            for key, graph in bundle.manifest.graphs.items()
        }
        _tell_placements(bundle, device, predictors)
        for key, predictor in predictors.items():
            _check_widths(key, predictor, encoders)
        source = open_source(bundle)
        golden_error = check_golden(predictors, read_golden(bundle.file(GOLDEN_FILE)), tolerance=tolerance)
        for key, predictor in predictors.items():
            _warm_up(predictor, encoders, _served(bundle, key))
        routes, unknown = _routes(bundle, predictors, unknown_domain)
        load_s = time.perf_counter() - begun
        return cls(bundle, alias, predictors, routes, unknown, encoders, source, golden_error, load_s)


def estimate_bytes(manifest: Manifest) -> int:
    """Memory of an open bundle, about: the files of its graphs, weights and feature snapshot."""
    files = {name for graph in manifest.graphs.values() for name in (graph.file, *graph.external_files)}
    files |= {name for kept in manifest.features.values() for name in (kept.ids, kept.ints, kept.floats)}
    return sum(manifest.files[name].num_bytes for name in files)


def _tell_placements(bundle: Bundle, device: Device, predictors: dict[str, Predictor]) -> None:
    """One line of the log for each way in which graphs of a bundle were placed."""
    told: list[tuple[dict[str, Any], list[str]]] = []
    for key, predictor in predictors.items():
        shown = predictor.placement.shown()
        same = next((keys for found, keys in told if found == shown), None)
        if same is None:
            told.append((shown, [key]))
        else:
            same.append(key)
    for shown, keys in told:
        log.info("graphs_placed", bundle=bundle.bundle_id, device=device, graphs=keys, **shown)


def _routes(
    bundle: Bundle, predictors: dict[str, Predictor], policy: UnknownPolicy
) -> tuple[dict[str, Route], Route | None]:
    manifest = bundle.manifest
    routes = {
        name: Route(_index(entry.index), entry.graph, predictors[entry.graph], entry.cluster, listed=True)
        for name, entry in manifest.domains.items()
    }
    if (manifest.unknown_domain.policy if policy == "manifest" else policy) == "reject":
        return routes, None
    graph = manifest.unknown_domain.graph
    cluster = None if manifest.clustering is None else manifest.clustering.default_cluster
    unknown = Route(_index(bundle.schema.num_domains), graph, predictors[graph], cluster, listed=False)
    return routes, unknown


def _index(domain: int) -> NDArray[np.int64]:
    return np.array([domain], dtype=np.int64)


def _limits(schema: FeatureSchema, encoders: Encoders) -> dict[InputSource, NDArray[np.int64]]:
    return {
        "user.ints": id_limits(schema, encoders[Entity.USER].layout),
        "item.ints": id_limits(schema, encoders[Entity.ITEM].layout),
        "context.ints": id_limits(schema, encoders[Entity.CONTEXT].layout),
    }


def _check_widths(key: str, predictor: Predictor, encoders: Encoders) -> None:
    """The graph takes rows as wide as the schema makes them.

    Raises:
        GraphError: It does not.
    """
    for entry in predictor.graph.inputs:
        entity, _, block = entry.source.partition(".")
        if block:
            layout = encoders[Entity(entity)].layout
            width = layout.int_width if block == "ints" else layout.float_width
        else:
            width = 0
        if entry.width != width:
            raise GraphError(
                f"graph '{key}': input '{entry.name}' takes width {entry.width}, the schema gives {width}"
            )


def _served(bundle: Bundle, graph: str) -> NDArray[np.int64]:
    """A domain index that a graph serves: one made for some domains need not score others."""
    domains = bundle.manifest.domains.values()
    own = next((entry.index for entry in domains if entry.graph == graph), bundle.schema.num_domains)
    return _index(own)


def _warm_up(predictor: Predictor, encoders: Encoders, domain: NDArray[np.int64]) -> None:
    """Run default rows of a domain at a few sizes, so that the clock knows what to expect."""
    for num_rows in predictor.warm_up_rows:
        rows = GraphRows(
            user=encoders[Entity.USER].defaults(1),
            context=encoders[Entity.CONTEXT].defaults(1),
            item=encoders[Entity.ITEM].defaults(num_rows),
            domain=domain,
            request_index=np.zeros(num_rows, dtype=np.int64),
        )
        predictor.score(rows)  # the first run of a size allocates
        for _ in range(WARM_UP_REPEATS):
            begun = time.perf_counter()
            predictor.score(rows)
            predictor.clock.record(num_rows, (time.perf_counter() - begun) * 1000)


__all__ = ["LoadedBundle", "Route", "estimate_bytes"]
