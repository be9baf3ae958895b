"""What a model file in `training/configs` may say: one frozen config per method.

Config objects stop at `build.py`; the modules themselves take flat, typed, keyword-only arguments.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Rate = Annotated[float, Field(ge=0, lt=1)]
TowerChoice = Literal["shared", "per_domain", "clusters"]
Width = Annotated[int, Field(ge=1, le=8192)]


class ModelPart(BaseModel):
    """A frozen config object that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TableConfig(ModelPart):
    """One group of embedding tables that share width and training settings.

    Attributes:
        encoders: Names of the encoders whose rows live here; empty takes all that no group names.
        dim: Embedding width.
        lr_scale: Multiplies the learning rate of tables.
        l2: Penalty on the squared norm of the rows a batch touches (mean over the batch).
        dropout: Drop rate of whole embeddings (one feature of one row at a time), in training only.
        unknown_rate: Share of known ids replaced by the unknown row in training, so that row is trained.
    """

    encoders: tuple[str, ...] = ()
    dim: int = Field(default=16, ge=1, le=1024)
    lr_scale: float = Field(default=1.0, ge=0)
    l2: float = Field(default=0.0, ge=0)
    dropout: Rate = 0.0
    unknown_rate: Rate = 0.0


class InputConfig(ModelPart):
    """How encoded rows become the vectors that experts read.

    Attributes:
        tables: Groups of embedding tables; the last one without `encoders` takes the rest.
        domain_dim: Width of the domain embedding.
        domain_unknown_rate: Share of rows whose domain is hidden in training, to train the fallback row.
        exclude: Features (stored or pair) the model shall not read.
        dropout: Drop rate on pair values, in training only.
        pooling: Lists of ids become the mean of their embeddings, or their sum over the root of the length.
    """

    tables: tuple[TableConfig, ...] = (TableConfig(),)
    domain_dim: int = Field(default=16, ge=1, le=1024)
    domain_unknown_rate: Rate = 0.01
    exclude: tuple[str, ...] = ()
    dropout: Rate = 0.0
    pooling: Literal["mean", "sqrt"] = "mean"


class TowerConfig(ModelPart):
    """A method with towers.

    Attributes:
        towers: One tower for all domains, one each (unknown domains have their own), or one per group of
            domains; groups come from outside, see `build_model`.
    """

    towers: TowerChoice = "shared"


class MmoeConfig(TowerConfig):
    """MMoE (Ma et al., KDD 2018): shared experts mixed by softmax gates, read by towers.

    Attributes:
        gate_input: A gate per tower that reads all inputs, or a table of gates by domain, which costs
            nothing in the exported graph.
        batch_norm: Whether hidden layers of the experts are normalised; those of towers never are.
    """

    type: Literal["mmoe"] = "mmoe"
    inputs: InputConfig = InputConfig()
    num_experts: int = Field(default=4, ge=1, le=128)
    expert_widths: tuple[Width, ...] = Field(default=(256, 128), min_length=1)
    tower_widths: tuple[Width, ...] = (64,)
    gate_input: Literal["features", "domain"] = "features"
    dropout: Rate = 0.1
    batch_norm: bool = True


class Dcnv2Config(ModelPart):
    """DCN-V2 (Wang et al., WWW 2021): low-rank cross layers beside a deep network."""

    type: Literal["dcnv2"] = "dcnv2"
    inputs: InputConfig = InputConfig()
    num_cross_layers: int = Field(default=2, ge=1, le=16)
    cross_rank: Width = 64
    deep_widths: tuple[Width, ...] = Field(default=(256, 128), min_length=1)
    dropout: Rate = 0.1
    batch_norm: bool = True


class DeepFmConfig(ModelPart):
    """DeepFM (Guo et al., IJCAI 2017): a factorisation machine beside a deep network.

    Attributes:
        num_factors: Length of the factor vector of each input number.
    """

    type: Literal["deepfm"] = "deepfm"
    inputs: InputConfig = InputConfig()
    num_factors: int = Field(default=16, ge=1, le=1024)
    deep_widths: tuple[Width, ...] = Field(default=(256, 128), min_length=1)
    dropout: Rate = 0.1
    batch_norm: bool = True


class PleConfig(TowerConfig):
    """PLE (Tang et al., RecSys 2020): levels of shared and tower-specific experts.

    Attributes:
        num_shared_experts: Experts of each level that all towers read.
        num_tower_experts: Experts of each level that one tower reads.
        expert_widths: Hidden widths of the experts, one entry per extraction level.
        batch_norm: Whether hidden layers of the experts are normalised; those of towers never are.
    """

    type: Literal["ple"] = "ple"
    inputs: InputConfig = InputConfig()
    num_shared_experts: int = Field(default=2, ge=1, le=128)
    num_tower_experts: int = Field(default=1, ge=1, le=128)
    expert_widths: tuple[Annotated[tuple[Width, ...], Field(min_length=1)], ...] = Field(
        default=((256,), (128,)), min_length=1, max_length=8
    )
    tower_widths: tuple[Width, ...] = (64,)
    dropout: Rate = 0.1
    batch_norm: bool = True


