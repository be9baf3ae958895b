"""Build a model from its config and a feature schema: the only place where config meets modules."""

from __future__ import annotations

from service.contract.errors import SchemaError
from service.contract.schema import FeatureSchema
from training.models.base import CtrModel, Ranker
from training.models.config import InputConfig, MmoeConfig, ModelConfig
from training.models.dcnv2 import Dcnv2
from training.models.embedding import EmbeddingBank
from training.models.inputs import InputLayer, id_encoders
from training.models.mmoe import Mmoe


def build_model(config: ModelConfig, schema: FeatureSchema) -> CtrModel:
    """Make a freshly initialised model.

    Args:
        config: Which method, with its sizes.
        schema: What the blocks hold.

    Raises:
        SchemaError: The config names an encoder or feature that the schema lacks.
    """
    inputs = _input_layer(config.inputs, schema)
    return CtrModel(inputs, _ranker(config, schema, inputs))


def _input_layer(config: InputConfig, schema: FeatureSchema) -> InputLayer:
    known = {f.name for f in schema.features} | {p.name for p in schema.pairs}
    if unknown := sorted(set(config.exclude) - known):
        raise SchemaError(f"model.inputs.exclude names {unknown}; the schema has {sorted(known)}")
    exclude = frozenset(config.exclude)
    rows = id_encoders(schema, exclude)
    banks: dict[str, EmbeddingBank] = {}
    bank_of: dict[str, str] = {}
    named = {encoder for table in config.tables for encoder in table.encoders}
    if unknown := sorted(named - set(rows)):
        raise SchemaError(f"model.inputs.tables names encoders {unknown}; the model reads {sorted(rows)}")
    for number, table in enumerate(config.tables):
        mine = table.encoders or tuple(name for name in rows if name not in named | set(bank_of))
        if not mine:
            continue
        group = f"table_{number}"
        banks[group] = EmbeddingBank(
            {name: rows[name] for name in mine},
            dim=table.dim,
            lr_scale=table.lr_scale,
            l2=table.l2,
            dropout=table.dropout,
            unknown_rate=table.unknown_rate,
        )
        bank_of |= dict.fromkeys(mine, group)
    if left := sorted(set(rows) - set(bank_of)):
        raise SchemaError(f"model.inputs.tables leaves encoders {left} without a table")
    return InputLayer(
        schema,
        banks=banks,
        bank_of=bank_of,
        domain_dim=config.domain_dim,
        domain_unknown_rate=config.domain_unknown_rate,
        exclude=exclude,
        dropout=config.dropout,
        pooling=config.pooling,
    )


def _ranker(config: ModelConfig, schema: FeatureSchema, inputs: InputLayer) -> Ranker:
    num_domains = schema.num_domains
    if isinstance(config, MmoeConfig):
        per_domain = config.towers == "per_domain"
        return Mmoe(
            request_width=inputs.request_width,
            row_width=inputs.row_width,
            tower_of_domain=range(num_domains + 1) if per_domain else [0] * (num_domains + 1),
            num_experts=config.num_experts,
            gate_input=config.gate_input,
            expert_widths=config.expert_widths,
            tower_widths=config.tower_widths,
            dropout=config.dropout,
            batch_norm=config.batch_norm,
        )
    return Dcnv2(
        request_width=inputs.request_width,
        row_width=inputs.row_width,
        num_domains=num_domains,
        num_cross_layers=config.num_cross_layers,
        cross_rank=config.cross_rank,
        deep_widths=config.deep_widths,
        dropout=config.dropout,
        batch_norm=config.batch_norm,
    )
