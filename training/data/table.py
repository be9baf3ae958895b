"""What `dataset.yaml` may say: the description of a raw data set ("bring your own table").

Pure values, no I/O. Unknown keys are refused everywhere. Rules that span several parts (names, roles,
outcomes) are in `table_rules`; `source` reads the file and words the errors.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from service.contract.schema import Entity, Name
from training.data.where import Value

Many = str | tuple[str, ...]


class Strict(BaseModel):
    """A frozen value; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _named(key: str) -> BeforeValidator:
    """Let a plain string stand for a mapping with that one key."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)


class ExtraFile(Strict):
    """A parquet file whose columns are joined to an entity's table; keys the table lacks are ignored."""

    file: str
    key: str | None = Field(default=None, description="Key column; the entity table's key when absent.")


class EntityFile(Strict):
    """One row per user or item."""

    file: str
    key: str
    extra_files: tuple[ExtraFile, ...] = ()


class DomainColumn(Strict):
    """The domain's name is the prefix followed by the column's value."""

    column: str
    prefix: str = Field(default="", max_length=40)


class TimeColumn(Strict):
    """When the row was shown; a timestamp column needs no unit."""

    column: str
    unit: Literal["s", "ms", "us", "step"] = Field(
        default="ms", description="`step`: whole numbers that only rise; no clock time can be had from them."
    )
    timezone_offset_h: float = Field(
        default=0.0, ge=-14, le=14, description="Local time minus UTC, in hours."
    )


class Columns(Strict):
    """Roles of the columns of the interactions table."""

    user: str
    item: str
    domain: Annotated[DomainColumn, _named("column")]
    label: str
    time: Annotated[TimeColumn, _named("column")]
    split: str | None = None
    weight: str | None = None
    true_probability: str | None = None


class SplitRule(Strict):
    """How to cut the log in time when it has no split column: by share of rows, or by first moment."""

    valid_fraction: float | None = Field(default=None, gt=0, lt=1)
    test_fraction: float | None = Field(default=None, gt=0, lt=1)
    valid_from: int | str | None = Field(default=None, description="In the time column's unit, or ISO 8601.")
    test_from: int | str | None = Field(default=None, description="In the time column's unit, or ISO 8601.")
    allow_overlap: bool = Field(default=False, description="Take splits that are not in time order.")


class VocabularySpec(Strict):
    """Values seen in at least `min_count` train rows, most frequent first."""

    type: Literal["vocabulary"] = "vocabulary"
    min_count: int = Field(default=1, ge=1)
    max_size: int | None = Field(default=None, ge=1)


class HashSpec(Strict):
    """Seeded hash onto `num_buckets` rows."""

    type: Literal["hash"]
    num_buckets: int = Field(ge=1, le=2**30)
    seed: int = Field(default=0, ge=0)


class BucketiseSpec(Strict):
    """Given boundaries, or quantiles of the train rows."""

    type: Literal["bucketise"]
    boundaries: tuple[float, ...] | None = Field(default=None, min_length=1)
    num_quantiles: int = Field(default=16, ge=2, le=4096)


class StandardiseSpec(Strict):
    """Mean 0 and deviation 1 over train rows, after the transform."""

    type: Literal["standardise"]
    transform: Literal["none", "log1p"] = "none"
    centre: bool = Field(
        default=True, description="False divides by the root mean square and leaves 0 at 0, for vectors."
    )
    clip: float = Field(default=8.0, gt=0)


EncoderSpec = Annotated[
    VocabularySpec | HashSpec | BucketiseSpec | StandardiseSpec, Field(discriminator="type")
]
EncoderChoice = EncoderSpec | Name


class TimePart(Strict):
    """A context column derived from the time column, in its local time: hour 0-23, weekday 0 (Monday)-6."""

    from_time: Literal["hour", "weekday"]


class _FeatureSpec(Strict):
    name: Name
    entity: Entity
    description: str = ""


