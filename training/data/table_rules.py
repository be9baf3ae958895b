"""Rules that span several parts of a `DatasetDescription`: roles, outcomes, shared encoders, keys, histories.

Pure; raises `DescriptionError` with the field, the value and what is allowed.
Invariant: a description that passes names no outcome, label, time or split column as an input.
"""

from __future__ import annotations

from service.contract.schema import DOMAIN_ENCODER, Entity
from training.data.errors import DescriptionError
from training.data.table import (
    BucketiseSpec,
    CategoricalSpec,
    DatasetDescription,
    DotSpec,
    FactorsSpec,
    FeatureSpec,
    HistorySpec,
    KeySpec,
    NumericSpec,
    RatioSpec,
    SequenceSpec,
    SplitRule,
    StandardiseSpec,
    TimePart,
    input_columns,
)


def check_description(description: DatasetDescription) -> None:
    """Refuse contradictions.

    Raises:
        DescriptionError: The first one found.
    """
    names = [f.name for f in description.features]
    for name in names:
        if names.count(name) > 1:
            raise DescriptionError(f"features: the name '{name}' is used twice")
    _check_split(description)
    _check_roles(description)
    _check_where(description)
    _check_steps(description)
    for feature in description.features:
        _check_inputs(description, feature)
        for place, choice in encoder_choices(feature):
            if isinstance(choice, str):
                encoder_owner(description, choice, place)
    _check_targets(description)
    for key in description.statistics.keys:
        _check_key(description, key)
    for dot in description.dots:
        _check_dot(description, dot)
    _check_history(description)


def encoder_choices(feature: FeatureSpec) -> list[tuple[str, object]]:
    """(name of the place, encoder as described) for each encoder that a feature asks for."""
    if isinstance(feature, SequenceSpec):
        return [(f"{feature.name}.{field.name}", field.encoder) for field in feature.fields]
    return [(feature.name, feature.encoder)]


def encoder_owner(description: DatasetDescription, name: str, place: str) -> str:
    """Follow `encoder: <feature name>` to the place that defines the encoder.

    Raises:
        DescriptionError: The name is no feature, or names one that itself borrows.
    """
    owners = {p: c for f in description.features for p, c in encoder_choices(f)}
    if name == DOMAIN_ENCODER:
        return DOMAIN_ENCODER
    if name not in owners:
        allowed = ", ".join(sorted(p for p, c in owners.items() if not isinstance(c, str)))
        raise DescriptionError(
            f"features: '{place}' shares the encoder '{name}', which no feature has; "
            f"allowed: domain, {allowed}"
        )
    if isinstance(owners[name], str):
        raise DescriptionError(
            f"features: '{place}' shares the encoder of '{name}', which itself shares '{owners[name]}'; "
            "name that one"
        )
    return name


def _check_split(description: DatasetDescription) -> None:
    rule, column = description.split, description.columns.split
    cuts = {name: getattr(rule, name) for name in SplitRule.model_fields if name != "allow_overlap"}
    given = sorted(name for name, value in cuts.items() if value is not None)
    if column is not None and given:
        raise DescriptionError(f"split: {given} given, but columns.split is '{column}'; give one of the two")
    if column is None and given not in (["test_fraction", "valid_fraction"], ["test_from", "valid_from"]):
        raise DescriptionError(
            f"split: got {given or 'nothing'} and no columns.split; allowed: valid_fraction and "
            "test_fraction, or valid_from and test_from, or a split column"
        )
    if rule.valid_fraction and rule.test_fraction and rule.valid_fraction + rule.test_fraction >= 1:
        total = rule.valid_fraction + rule.test_fraction
        raise DescriptionError(f"split: valid_fraction + test_fraction is {total}; must be below 1")


def _roles(description: DatasetDescription) -> dict[str, str]:
    """Columns that no feature may read, with the reason."""
    c = description.columns
    roles = dict.fromkeys(description.outcomes, "is an outcome, recorded after the exposure")
    roles |= {c.label: "is the label", c.time.column: "is the time column (use column: {from_time: ...})"}
    for name, column in (("split", c.split), ("weight", c.weight), ("true_probability", c.true_probability)):
        if column is not None:
            roles[column] = f"is the {name} column"
    return roles