class StarConfig(TowerConfig):
    """STAR (Sheng et al., CIKM 2021): shared weights times tower weights, entry by entry.

    All of the network runs once per tower, so cost grows with the number of towers from the first layer.

    Attributes:
        deep_widths: Hidden widths of the star layers.
        auxiliary_widths: Hidden widths of the small network that is told the domain.
        partitioned_norm: Whether inputs are normalised by tower.
    """

    type: Literal["star"] = "star"
    inputs: InputConfig = InputConfig()
    deep_widths: tuple[Width, ...] = Field(default=(256, 128), min_length=1)
    auxiliary_widths: tuple[Width, ...] = Field(default=(32,), min_length=1)
    dropout: Rate = 0.1
    partitioned_norm: bool = True


class PepNetConfig(TowerConfig):
    """PEPNet (Chang et al., KDD 2023): gates on embeddings by domain, on tower layers by user and item.

    Attributes:
        embedding_gate_width: Hidden width of the gates on embeddings.
        tower_gate_width: Hidden width of the gates on each hidden layer of each tower.
        tower_widths: Hidden widths of each tower.
    """

    type: Literal["pepnet"] = "pepnet"
    inputs: InputConfig = InputConfig()
    embedding_gate_width: Width = 64
    tower_gate_width: Width = 32
    tower_widths: tuple[Width, ...] = Field(default=(128, 64), min_length=1)
    dropout: Rate = 0.1


class MmoeBaseConfig(ModelPart):
    """Base of an expert pyramid: experts mixed by one gate per expert of the pyramid's lowest level.

    Attributes:
        gate_input: Gates that read all inputs, or gates by domain alone, like those of the pyramid.
    """

    type: Literal["mmoe"] = "mmoe"
    num_experts: int = Field(default=4, ge=1, le=128)
    expert_widths: tuple[Width, ...] = Field(default=(256, 128, 64), min_length=1)
    gate_input: Literal["features", "domain"] = "features"


class PleBaseConfig(ModelPart):
    """Base of an expert pyramid: extraction levels with a slot per expert of the pyramid's lowest level."""

    type: Literal["ple"] = "ple"
    num_shared_experts: int = Field(default=2, ge=1, le=128)
    num_tower_experts: int = Field(default=1, ge=1, le=128)
    expert_widths: tuple[Annotated[tuple[Width, ...], Field(min_length=1)], ...] = Field(
        default=((256,), (128, 64)), min_length=1, max_length=8
    )


class AreadConfig(ModelPart):
    """AREAD (arXiv 2412.11905): a pyramid of experts over a base; a domain's mask picks its part of it.

    Attributes:
        base: What feeds the pyramid.
        num_experts: Experts of each level, the lowest first.
        expert_widths: Hidden widths of the experts, one entry per level.
        num_cross_layers: Layers of the cross network that every head reads beside its expert.
        gate_dim: Width of the domain, group and cluster embeddings that gates read.
        mask_base: Whether masks choose among the base's experts as well; the base must be mmoe.
        group: `cluster` adds an embedding of the domain's cluster to what gates read.
        batch_norm: Whether hidden layers are normalised.
    """

    type: Literal["aread"] = "aread"
    inputs: InputConfig = InputConfig()
    base: Annotated[MmoeBaseConfig | PleBaseConfig, Field(discriminator="type")] = MmoeBaseConfig()
    num_experts: tuple[Annotated[int, Field(ge=1, le=128)], ...] = Field(
        default=(3, 6, 12), min_length=2, max_length=8
    )
    expert_widths: tuple[Annotated[tuple[Width, ...], Field(min_length=1)], ...] = (
        (64, 32),
        (32, 16),
        (16, 8),
    )
    num_cross_layers: int = Field(default=3, ge=1, le=16)
    gate_dim: Width = 32
    mask_base: bool = False
    group: Literal["none", "cluster"] = "none"
    dropout: Rate = 0.2
    batch_norm: bool = True

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.expert_widths) != len(self.num_experts):
            raise ValueError(
                f"num_experts has {len(self.num_experts)} levels, expert_widths {len(self.expert_widths)}; "
                "they must agree"
            )
        if self.mask_base and self.base.type != "mmoe":
            raise ValueError(f"mask_base needs a base of type mmoe, got {self.base.type}")
        return self


