"""What a model file in `training/configs` may say: one frozen config per method.

Config objects stop at `build.py`; the modules themselves take flat, typed, keyword-only arguments.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Rate = Annotated[float, Field(ge=0, lt=1)]
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


class MmoeConfig(ModelPart):
    """MMoE (Ma et al., KDD 2018): shared experts mixed by softmax gates, read by towers.

    Attributes:
        towers: One tower for all domains, or one each.
        gate_input: A gate per tower that reads all inputs, or a table of gates by domain, which costs
            nothing in the exported graph.
        batch_norm: Whether hidden layers of the experts are normalised; those of towers never are.
    """

    type: Literal["mmoe"] = "mmoe"
    inputs: InputConfig = InputConfig()
    num_experts: int = Field(default=4, ge=1, le=128)
    expert_widths: tuple[Width, ...] = Field(default=(256, 128), min_length=1)
    tower_widths: tuple[Width, ...] = (64,)
    towers: Literal["shared", "per_domain"] = "shared"
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


ModelConfig = Annotated[MmoeConfig | Dcnv2Config, Field(discriminator="type")]