def _check_roles(description: DatasetDescription) -> None:
    c = description.columns
    for field, column in (("user", c.user), ("item", c.item), ("domain", c.domain.column)):
        if column in _roles(description):
            raise DescriptionError(
                f"columns.{field}: column '{column}' {_roles(description)[column]}; it cannot be an input"
            )


def _check_where(description: DatasetDescription) -> None:
    told = dict.fromkeys(description.outcomes, "an outcome") | {description.columns.label: "the label"}
    for column in description.where:
        if column in told:
            raise DescriptionError(
                f"where: column '{column}' is {told[column]}; rows cannot be chosen by what followed them"
            )


def _check_steps(description: DatasetDescription) -> None:
    """Steps have no hour, so nothing may ask for one."""
    if description.columns.time.unit != "step":
        return
    snapshot = description.statistics.snapshot
    if description.statistics.keys and snapshot not in ("row", "order"):
        raise DescriptionError(
            f"statistics.snapshot: {snapshot!r}, but the time column counts steps; allowed: row, order"
        )
    for feature in description.features:
        if isinstance(feature, CategoricalSpec) and isinstance(feature.column, TimePart):
            raise DescriptionError(
                f"features: '{feature.name}' wants the {feature.column.from_time}, but the time column "
                "counts steps"
            )


def _check_inputs(description: DatasetDescription, feature: FeatureSpec) -> None:
    roles = _roles(description)
    for column in input_columns(feature):
        if column in roles:
            raise DescriptionError(
                f"features: '{feature.name}' reads column '{column}', which {roles[column]}; "
                "it cannot be an input (outcomes may only be `targets` of statistics)"
            )
    derived = isinstance(feature, CategoricalSpec) and isinstance(feature.column, TimePart)
    if derived and feature.entity is not Entity.CONTEXT:
        raise DescriptionError(
            f"features: '{feature.name}' is derived from the time, so its entity must be context, "
            f"not {feature.entity}"
        )
    if isinstance(feature, NumericSpec) and isinstance(feature.encoder, str):
        owner = description.feature(feature.encoder)
        if owner is not None and not isinstance(owner, NumericSpec):
            raise DescriptionError(f"features: numeric '{feature.name}' cannot share '{feature.encoder}'")


def _check_targets(description: DatasetDescription) -> None:
    allowed = {"label", description.columns.label, *description.outcomes}
    for target in description.statistics.targets:
        if target not in allowed:
            raise DescriptionError(
                f"statistics.targets: '{target}' is neither the label nor an outcome; "
                f"allowed: {sorted(allowed)}"
            )


def _categorical(description: DatasetDescription, name: str, place: str) -> CategoricalSpec:
    feature = description.feature(name)
    if not isinstance(feature, CategoricalSpec):
        allowed = sorted(f.name for f in description.features if isinstance(f, CategoricalSpec))
        kind = "unknown" if feature is None else feature.kind
        raise DescriptionError(f"{place}: '{name}' is {kind}; allowed: categorical features {allowed}")
    return feature


def _holder(description: DatasetDescription, name: str, place: str) -> CategoricalSpec | NumericSpec:
    feature = description.feature(name)
    if isinstance(feature, NumericSpec) and isinstance(feature.encoder, BucketiseSpec):
        return feature
    return _categorical(description, name, place)


def _check_key(description: DatasetDescription, key: KeySpec) -> None:
    place = f"statistics.keys {list(key.key)}"
    holder = _holder(description, key.key[0], place)
    if holder.entity is Entity.CONTEXT:
        raise DescriptionError(
            f"{place}: the first key '{holder.name}' must belong to user or item, not context"
        )
    if len(key.key) == 1 and key.parent:
        raise DescriptionError(f"{place}: parent needs a pair of keys")
    if len(key.key) == 2 and key.key[1] != DOMAIN_ENCODER:
        second = _categorical(description, key.key[1], place)
        if second.entity is holder.entity:
            raise DescriptionError(
                f"{place}: both keys belong to {holder.entity}; the second must be of another "
                "entity or `domain`"
            )