class CesaaConfig(ModelPart):
    """CESAA (arXiv 2411.06826): each row runs a shared expert and its k best of E routed experts.

    Attributes:
        num_experts: Routed experts.
        top_k: Experts that each row runs beside the shared one.
        expert_widths: Hidden widths of each expert; the last is its output, which is linear.
        shared_expert: Whether there is an expert that every row runs.
        fusion: Outputs of chosen and shared experts added, or side by side.
        gate_input: What experts are chosen by: all inputs, or the domain alone.
        expert_input: What experts read; the tower's linear term reads the domain in any case.
        mi_weight: Factor on the information between expert and domain that the loss rewards. More than .03
            from the first step on, or .003 with top_k 1, binds domains to experts by chance.
        mi_warmup_steps: Steps before it counts; null takes an epoch and at least 500 steps, but at most a
            third of training.
        mi_prior: Share of a domain in it: that of its rows, or the same for all.
        routing_mass: Share of a domain's routing that the experts which masks leave it must hold.
        batch_norm: Whether hidden layers of the experts are normalised; those of the tower never are.
    """

    type: Literal["cesaa"] = "cesaa"
    inputs: InputConfig = InputConfig()
    num_experts: int = Field(default=8, ge=1, le=128)
    top_k: int = Field(default=2, ge=1, le=128)
    expert_widths: tuple[Width, ...] = Field(default=(128, 64), min_length=1)
    tower_widths: tuple[Width, ...] = (64,)
    shared_expert: bool = True
    fusion: Literal["sum", "concat"] = "sum"
    gate_input: Literal["features+domain", "domain"] = "features+domain"
    expert_input: Literal["features", "features+domain"] = "features"
    mi_weight: float = Field(default=0.01, ge=0)
    mi_warmup_steps: int | None = Field(default=None, ge=0)
    mi_prior: Literal["batch", "uniform"] = "batch"
    routing_mass: float = Field(default=0.98, gt=0, le=1)
    dropout: Rate = 0.1
    batch_norm: bool = False

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.top_k > self.num_experts:
            raise ValueError(f"top_k is {self.top_k}; allowed are 1 to num_experts, {self.num_experts}")
        if self.fusion == "concat" and not self.shared_expert:
            raise ValueError("fusion is concat, but there is no shared expert; set shared_expert or sum")
        return self


class HierConfig(ModelPart):
    """HIER (arXiv 2405.17132): entity graph, intents, exemplars and gated paths between them.

    Attributes:
        width: Of entity, user and item vectors.
        num_intents: Intents of users.
        num_exemplars: Exemplars of items.
        num_hops: Hops over the entity graph.
        normalise: Whether each hop's output is brought to length 1.
        intent_temperature: Of the softmax over intents.
        exemplar_temperature: Of the softmax over exemplars.
    """

    type: Literal["hier"] = "hier"
    width: Width = 64
    num_intents: int = Field(default=12, ge=1, le=1024)
    num_exemplars: int = Field(default=24, ge=1, le=1024)
    num_hops: int = Field(default=2, ge=1, le=4)
    normalise: bool = True
    intent_temperature: float = Field(default=1.0, gt=0)
    exemplar_temperature: float = Field(default=1.0, gt=0)


class SyncrecConfig(ModelPart):
    """SyNCRec (arXiv 2407.11245) as it serves; `ctr-train sequence calibrate` writes it.

    Attributes:
        history: The user's sequence feature.
        item_field: Its field with the items.
        domain_field: Its field with the domains.
        item: The item's id feature.
        width: Of all vectors.
        max_len: Most events that are read.
        num_experts: Experts.
        num_layers: Of each.
        num_heads: Of each layer.
        gate: What gates read.
        single_domains: Domains that are served by the view of their own events alone.
    """

    type: Literal["syncrec"] = "syncrec"
    history: str = "history"
    item_field: str = "item"
    domain_field: str = "domain"
    item: str = "item_id"
    width: Width = 64
    max_len: int = Field(default=50, ge=1, le=512)
    num_experts: int = Field(default=3, ge=2, le=32)
    num_layers: int = Field(default=2, ge=1, le=16)
    num_heads: int = Field(default=1, ge=1, le=16)
    gate: Literal["prefix_mean", "flat"] = "prefix_mean"
    single_domains: tuple[str, ...] = ()


def wants_clusters(config: ModelPart) -> bool:
    """Whether a model reads which cluster each domain is in, a table that is not the config's to say."""
    if isinstance(config, AreadConfig):
        return config.group == "cluster"
    return isinstance(config, TowerConfig) and config.towers == "clusters"


ModelConfig = Annotated[
    MmoeConfig
    | Dcnv2Config
    | DeepFmConfig
    | PleConfig
    | StarConfig
    | PepNetConfig
    | AreadConfig
    | CesaaConfig
    | HierConfig
    | SyncrecConfig,
    Field(discriminator="type"),
]
