"""Turn described features into the contract's features.

Pure. Invariant: described features come first and in the order of the description, so what statistics and
histories add later stands at the end of every encoded row.
"""

from __future__ import annotations

from service.contract.schema import (
    CategoricalFeature,
    Encoder,
    FeatureSchema,
    MultiFeature,
    NumericFeature,
    SequenceFeature,
    SequenceField,
    StoredFeature,
)
from training.data.table import (
    CategoricalSpec,
    DatasetDescription,
    FeatureSpec,
    MultiSpec,
    NumericSpec,
    SequenceSpec,
)


def base_schema(
    description: DatasetDescription, domains: tuple[str, ...], encoders: dict[str, Encoder]
) -> FeatureSchema:
    """The schema of the described features alone."""
    return FeatureSchema(
        name=description.name,
        domains=domains,
        encoders=encoders,
        features=tuple(_feature(description, spec) for spec in description.features),
    )


def _feature(description: DatasetDescription, spec: FeatureSpec) -> StoredFeature:
    match spec:
        case CategoricalSpec():
            return CategoricalFeature(
                name=spec.name,
                entity=spec.entity,
                description=spec.description,
                encoder=_name(spec.encoder, spec.name),
                is_id=_is_id(description, spec),
            )
        case MultiSpec():
            return MultiFeature(
                name=spec.name,
                entity=spec.entity,
                description=spec.description,
                encoder=_name(spec.encoder, spec.name),
                max_len=spec.max_len,
                num_weights=0 if spec.weights is None else 1,
            )
        case SequenceSpec():
            fields = tuple(
                SequenceField(name=f.name, encoder=_name(f.encoder, f"{spec.name}.{f.name}"))
                for f in spec.fields
            )
            return SequenceFeature(
                name=spec.name,
                entity=spec.entity,
                description=spec.description,
                fields=fields,
                max_len=spec.max_len,
            )
        case NumericSpec():
            return NumericFeature(
                name=spec.name,
                entity=spec.entity,
                description=spec.description,
                encoder=_name(spec.encoder, spec.name),
                width=spec.width,
            )


def _name(encoder: object, own: str) -> str:
    return encoder if isinstance(encoder, str) else own


def _is_id(description: DatasetDescription, spec: CategoricalSpec) -> bool:
    if spec.is_id is not None:
        return spec.is_id
    file = description.entity_file(spec.entity)
    keys = {description.key_column(spec.entity), None if file is None else file.key} - {None}
    return (spec.column or spec.name) in keys