class CategoricalSpec(_FeatureSpec):
    """One id per row."""

    kind: Literal["categorical"]
    column: str | TimePart | None = None
    encoder: EncoderChoice = VocabularySpec()
    is_id: bool | None = Field(default=None, description="Default: whether the column is the entity's key.")


class MultiSpec(_FeatureSpec):
    """A list of ids, or a string cut at `separator`; optionally one weight each from a parallel list."""

    kind: Literal["multi"]
    column: str | None = None
    separator: str | None = Field(default=None, min_length=1)
    encoder: EncoderChoice = VocabularySpec()
    max_len: int = Field(ge=1, le=4096)
    weights: str | None = None


class FieldSpec(Strict):
    """One parallel list column of a sequence, oldest event first."""

    name: Name
    column: str
    encoder: EncoderChoice = VocabularySpec()


class SequenceSpec(_FeatureSpec):
    """Events in time order, oldest first; the newest `max_len` are kept."""

    kind: Literal["sequence"]
    fields: tuple[FieldSpec, ...] = Field(min_length=1)
    max_len: int = Field(ge=1, le=4096)


class NumericSpec(_FeatureSpec):
    """A number, or a list of `width` numbers."""

    kind: Literal["numeric"]
    column: str | None = None
    encoder: EncoderChoice = StandardiseSpec(type="standardise")
    width: int = Field(default=1, ge=1, le=1024)


class DotSpec(Strict):
    """Row-level number: the dot product of two vectors of equal width, as the exported graph computes it."""

    name: Name
    left: str
    right: str


FeatureSpec = Annotated[CategoricalSpec | MultiSpec | SequenceSpec | NumericSpec, Field(discriminator="kind")]


class KeySpec(Strict):
    """Counts and click rates per value of one key, or per pair of keys.

    The first key is the holder: a categorical or bucketised attribute of user or item. A second key is a
    categorical feature of another entity, or `domain`; the holder then keeps a map of its `top` most seen
    second keys.
    """

    key: tuple[str, ...] = Field(min_length=1, max_length=2)
    top: int = Field(default=16, ge=1, le=4096)
    parent: bool = Field(default=False, description="Shrink a pair's rate to the holder's own rate.")
    smoothing: float | None = Field(default=None, gt=0)


class StatisticsSpec(Strict):
    """Aggregates of past rows, as of the start of each row's snapshot period."""

    snapshot: str = Field(
        default="1d",
        pattern=r"^([1-9][0-9]*[dh]|row|order)$",
        description="Period; `row`: each moment; `order`: each row, in a log that is written in time order.",
    )
    timezone_offset_h: float | None = Field(
        default=None, ge=-14, le=14, description="Default: the time column's."
    )
    smoothing: float = Field(default=20.0, gt=0, description="Rows of prior that a rate starts from.")
    targets: tuple[str, ...] = Field(
        default=("label",), description="0/1 columns; `label` is the label column."
    )
    keys: tuple[KeySpec, ...] = ()


class AggregateSpec(Strict):
    """Of an item attribute over a history: the mean of a number, or the share of each category."""

    of: str
    how: Literal["mean", "share"]
    top: int = Field(default=16, ge=1, le=4096)


class HistoryListSpec(Strict):
    """Aggregates of one recorded history (a sequence feature of the user whose field lists item ids)."""

    feature: str
    field: str | None = Field(default=None, description="Field that lists item ids; default: the first.")
    length: bool = True
    popularity: bool = True
    aggregates: tuple[AggregateSpec, ...] = ()


class RaschSpec(Strict):
    """Rasch model of which items of the history `among` also stand in `chosen`: ability and difficulty."""

    name: Name
    among: str
    chosen: str
    user_ridge: float = Field(default=1.0, gt=0, description="Pull of abilities to 0.")
    item_ridge: float = Field(default=2.0, gt=0, description="Pull of difficulties to 0.")
    steps: int = Field(default=6, ge=1, le=100)


class FactorSum(Strict):
    """A user vector: sum of item factors over a history, or weighted by the residuals of a Rasch model."""

    over: str | None = None
    residuals: str | None = Field(default=None, description="Name in history.rasch.")

    @property
    def name(self) -> str:
        """What the user vector is called after."""
        return str(self.over or self.residuals)


