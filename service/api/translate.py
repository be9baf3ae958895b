"""Body bytes to `Query`: decoding, the limits that are settings, and one form for rows and columns.

Invariants: the cost is linear in the body; whatever is refused is refused with its JSON path, the
limit and what was sent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NoReturn, TypeVar, cast

import msgspec

from service.api.schemas import Item, ItemColumns, ScoreRequest, decode_request
from service.errors import InvalidRequest, MalformedBody, NoItems, TooLong, TooManyItems
from service.scoring.query import ItemColumn, Query

_PATH = re.compile(r"^(?P<text>.*) - at `(?P<path>\$.*)`$", re.DOTALL)
Decoded = TypeVar("Decoded")

MAX_DEPTH = 16
"""Levels of lists and objects within the value of a feature; the schema asks for three at most."""
MAX_FEATURES = 4096
"""Features of one entity in a request, of whatever names; a schema has far fewer."""
_SCALARS = {int, float, bool, type(None)}
_STRINGS = {str}


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one request; see the settings of the same names."""

    max_items: int
    max_string_length: int
    max_history: int


def decode(body: bytes) -> ScoreRequest:
    """Decode the body of `/score`; raises as `decode_as`."""
    return decode_as(decode_request, body)


def decode_as(decode_body: Callable[[bytes], Decoded], body: bytes) -> Decoded:
    """Decode a request body.

    Raises:
        MalformedBody: It is not JSON.
        InvalidRequest: It is JSON of another shape; the field says where.
    """
    try:
        return decode_body(body)
    except msgspec.ValidationError as error:
        match = _PATH.match(str(error))
        text, path = (match["text"], match["path"]) if match else (str(error), "$")
        raise InvalidRequest(f"{text} at {path}", field=path) from None
    except msgspec.DecodeError as error:
        raise MalformedBody(str(error) if body else "the body is empty; a JSON object is expected") from None
    except UnicodeDecodeError as error:
        raise MalformedBody(f"the body is not UTF-8 (byte {error.start})") from None
    except RecursionError:
        raise MalformedBody("the body is nested too deeply") from None


def to_query(request: ScoreRequest, limits: Limits, *, item_features: frozenset[str]) -> Query:
    """Check the limits and bring both forms of items into one.

    Args:
        request: As decoded.
        limits: Of this service.
        item_features: Names that items may override.

    Raises:
        InvalidRequest: A limit is exceeded, columns differ in length, or a feature is unknown.
    """
    check = _Check(limits)
    check.string(request.domain, "$.domain")
    check.string(request.request_id or "", "$.request_id")
    if request.session_id:
        check.string(request.session_id, "$.session_id")
    user = request.user
    user_id = None if user.id is None else check.ids((user.id,), "$.user.id", None)[0]
    if user.features:
        check.features(user.features, "$.user.features")
    if user.history:
        check.value(user.history, "$.user.history")
    if request.context:
        check.features(request.context, "$.context")
    items = request.items
    if isinstance(items, ItemColumns):
        ids, columns = _from_columns(items, check, item_features)
    else:
        ids, columns = _from_rows(items, check, item_features)
    return Query(
        domain=request.domain,
        user_id=user_id,
        user_features=user.features,
        history=user.history,
        context=request.context,
        item_ids=ids,
        item_features=columns,
        by_column=isinstance(items, ItemColumns),
    )


def _from_columns(
    items: ItemColumns, check: _Check, known: frozenset[str]
) -> tuple[Sequence[str], dict[str, ItemColumn]]:
    num_items = len(items.id)
    check.count(num_items)
    ids = check.ids(items.id, "$.items.id", "")
    columns: dict[str, ItemColumn] = {}
    for name, values in items.features.items():
        path = f"$.items.features.{name}"
        if name not in known:
            _unknown_feature(name, known, "$.items.features")
        if len(values) != num_items:
            raise InvalidRequest(
                f"has {len(values)} values for {num_items} items",
                field=path,
                limit=num_items,
                value=len(values),
            )
        check.column(values, path, None)
        columns[name] = ItemColumn(values)
    return ids, columns


def _from_rows(
    items: Sequence[Item], check: _Check, known: frozenset[str]
) -> tuple[Sequence[str], dict[str, ItemColumn]]:
    check.count(len(items))
    ids = check.ids([item.id for item in items], "$.items", ".id")
    features = [item.features for item in items]
    if not any(features):
        return ids, {}
    columns = _same_names(features, check, known)
    if columns is None:
        columns = _different_names(features, check, known)
    return ids, columns


