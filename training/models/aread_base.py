"""What feeds the lowest level of an expert pyramid: a base of experts with one mixture per pyramid expert.

A base is read in two steps, so that what does not depend on a mask is computed once: `read` runs experts
and gates, `mix` applies the gates. Mixtures are (N, N_0, out_width).

Source: AREAD, arXiv 2412.11905, section HEI, over MMoE or PLE as in `mmoe.py` and `ple.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from training.models.base import Sides
from training.models.layers import StackedExperts, TwoSidedLinear
from training.models.ple import extraction_levels
from training.models.pyramid_gates import masked_gates


class BaseReading(NamedTuple):
    """A base on N rows, before any mask.

    Attributes:
        values: (N, E, out_width) float32 outputs of the base experts, or mixtures (N, N_0, out_width) where
            no gate is left to apply.
        gates: (N, N_0, E) float32 softmax gates that read features, or None.
    """

    values: Tensor
    gates: Tensor | None


class PyramidBase(nn.Module, ABC):
    """Experts below a pyramid.

    Attributes:
        out_width: Width of a mixture.
    """

    out_width: int

    @abstractmethod
    def read(self, sides: Sides) -> BaseReading:
        """Run what no mask has a say in."""

    def mix(self, reading: BaseReading, rows: Tensor | None) -> Tensor:
        """Mixtures (N, N_0, out_width).

        Args:
            reading: Of N rows.
            rows: (N, N_0, E) float32 weights by domain, or the 0 and 1 of a mask where gates read features;
                None where nothing goes by domain.
        """
        gates = reading.gates
        if gates is None:
            return reading.values if rows is None else torch.matmul(rows, reading.values)
        if rows is not None:
            gates = masked_gates(gates.mT, rows.mT).mT
        return torch.matmul(gates, reading.values)


class MmoeBase(PyramidBase):
    """E experts; gates that read features are part of the base, gates by domain come from outside.

    Args:
        request_width: P, width of the request side.
        row_width: Q, width of the row side.
        num_inputs: N_0, mixtures wanted.
        num_experts: E.
        expert_widths: Hidden widths of each expert.
        gates_read_features: Whether gates read all inputs.
        dropout: Drop rate after each hidden layer.
        batch_norm: Whether hidden layers are normalised.
    """

    def __init__(
        self,
        *,
        request_width: int,
        row_width: int,
        num_inputs: int,
        num_experts: int,
        expert_widths: Sequence[int],
        gates_read_features: bool,
        dropout: float,
        batch_norm: bool,
    ) -> None:
        super().__init__()
        self.num_inputs = num_inputs
        self.num_experts = num_experts
        self.out_width = expert_widths[-1]
        self.experts = StackedExperts(
            request_width,
            row_width,
            expert_widths,
            num_experts=num_experts,
            dropout=dropout,
            batch_norm=batch_norm,
        )
        self.gates = (
            TwoSidedLinear(request_width, row_width, num_inputs * num_experts)
            if gates_read_features
            else None
        )

    def read(self, sides: Sides) -> BaseReading:
        """Experts, and softmax gates where they read features."""
        values = self.experts(sides)
        if self.gates is None:
            return BaseReading(values, None)
        gates = self.gates(sides).reshape(values.shape[0], self.num_inputs, self.num_experts)
        return BaseReading(values, torch.softmax(gates, dim=-1))


class PleBase(PyramidBase):
    """Extraction levels with one slot per expert of the pyramid's lowest level.

    Args:
        request_width: P, width of the request side.
        row_width: Q, width of the row side.
        num_inputs: N_0, mixtures wanted.
        num_shared_experts: Experts of each extraction level that all slots read.
        num_tower_experts: Experts of each extraction level that one slot reads.
        expert_widths: Hidden widths of the experts, one entry per extraction level.
        dropout: Drop rate after each hidden layer.
        batch_norm: Whether hidden layers are normalised.
    """

    def __init__(
        self,
        *,
        request_width: int,
        row_width: int,
        num_inputs: int,
        num_shared_experts: int,
        num_tower_experts: int,
        expert_widths: Sequence[Sequence[int]],
        dropout: float,
        batch_norm: bool,
    ) -> None:
        super().__init__()
        self.out_width = expert_widths[-1][-1]
        self.levels = extraction_levels(
            request_width=request_width,
            row_width=row_width,
            num_towers=num_inputs,
            num_shared_experts=num_shared_experts,
            num_tower_experts=num_tower_experts,
            expert_widths=expert_widths,
            dropout=dropout,
            batch_norm=batch_norm,
        )

    def read(self, sides: Sides) -> BaseReading:
        """The slots' mixtures; nothing is left to mix."""
        x: Tensor = self.levels[0](sides)
        for level in self.levels[1:]:
            x = level(x)
        return BaseReading(x, None)