class FactorsSpec(Strict):
    """Truncated singular vectors of the user x item matrix of some histories, and their dot product.

    With `sums`, items keep their vectors, at length 1, and users get one vector and dot product per sum.
    """

    name: Name
    lists: tuple[str, ...] = Field(min_length=1)
    width: int = Field(default=32, ge=1, le=512)
    sums: tuple[FactorSum, ...] = ()


class PropensitySpec(Strict):
    """How often items of the history `among` also stand in the history `chosen`."""

    name: Name
    among: str
    chosen: str
    smoothing: float = Field(default=10.0, gt=0)
    item_smoothing: float | None = Field(default=None, gt=0, description="Of items; default: smoothing.")


class RatioSpec(Strict):
    """Events in the history `chosen` against those in `among`, and against what the user was shown.

    Unlike a propensity it counts events that only `chosen` holds, which pays where both lists keep a
    limited number of events.
    """

    name: Name
    among: str
    chosen: str
    smoothing: float = Field(default=5.0, gt=0, description="Events that each side of an item starts from.")
    shown: str | None = Field(default=None, description="Numeric feature of the user: rows shown before.")
    shown_cap: float = Field(default=100.0, gt=0, description="More rows shown count as this many.")


class HistorySpec(Strict):
    """Static aggregates of histories that were recorded before the log starts."""

    lists: tuple[HistoryListSpec, ...] = ()
    propensity: tuple[PropensitySpec, ...] = ()
    ratios: tuple[RatioSpec, ...] = ()
    rasch: tuple[RaschSpec, ...] = ()
    factors: tuple[FactorsSpec, ...] = ()


def _empty(value: Any) -> Any:
    return {} if value is None or value == [] else value


class DatasetDescription(Strict):
    """All of `dataset.yaml`."""

    name: Name
    root: str | None = Field(default=None, description="Folder of the files; default: where the yaml lies.")
    interactions: Many = Field(description="Parquet file, list of files, or glob.")
    users: EntityFile | None = None
    items: EntityFile | None = None
    where: Annotated[
        dict[str, Value | Annotated[tuple[Value, ...], Field(min_length=1)]], BeforeValidator(_empty)
    ] = Field(
        default={}, description="Rows to read: column -> value, or list of values. Others are left out."
    )
    columns: Columns
    split: Annotated[SplitRule, BeforeValidator(_empty)] = SplitRule()
    outcomes: tuple[str, ...] = ()
    features: tuple[FeatureSpec, ...] = Field(min_length=1)
    dots: tuple[DotSpec, ...] = ()
    statistics: Annotated[StatisticsSpec, BeforeValidator(_empty)] = StatisticsSpec()
    history: Annotated[HistorySpec, BeforeValidator(_empty)] = HistorySpec()

    def feature(self, name: str) -> CategoricalSpec | MultiSpec | SequenceSpec | NumericSpec | None:
        """The feature of that name, None when there is none."""
        return next((f for f in self.features if f.name == name), None)

    def entity_file(self, entity: Entity) -> EntityFile | None:
        """The table of an entity, None when it has none."""
        return {Entity.USER: self.users, Entity.ITEM: self.items}.get(entity)

    def key_column(self, entity: Entity) -> str | None:
        """Column of the interactions that names an entity; None for the context."""
        return {Entity.USER: self.columns.user, Entity.ITEM: self.columns.item}.get(entity)


def input_columns(feature: CategoricalSpec | MultiSpec | SequenceSpec | NumericSpec) -> tuple[str, ...]:
    """Raw columns that a feature reads; none for a part of the time."""
    match feature:
        case SequenceSpec():
            return tuple(field.column for field in feature.fields)
        case CategoricalSpec(column=TimePart()):
            return ()
        case CategoricalSpec() | NumericSpec():
            column = feature.column
            return (column if isinstance(column, str) else feature.name,)
        case MultiSpec():
            own = (feature.column or feature.name,)
            return own if feature.weights is None else (*own, feature.weights)