def _same_names(
    features: Sequence[Mapping[str, Any]], check: _Check, known: frozenset[str]
) -> dict[str, ItemColumn] | None:
    """Columns of rows that all name the same features; None when they do not."""
    first = features[0]
    if not first or set(map(len, features)) != {len(first)}:
        return None
    pick = itemgetter(*first)
    try:
        rows = list(map(pick, features))
    except KeyError:
        return None
    columns: dict[str, ItemColumn] = {}
    for name, values in zip(first, [rows] if len(first) == 1 else zip(*rows, strict=True), strict=True):
        if name not in known:
            _unknown_feature(name, known, "$.items[0].features")
        check.column(values, f".features.{name}", range(len(features)))
        columns[name] = ItemColumn(values)
    return columns


def _different_names(
    features: Sequence[Mapping[str, Any]], check: _Check, known: frozenset[str]
) -> dict[str, ItemColumn]:
    """Columns of rows of which some lack a feature that others name."""
    names: dict[str, None] = {}
    for row, given in enumerate(features):
        for name in given.keys() - names.keys():
            if name not in known:
                _unknown_feature(name, known, f"$.items[{row}].features")
            names[name] = None
    columns: dict[str, ItemColumn] = {}
    for name in names:
        try:
            column = ItemColumn([given[name] for given in features])
        except KeyError:
            rows = [row for row, given in enumerate(features) if name in given]
            column = ItemColumn([features[row][name] for row in rows], rows)
        check.column(column.values, f".features.{name}", column.rows or range(len(features)))
        columns[name] = column
    return columns


def _unknown_feature(name: str, known: frozenset[str], path: str) -> NoReturn:
    names = ", ".join(sorted(known)) or "none"
    raise InvalidRequest(
        f"unknown item feature {_shown(name)}; known are: {names}", field=path, value=_shown(name)
    )


class _Check:
    """The limits, with the path of what exceeds them."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    def count(self, num_items: int) -> None:
        limit = self._limits.max_items
        if num_items == 0:
            raise NoItems(
                "there are no items to score; at least 1 is needed", field="$.items", limit=1, value=0
            )
        if num_items > limit:
            raise TooManyItems(
                f"{num_items} items were sent, at most {limit} are taken",
                field="$.items",
                limit=limit,
                value=num_items,
            )

    def string(self, text: str, path: str) -> None:
        limit = self._limits.max_string_length
        if len(text) > limit:
            raise TooLong(
                f"a string of {len(text)} characters was sent at {path}, at most {limit} are taken",
                field=path,
                limit=limit,
                value=len(text),
            )

    def ids(self, values: Sequence[str | int], path: str, suffix: str | None) -> Sequence[str]:
        """Canonical ids; `suffix` completes the path of a row, None means `values` is no list."""
        limit = self._limits.max_string_length
        try:
            texts = cast(Sequence[str], values)
            num_characters = len("".join(texts))  # the fastest look at all types
        except TypeError:
            texts = [str(value) for value in values]
            num_characters = sum(map(len, texts))
        if num_characters > limit and max(map(len, texts)) > limit:
            for row, text in enumerate(texts):
                self.string(text, path if suffix is None else f"{path}[{row}]{suffix}")
        return texts

    def features(self, features: Mapping[str, Any], path: str) -> None:
        self._size(len(features), MAX_FEATURES, path)
        for name, value in features.items():
            self.string(name, path)
            self.value(value, f"{path}.{name}")

    def column(self, values: Sequence[Any], path: str, rows: Sequence[int] | None) -> None:
        """One value per row; `rows` when the items came as rows, whose path then differs."""
        types = set(map(type, values))
        if types <= _SCALARS or (
            types == _STRINGS and max(map(len, values)) <= self._limits.max_string_length
        ):
            return
        for place, value in enumerate(values):
            kind = type(value)
            if kind is str and len(value) <= self._limits.max_string_length:
                continue
            if kind not in _SCALARS:
                where = f"{path}[{place}]" if rows is None else f"$.items[{rows[place]}]{path}"
                self.value(value, where)

    def value(self, value: Any, path: str, depth: int = 0) -> None:
        """Strings, lists and objects, down to `MAX_DEPTH`: what recurses later relies on that."""
        kind = type(value)
        if kind is str:
            self.string(value, path)
        elif kind is dict or kind is list:
            self._size(len(value), self._limits.max_history, path)
            if depth == MAX_DEPTH:
                raise InvalidRequest(
                    f"a value is nested too deeply, at most {MAX_DEPTH} levels are taken",
                    field=path,
                    limit=MAX_DEPTH,
                )
            if kind is dict:
                for name, inner in value.items():
                    self.string(name, path)
                    if type(inner) not in _SCALARS:
                        self.value(inner, f"{path}.{name}", depth + 1)
            elif not set(map(type, value)) <= _SCALARS:
                for place, inner in enumerate(value):
                    self.value(inner, f"{path}[{place}]", depth + 1)

    def _size(self, count: int, limit: int, path: str) -> None:
        if count > limit:
            raise TooLong(
                f"a list of {count} values was sent at {path}, at most {limit} are taken",
                field=path,
                limit=limit,
                value=count,
            )


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


__all__ = ["Limits", "decode", "decode_as", "to_query"]
