"""How many candidates each expert of a bundle is run for, by domain.

Reads the experts that rows chose, as graphs give them beside scores. Invariant: it may be told from several
threads, since graphs run in them.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.telemetry.instruments import Instruments


class ExpertLoad:
    """Counters of one bundle.

    Args:
        made: The metrics.
        version: Short id of the bundle.
        labels: Label of each domain by its index in graphs, the unknown one last.
        num_experts: E.
    """

    def __init__(self, made: Instruments, *, version: str, labels: Sequence[str], num_experts: int) -> None:
        self._num_experts = num_experts
        self._lock = threading.Lock()
        self._series = [
            [made.counter("ctr_expert_rows_total", version, label, str(e)) for e in range(num_experts)]
            for label in labels
        ]

    def __call__(
        self, experts: NDArray[np.int64], domain: NDArray[np.int64], request_index: NDArray[np.int64]
    ) -> None:
        """Count one run.

        Args:
            experts: (N, k) in [0, E).
            domain: (R,) indices of the domains of its requests.
            request_index: (N,) request of each row.
        """
        size = self._num_experts
        if len(domain) == 1:
            self._add(int(domain[0]), np.bincount(experts.ravel(), minlength=size))
            return
        place = domain[request_index][:, None] * size + experts
        counts = np.bincount(place.ravel(), minlength=len(self._series) * size).reshape(-1, size)
        for own in np.unique(domain).tolist():
            self._add(own, counts[own])

    def _add(self, domain: int, counts: NDArray[np.int64]) -> None:
        with self._lock:
            for series, count in zip(self._series[domain], counts.tolist(), strict=True):
                if count:
                    series.inc(count)


__all__ = ["ExpertLoad"]
