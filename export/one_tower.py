"""Models with a tower for each cluster, cut to the tower of one cluster.

A whole graph runs every tower for every row and keeps one score; a cluster's rows need the tower, the gate
and the experts of that tower only. Tables are shared with the whole model. Invariant: for rows of the
cluster's domains the logits are those of the whole model, up to rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from pydantic import JsonValue
from torch import nn

from training.models.base import CtrModel
from training.models.fold import fold_batch_norm
from training.models.layers import StackedLinear, TwoSidedLinear
from training.models.mmoe import Mmoe
from training.models.ple import ExtractionLevel, Ple
from training.models.slicing import blocks, keep_experts, keep_maps, keep_rows
from training.models.towers import TowerRanker


def with_one_tower(model: CtrModel, domains: Sequence[int]) -> CtrModel | None:
    """The model of the only tower that some domains use; None where nothing can be left out.

    Args:
        model: As trained, in evaluation mode.
        domains: Indices, D for the unknown domain.
    """
    ranker = model.ranker
    if not isinstance(ranker, Mmoe | Ple) or ranker.num_towers == 1:
        return None
    if isinstance(ranker, Ple) and len(ranker.levels) > 1:
        return None  # lower levels mix the experts of all towers for the shared slot of the next one
    towers = set(ranker.towers_of(torch.tensor(list(domains))).tolist())
    if len(towers) > 1:
        return None
    (tower,) = towers
    return CtrModel(model.inputs, _cut(ranker, tower)).eval()


@torch.no_grad()
def _cut(ranker: Mmoe | Ple, tower: int) -> Mmoe | Ple:
    own = copy.deepcopy(ranker).eval()
    fold_batch_norm(own)
    if isinstance(own, Ple):
        own.levels = nn.ModuleList([_cut_level(level, tower) for level in own.levels])
    elif isinstance(own.gates, TwoSidedLinear):
        own.gates = keep_rows(own.gates, blocks([tower], own.num_experts))
    own.towers = nn.ModuleList(
        keep_maps(layer, [tower]) for layer in own.towers if isinstance(layer, StackedLinear)
    )
    own.out = keep_maps(own.out, [tower])
    own.num_towers = 1
    own.get_buffer("tower_of_domain").zero_()
    return own


def _cut_level(level: nn.Module, tower: int) -> ExtractionLevel:
    """The only level: the tower's own experts, the shared ones, and the gate over them."""
    if not isinstance(level, ExtractionLevel) or not isinstance(level.gates, TwoSidedLinear):
        raise TypeError(f"cannot cut {type(level).__name__} to one tower")
    every, own, shared = level.num_towers * level.per_tower, level.per_tower, level.shared
    experts = [*blocks([tower], own), *range(every, every + shared)]
    return ExtractionLevel(
        keep_experts(level.experts, experts),
        keep_rows(level.gates, blocks([tower], own + shared)),
        num_towers=1,
        per_tower=own,
        shared=shared,
        is_last=True,
    )


def towers_held(model: CtrModel, whole: CtrModel | None) -> dict[str, JsonValue]:
    """Towers, and experts of PLE, in a model and in the one it was cut from; {} if it was not."""
    ranker, of = model.ranker, None if whole is None else whole.ranker
    if not isinstance(ranker, TowerRanker) or not isinstance(of, TowerRanker):
        return {}
    if ranker.num_towers == of.num_towers:
        return {}
    told: dict[str, JsonValue] = {"towers": [ranker.num_towers, of.num_towers]}
    if isinstance(ranker, Ple) and isinstance(of, Ple):
        levels = (ranker.levels[0], of.levels[0])
        told["experts"] = [lv.experts.num_experts for lv in levels if isinstance(lv, ExtractionLevel)]
    return told
