"""The life of one request, top to bottom: route, features, overrides, graph.

Invariant: N candidates in, N finite probabilities out in the same order, or an error that says why.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from service.bundles.registry import LoadedBundle, Route
from service.contract.encode import EncodedBlock, EntityEncoder
from service.contract.errors import EncodeError
from service.contract.schema import Entity, SequenceFeature
from service.errors import InvalidRequest, NotFiniteError, UnknownDomain
from service.features.source import StoredRows
from service.scoring.admission import Deadline
from service.scoring.predictor import GraphRows
from service.scoring.query import ItemColumn, Query
from service.scoring.runner import Runner

HISTORY = "history"
USER_FEATURES = "user_features"
ITEM_FEATURES = "item_features"


class Scored(msgspec.Struct, frozen=True):
    """A scored request.

    Attributes:
        scores: (N,) float32 calibrated probabilities.
        route: What scored it.
        user: Stored row of the user, with overrides, and how it was found.
        items: The same of N candidates.
        degraded: Parts that failed and were replaced by a default; unknown ids are no failure.
        features_s: Seconds spent on stored features and overrides.
        infer_s: Seconds from handing rows to the runner until scores came back.
    """

    scores: NDArray[np.float32]
    route: Route
    user: StoredRows
    items: StoredRows
    degraded: tuple[str, ...]
    features_s: float
    infer_s: float

    @property
    def user_known(self) -> bool:
        """Whether the user's stored features were used."""
        return bool(self.user.known[0])

    @property
    def items_known(self) -> NDArray[np.bool_]:
        """(N,) bool, whether each candidate's were."""
        return self.items.known


class Scorer:
    """Scores requests with one loaded bundle.

    Args:
        loaded: The bundle.
        runner: Where graphs run.
        max_items: Most candidates in one request.
    """

    def __init__(self, loaded: LoadedBundle, runner: Runner, *, max_items: int) -> None:
        self.loaded = loaded
        self._runner = runner
        self._one_request = np.zeros(max_items, dtype=np.int64)
        self._no_context = loaded.encoders[Entity.CONTEXT].defaults(1)

    async def score(self, query: Query, deadline: Deadline) -> Scored:
        """Score the candidates of one request.

        Raises:
            UnknownDomain: The bundle does not list the domain and rejects such.
            InvalidRequest: A payload feature does not fit the schema, or is too large to be scored.
            DeadlineExceeded: The time ran out before the scores were there.
            GraphRunError: The graph failed.
        """
        with self.loaded.leases:
            return await self._score(query, deadline)

    async def _score(self, query: Query, deadline: Deadline) -> Scored:
        begun = time.perf_counter()
        route = self.route(query.domain)
        user, items = await self.loaded.source.fetch(
            query.user_id, query.item_ids, timeout_s=deadline.remaining_s()
        )
        deadline.check("features")
        if query.user_features or query.history is not None:
            self._override_user(user.block, query)
        if query.item_features:
            self._override_items(items.block, query)
        rows = GraphRows(
            user=user.block,
            context=self._context(query.context) if query.context else self._no_context,
            item=items.block,
            domain=route.index,
            request_index=self._one_request[: len(query.item_ids)],
        )
        ready = time.perf_counter()
        try:
            scores = await self._runner.run(route.predictor, rows, deadline)
        except NotFiniteError as error:
            if not query.overrides:
                raise
            raise InvalidRequest(
                f"the features of this request give candidate {error.row} no finite score", field="$"
            ) from None
        done = time.perf_counter()
        return Scored(scores, route, user, items, _degraded(user, items), ready - begun, done - ready)

    def route(self, domain: str) -> Route:
        """What scores a domain.

        Raises:
            UnknownDomain: It is not listed and such are rejected.
        """
        route = self.loaded.routes.get(domain, self.loaded.unknown)
        if route is None:
            raise UnknownDomain(
                f"domain {_shown(domain)} is not among the {len(self.loaded.routes)} domains of this model",
                field="$.domain",
                value=_shown(domain),
            )
        return route

    def feature_names(self, entity: Entity) -> frozenset[str]:
        """Features a payload may override."""
        return self.loaded.encoders[entity].feature_names

    @cached_property
    def history_feature(self) -> str | None:
        """The user's sequence that `user.history` means: the only one, or the one named `history`."""
        user = self.loaded.bundle.schema.of_entity(Entity.USER)
        names = [feature.name for feature in user if isinstance(feature, SequenceFeature)]
        if len(names) == 1:
            return names[0]
        return HISTORY if HISTORY in names else None

    def _override_user(self, block: EncodedBlock, query: Query) -> None:
        encoder = self.loaded.encoders[Entity.USER]
        for name, value in query.user_features.items():
            _encode_one(encoder, block, name, value, f"$.user.features.{name}")
        if query.history is None:
            return
        if self.history_feature is None:
            raise InvalidRequest("this model reads no user history", field="$.user.history")
        if self.history_feature in query.user_features:
            raise InvalidRequest(
                f"the history is given twice, here and as feature '{self.history_feature}'",
                field="$.user.history",
            )
        _encode_one(encoder, block, self.history_feature, query.history, "$.user.history")

    def _context(self, features: Mapping[str, Any]) -> EncodedBlock:
        encoder = self.loaded.encoders[Entity.CONTEXT]
        block = encoder.defaults(1)
        for name, value in features.items():
            _encode_one(encoder, block, name, value, f"$.context.{name}")
        return block

    def _override_items(self, block: EncodedBlock, query: Query) -> None:
        encoder = self.loaded.encoders[Entity.ITEM]
        for name, column in query.item_features.items():
            try:
                _encode_rows(encoder, block, name, column)
            except EncodeError as error:
                rows: Sequence[int] = range(len(block)) if column.rows is None else column.rows
                row = None if error.row is None else rows[error.row]
                raise InvalidRequest(
                    f"feature '{name}': {error.reason}", field=query.item_path(name, row)
                ) from None


def _degraded(user: StoredRows, items: StoredRows) -> tuple[str, ...]:
    """Parts that could not be read."""
    if user.status is None and items.status is None:
        return ()
    parts = (USER_FEATURES if user.failed else "", ITEM_FEATURES if items.failed else "")
    return tuple(part for part in parts if part)


def _encode_one(encoder: EntityEncoder, block: EncodedBlock, name: str, value: Any, path: str) -> None:
    try:
        encoder.encode_into(block, name, (value,))
    except EncodeError as error:
        raise InvalidRequest(f"feature '{name}': {error.reason}", field=path) from None


def _encode_rows(encoder: EntityEncoder, block: EncodedBlock, name: str, column: ItemColumn) -> None:
    if column.rows is None:
        encoder.encode_into(block, name, column.values)
        return
    rows = np.asarray(column.rows, dtype=np.intp)
    part = EncodedBlock(block.ints[rows], block.floats[rows])
    encoder.encode_into(part, name, column.values)
    block.ints[rows] = part.ints
    block.floats[rows] = part.floats


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


__all__ = ["Scored", "Scorer"]
