"""One update of the masks of all domains.

For each domain: candidates, a few steps of tuning with pruning, a score on real train rows; the candidate
with the lowest score becomes the domain's mask, its tuned weights are thrown away. Two ways give the same
answer where the base stands still: `cheap` tunes many candidates at once on cached readings of the base,
`plain` takes one copy of the model after the other. Invariant: no parameter, buffer, `.grad`, module mode or
random state of the model is other than before; what is found is a function of weights, masks, rows and seed.

Letters: n domains, Z candidates of each, X edges.

Source: AREAD, arXiv 2412.11905, section HEMP. All Z candidates of a domain are tuned and scored on the same
rows, scores are without the L2 term, and everything is reset; the published code does otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from training.clustering.arrays import FloatArray
from training.clustering.lookahead_model import LabelledRows, undisturbed
from training.masks.candidates import candidate, gated_edges
from training.masks.errors import MaskSearchError
from training.masks.plain import PlainTuner
from training.masks.rows import RowSource, draw_rows
from training.masks.schedule import UpdateSettings
from training.masks.stack import CachedRows, CandidateStack, cached
from training.masks.tuning import TuningRules, pruning_gates, scores, tuned
from training.models.aread import Aread
from training.models.base import CtrModel
from training.models.mask import BoolArray, PyramidMask

SearchMode = Literal["cheap", "plain"]

CANDIDATES, TUNING, SCORING = 0, 1, 2
"""Purposes of random draws."""


@dataclass(frozen=True, eq=False)
class FoundMasks:
    """What an update found.

    Attributes:
        masks: The new mask of each domain, by domain index.
        scores: (n, Z) of the candidates in the order of `masks`, nats per row.
        bits: (n, Z, X) the candidates after pruning.
    """

    masks: dict[int, PyramidMask]
    scores: FloatArray
    bits: BoolArray


@dataclass(frozen=True)
class MaskSearch:
    """Finds masks.

    Attributes:
        model: Its ranker is an `Aread`.
        tuning: Rows that candidates are tuned on; may hold augmented ones.
        real: Rows that they are scored on.
        rules: Of tuning and scoring.
        mode: `cheap` leaves the base as it is; `plain` tunes the whole model.
        seed: Of every draw.
        freeze_base: In `plain`, leave all but gates, pyramid and heads as they are.
    """

    model: CtrModel
    tuning: RowSource
    real: RowSource
    rules: TuningRules
    mode: SearchMode
    seed: int
    freeze_base: bool = False

    def __call__(
        self,
        update: int,
        settings: UpdateSettings,
        domains: Sequence[int],
        current: Mapping[int, PyramidMask],
    ) -> FoundMasks:
        """Search masks for some domains.

        Args:
            update: Number of the update, from 1.
            settings: Of this update.
            domains: Domain indices, all with rows in both sources.
            current: Masks that domains have; a domain that is not in it has none yet.

        Raises:
            MaskSearchError: The model is not to be searched, or a source has no rows of a domain.
        """
        ranker = aread_of(self.model)
        found: list[tuple[BoolArray, NDArray[np.float64]]] = []
        with undisturbed(self.model):
            for chunk in self._chunks(domains, settings.num_candidates):
                tuning, real = self._rows(chunk, update)
                reading = cached(self.model, ranker, tuning)
                bits = self._candidates(ranker, reading, update, settings, chunk, current)
                if self.mode == "plain":
                    found.append(self._plain(ranker, chunk, bits, tuning, real, settings))
                    continue
                stack = CandidateStack(ranker, self._indices(chunk, reading), settings.num_candidates)
                bits = tuned(
                    stack,
                    bits,
                    reading,
                    ranker.shape,
                    rules=self.rules,
                    target_density=settings.target_density,
                )
                found.append((bits, scores(stack, bits, cached(self.model, ranker, real))))
        bits = np.concatenate([part for part, _ in found])
        score = np.concatenate([part for _, part in found])
        best = score.argmin(axis=1)
        masks = {
            domain: PyramidMask(ranker.shape, bits[row, best[row]]) for row, domain in enumerate(domains)
        }
        return FoundMasks(masks, score, bits)

    def _chunks(self, domains: Sequence[int], num_candidates: int) -> Iterator[list[int]]:
        size = max(1, self.rules.chunk_candidates // num_candidates)
        for start in range(0, len(domains), size):
            yield list(domains[start : start + size])

    def _rows(self, domains: list[int], update: int) -> tuple[LabelledRows, LabelledRows]:
        rules = self.rules
        device = next(self.model.parameters()).device
        tuning = draw_rows(
            self.tuning, domains, rules.steps * rules.rows, key=(self.seed, update, TUNING), device=device
        )
        real = draw_rows(
            self.real,
            domains,
            rules.eval_batches * rules.rows,
            key=(self.seed, update, SCORING),
            device=device,
        )
        return tuning, real

    @staticmethod
    def _indices(domains: list[int], reading: CachedRows) -> torch.Tensor:
        return torch.tensor(domains, dtype=torch.int64, device=reading.labels.device)

    def _candidates(
        self,
        ranker: Aread,
        reading: CachedRows,
        update: int,
        settings: UpdateSettings,
        domains: list[int],
        current: Mapping[int, PyramidMask],
    ) -> BoolArray:
        """(n, Z, X) valid candidates."""
        shape = ranker.shape
        own = np.stack([current[d].bits if d in current else np.ones(shape.num_edges, bool) for d in domains])
        with torch.no_grad():
            indices = self._indices(domains, reading)
            gates = ranker.own_gates.gates(indices, torch.from_numpy(own).to(indices.device))
        levels = pruning_gates([level.unsqueeze(1) for level in gates], reading.base_gates(), shape)
        made = np.empty((len(domains), settings.num_candidates, shape.num_edges), dtype=np.bool_)
        for row, domain in enumerate(domains):
            rng = np.random.default_rng([self.seed, update, CANDIDATES, domain])
            proposed = gated_edges([level[row] for level in levels], shape, active=settings.active)
            for z in range(settings.num_candidates):
                mask = candidate(
                    current.get(domain),
                    proposed,
                    shape,
                    active=settings.active,
                    sigma=settings.sigma,
                    rng=rng,
                )
                made[row, z] = mask.bits
        return made

    def _plain(
        self,
        ranker: Aread,
        domains: list[int],
        bits: BoolArray,
        tuning: LabelledRows,
        real: LabelledRows,
        settings: UpdateSettings,
    ) -> tuple[BoolArray, NDArray[np.float64]]:
        tuner = PlainTuner(self.model, rules=self.rules, freeze_base=self.freeze_base)
        ended, score = np.empty_like(bits), np.empty(bits.shape[:2])
        for row, domain in enumerate(domains):
            mine = tuning.span(row, row + 1), real.span(row, row + 1)
            for z, start in enumerate(bits[row]):
                mask, score[row, z] = tuner(
                    domain,
                    PyramidMask(ranker.shape, start),
                    *mine,
                    target_density=settings.target_density,
                )
                ended[row, z] = mask.bits
        return ended, score


def aread_of(model: CtrModel) -> Aread:
    """The ranker whose masks are searched.

    Raises:
        MaskSearchError: It is of another kind.
    """
    if not isinstance(model.ranker, Aread):
        raise MaskSearchError(f"ranker {type(model.ranker).__name__} has no masks; only aread has")
    return model.ranker
