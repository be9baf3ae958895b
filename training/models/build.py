"""Build a model from its config and a feature schema: the only place where config meets modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from service.contract.errors import SchemaError
from service.contract.schema import FeatureSchema
from training.models.aread import Aread
from training.models.aread_base import MmoeBase, PleBase, PyramidBase
from training.models.base import CtrModel, Ranker
from training.models.cesaa import Cesaa
from training.models.config import (
    AreadConfig,
    CesaaConfig,
    Dcnv2Config,
    DeepFmConfig,
    HierConfig,
    InputConfig,
    MmoeBaseConfig,
    MmoeConfig,
    ModelConfig,
    ModelPart,
    PepNetConfig,
    PleConfig,
    StarConfig,
    SyncrecConfig,
    TowerChoice,
    TowerConfig,
)
from training.models.cross_heads import CrossHeads
from training.models.dcnv2 import Dcnv2
from training.models.deepfm import DeepFm
from training.models.embedding import EmbeddingBank
from training.models.hier import HierInputs, HierRanker
from training.models.inputs import InputLayer, id_encoders
from training.models.mask import PyramidShape
from training.models.mmoe import Mmoe
from training.models.pepnet import PepNet
from training.models.ple import Ple
from training.models.pyramid import Pyramid
from training.models.pyramid_gates import DomainGates
from training.models.star import Star
from training.models.syncrec import SyncrecInputs, SyncrecRanker
from training.models.towers import check_towers

_PLAIN: dict[type[ModelPart], Callable[..., Ranker]] = {Dcnv2Config: Dcnv2, DeepFmConfig: DeepFm}
_WITH_TOWERS: dict[type[ModelPart], Callable[..., Ranker]] = {
    MmoeConfig: Mmoe,
    PleConfig: Ple,
    StarConfig: Star,
    PepNetConfig: PepNet,
}


def build_model(
    config: ModelConfig, schema: FeatureSchema, tower_of_domain: Sequence[int] | None = None
) -> CtrModel:
    """Make a freshly initialised model.

    Args:
        config: Which method, with its sizes.
        schema: What the blocks hold.
        tower_of_domain: (D + 1,) tower, or cluster, of each domain, the last entry for unknown domains;
            numbered from 0 without gaps. Given with `towers: clusters` or `group: cluster`, and only then.

    Raises:
        SchemaError: The config names an encoder or feature that the schema lacks, or the table of towers
            is missing, not wanted or ill-formed.
    """
    if isinstance(config, HierConfig):
        return _hier(config, schema, tower_of_domain)
    if isinstance(config, SyncrecConfig):
        return _syncrec(config, schema, tower_of_domain)
    inputs = _input_layer(config.inputs, schema)
    return CtrModel(inputs, _ranker(config, schema, inputs, tower_of_domain))


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


def _ranker(
    config: ModelConfig, schema: FeatureSchema, inputs: InputLayer, tower_of_domain: Sequence[int] | None
) -> Ranker:
    if isinstance(config, AreadConfig):
        return _aread(config, schema.num_domains, inputs, tower_of_domain)
    sizes = config.model_dump(exclude={"type", "inputs", "towers"})
    sizes |= {"request_width": inputs.request_width, "row_width": inputs.row_width}
    if not isinstance(config, TowerConfig):
        if tower_of_domain is not None:
            raise SchemaError(f"model {config.type} has no towers, but a tower_of_domain is given")
        if isinstance(config, CesaaConfig):
            return _cesaa(config, schema.num_domains, inputs)
        return _PLAIN[type(config)](num_domains=schema.num_domains, **sizes)
    sizes["tower_of_domain"] = _towers(config.towers, schema.num_domains, tower_of_domain)
    if isinstance(config, PepNetConfig):
        sizes["domain_width"] = inputs.domain_dim
        sizes["request_ids"] = inputs.user.id_columns
        sizes["row_ids"] = inputs.item.id_columns
    return _WITH_TOWERS[type(config)](**sizes)


def _cesaa(config: CesaaConfig, num_domains: int, inputs: InputLayer) -> Cesaa:
    # Warm-up and masks are the run's to follow.
    sizes = config.model_dump(exclude={"type", "inputs", "mi_warmup_steps", "routing_mass"})
    return Cesaa(
        request_width=inputs.request_width,
        row_width=inputs.row_width,
        domain_width=inputs.domain_dim,
        num_domains=num_domains,
        **sizes,
    )


def _hier(config: HierConfig, schema: FeatureSchema, tower_of_domain: Sequence[int] | None) -> CtrModel:
    if tower_of_domain is not None:
        raise SchemaError("model hier has no towers, but a tower_of_domain is given")
    inputs = HierInputs(schema, **config.model_dump(exclude={"type"}))
    ranker = HierRanker(
        num_domains=schema.num_domains, width=config.width, num_exemplars=config.num_exemplars
    )
    return CtrModel(inputs, ranker)


def _syncrec(config: SyncrecConfig, schema: FeatureSchema, tower_of_domain: Sequence[int] | None) -> CtrModel:
    if tower_of_domain is not None:
        raise SchemaError("model syncrec has no towers, but a tower_of_domain is given")
    inputs = SyncrecInputs(schema, **config.model_dump(exclude={"type"}))
    return CtrModel(inputs, SyncrecRanker(num_domains=schema.num_domains, width=config.width))


def _aread(
    config: AreadConfig, num_domains: int, inputs: InputLayer, cluster_of_domain: Sequence[int] | None
) -> Aread:
    if cluster_of_domain is not None:
        if config.group != "cluster":
            raise SchemaError(f"model.group is {config.group}: a tower_of_domain goes with cluster only")
        check_towers(cluster_of_domain, num_domains=num_domains)
    elif config.group == "cluster":
        raise SchemaError("model.group is cluster: build_model needs a tower_of_domain")
    base = _pyramid_base(config, inputs)
    num_base = config.base.num_experts if isinstance(config.base, MmoeBaseConfig) else 0
    by_domain = isinstance(config.base, MmoeBaseConfig) and config.base.gate_input == "domain"
    return Aread(
        base=base,
        gates=DomainGates(
            num_domains=num_domains,
            shape=PyramidShape(config.num_experts, num_base if config.mask_base else 0),
            num_base_experts=num_base if by_domain else 0,
            dim=config.gate_dim,
            cluster_of_domain=cluster_of_domain,
        ),
        pyramid=Pyramid(
            input_width=base.out_width,
            num_experts=config.num_experts,
            widths=config.expert_widths,
            dropout=config.dropout,
            batch_norm=config.batch_norm,
        ),
        cross=CrossHeads(
            request_width=inputs.request_width,
            row_width=inputs.row_width,
            num_layers=config.num_cross_layers,
            num_heads=config.num_experts[-1],
        ),
    )


def _pyramid_base(config: AreadConfig, inputs: InputLayer) -> PyramidBase:
    base = config.base
    sizes = base.model_dump(exclude={"type", "gate_input"}) | {
        "request_width": inputs.request_width,
        "row_width": inputs.row_width,
        "num_inputs": config.num_experts[0],
        "dropout": config.dropout,
        "batch_norm": config.batch_norm,
    }
    if isinstance(base, MmoeBaseConfig):
        return MmoeBase(gates_read_features=base.gate_input == "features", **sizes)
    return PleBase(**sizes)


def _towers(choice: TowerChoice, num_domains: int, given: Sequence[int] | None) -> list[int]:
    """Tower of each domain and of the unknown one, (D + 1,)."""
    if choice == "clusters":
        if given is None:
            raise SchemaError("model.towers is clusters: build_model needs a tower_of_domain")
        check_towers(given, num_domains=num_domains)
        return list(given)
    if given is not None:
        raise SchemaError(f"model.towers is {choice}: a tower_of_domain goes with clusters only")
    return [0] * (num_domains + 1) if choice == "shared" else list(range(num_domains + 1))