def _check_dot(description: DatasetDescription, dot: DotSpec) -> None:
    sides = []
    for name in (dot.left, dot.right):
        feature = description.feature(name)
        plain = isinstance(feature, NumericSpec) and isinstance(feature.encoder, StandardiseSpec)
        if not isinstance(feature, NumericSpec) or not plain:
            raise DescriptionError(f"dots '{dot.name}': '{name}' is no standardised numeric feature")
        if isinstance(feature.encoder, StandardiseSpec) and feature.encoder.centre:
            raise DescriptionError(
                f"dots '{dot.name}': '{name}' is centred, which bends dot products; set encoder.centre: false"
            )
        sides.append(feature)
    if sides[0].width != sides[1].width:
        raise DescriptionError(
            f"dots '{dot.name}': '{dot.left}' has width {sides[0].width}, '{dot.right}' {sides[1].width}; "
            "they must be equal"
        )


def _check_history(description: DatasetDescription) -> None:
    history = description.history
    known = {entry.feature for entry in history.lists}
    for entry in history.lists:
        feature = description.feature(entry.feature)
        if not isinstance(feature, SequenceSpec) or feature.entity is not Entity.USER:
            allowed = sorted(
                f.name
                for f in description.features
                if isinstance(f, SequenceSpec) and f.entity is Entity.USER
            )
            raise DescriptionError(
                f"history.lists: '{entry.feature}' is no sequence feature of the user; allowed: {allowed}"
            )
        fields = [f.name for f in feature.fields]
        if entry.field is not None and entry.field not in fields:
            raise DescriptionError(f"history.lists '{entry.feature}': no field '{entry.field}' in {fields}")
        for aggregate in entry.aggregates:
            source = description.feature(aggregate.of)
            wanted = NumericSpec if aggregate.how == "mean" else CategoricalSpec
            if source is None or source.entity is not Entity.ITEM or not isinstance(source, wanted):
                raise DescriptionError(
                    f"history.lists '{entry.feature}': cannot take the {aggregate.how} of '{aggregate.of}'; "
                    f"it must be a {wanted.__name__[:-4].lower()} feature of the item"
                )
    for propensity in history.propensity:
        _check_lists(f"history.propensity '{propensity.name}'", (propensity.among, propensity.chosen), known)
    for rasch in history.rasch:
        _check_lists(f"history.rasch '{rasch.name}'", (rasch.among, rasch.chosen), known)
    for ratio in history.ratios:
        _check_lists(f"history.ratios '{ratio.name}'", (ratio.among, ratio.chosen), known)
        _check_shown(description, ratio)
    for factors in history.factors:
        _check_factors(history, factors, known)


def _check_shown(description: DatasetDescription, ratio: RatioSpec) -> None:
    if ratio.shown is None:
        return
    feature = description.feature(ratio.shown)
    if not isinstance(feature, NumericSpec) or feature.entity is not Entity.USER or feature.width != 1:
        raise DescriptionError(
            f"history.ratios '{ratio.name}': shown is '{ratio.shown}'; it must be a numeric feature of the "
            "user with width 1"
        )


def _check_factors(history: HistorySpec, factors: FactorsSpec, known: set[str]) -> None:
    place, models = f"history.factors '{factors.name}'", sorted(r.name for r in history.rasch)
    _check_lists(place, factors.lists, known)
    for entry in factors.sums:
        if (entry.over is None) == (entry.residuals is None):
            raise DescriptionError(f"{place}: a sum needs one of over and residuals")
        if entry.over is not None:
            _check_lists(place, (entry.over,), known)
        elif entry.residuals not in models:
            raise DescriptionError(f"{place}: '{entry.residuals}' is not in history.rasch; allowed: {models}")


def _check_lists(place: str, names: tuple[str, ...], known: set[str]) -> None:
    for name in names:
        if name not in known:
            raise DescriptionError(f"{place}: '{name}' is not in history.lists; allowed: {sorted(known)}")
