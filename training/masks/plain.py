"""Candidates one after the other on a whole copy of the model: the search as published, and the reference.

Invariant: every candidate starts from the same weights with fresh optimisers; the model itself is only read.

Source: AREAD, arXiv 2412.11905, section HEMP. We differ in evaluation mode while tuning (no dropout, fixed
normalisation statistics), in reading the gates in closed form after each step, in sparse steps on embedding
tables, and in scores without the L2 term.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from torch.optim import Adam, Optimizer, SparseAdam

from training.clustering.lookahead_model import LabelledRows, slice_rows
from training.engine.loss import training_loss
from training.masks.errors import MaskSearchError
from training.masks.prune import pruned, pruned_to
from training.masks.stack import TUNED
from training.masks.tuning import BETAS, EPS, TuningRules, pruning_gates
from training.models.aread import Aread
from training.models.base import CtrModel
from training.models.mask import PyramidMask


class PlainTuner:
    """Tunes one candidate at a time.

    Args:
        model: In evaluation mode; copied once.
        rules: Of tuning and scoring.
        freeze_base: Whether all but gates, pyramid and heads stay.
    """

    def __init__(self, model: CtrModel, *, rules: TuningRules, freeze_base: bool = False) -> None:
        self._twin = copy.deepcopy(model).eval()
        if not isinstance(self._twin.ranker, Aread):
            raise MaskSearchError(f"ranker {type(model.ranker).__name__} has no masks; only aread has")
        self._ranker: Aread = self._twin.ranker
        self._start = copy.deepcopy(self._twin.state_dict())
        self._rules = rules
        self._freeze_base = freeze_base

    def __call__(
        self,
        domain: int,
        mask: PyramidMask,
        tuning: LabelledRows,
        real: LabelledRows,
        *,
        target_density: float,
    ) -> tuple[PyramidMask, float]:
        """Tune, prune and score a candidate.

        Args:
            domain: Index of the domain.
            mask: The candidate.
            tuning: steps * N rows of the domain.
            real: Real rows of the domain.
            target_density: As in `pruned_to`.

        Returns:
            The mask that it ends with, and its score in nats per row.
        """
        rules, ranker, shape = self._rules, self._ranker, mask.shape
        self._twin.load_state_dict(self._start)
        ranker.use_masks(wanted=True)
        optimisers = self._optimisers()
        gates: list[NDArray[np.float32]] = []
        bits = mask.bits[None]
        for step in range(rules.steps):
            ranker.set_masks({domain: PyramidMask(shape, bits[0])})
            rows = slice(step * rules.rows, (step + 1) * rules.rows)
            gates_read = self._step(tuning, rows, optimisers)
            with torch.no_grad():
                closed = ranker.own_gates.gates(torch.tensor([domain], device=tuning.labels.device))
            gates = pruning_gates([level.unsqueeze(1) for level in closed], gates_read, shape)
            bits = pruned(bits, gates, shape, quantile=rules.prune_quantile)
        bits = pruned_to(bits, gates, shape, quantile=rules.prune_quantile, target_density=target_density)
        found = PyramidMask(shape, bits[0])
        ranker.set_masks({domain: found})
        with torch.no_grad():
            logits = self._twin(real.inputs).logits.double()
            losses = functional.binary_cross_entropy_with_logits(logits, real.labels.double())
        return found, float(losses)

    def _step(self, tuning: LabelledRows, rows: slice, optimisers: list[Optimizer]) -> torch.Tensor | None:
        """One step on some rows; gives the mean gates over base experts (1, E, N_0) that read features."""
        inputs, labels = slice_rows(tuning.inputs, rows), tuning.labels[rows]
        with torch.enable_grad():
            output = self._twin(inputs)
            loss = training_loss(output, labels, torch.ones_like(labels))
            for optimiser in optimisers:
                optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            gates = self._ranker.read(self._twin.sides(inputs)[0]).base.gates
        for optimiser in optimisers:
            optimiser.step()
        return None if gates is None else gates.mean(dim=0).mT.unsqueeze(0)

    def _optimisers(self) -> list[Optimizer]:
        """Fresh ones over what is tuned; all gradients are cleared."""
        self._twin.zero_grad(set_to_none=True)
        lr = self._rules.lr
        if self._freeze_base:
            own = [p for name, p in self._ranker.named_parameters() if name.startswith(TUNED)]
            return [Adam(own, lr=lr, betas=BETAS, eps=EPS)]
        made: list[Optimizer] = [Adam(self._twin.dense_parameters(), lr=lr, betas=BETAS, eps=EPS)]
        if tables := [p for group in self._twin.tables() for p in group.parameters]:
            made.append(SparseAdam(tables, lr=lr, betas=BETAS, eps=EPS))
        return made
