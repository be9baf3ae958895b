"""What is counted of requests to `/v2/models/{name}/infer`, which brings its own tensors."""

from __future__ import annotations

from service.telemetry.instruments import Instruments


class InferMetrics:
    """Metrics of infer.

    Args:
        made: The metrics.
    """

    def __init__(self, made: Instruments) -> None:
        self._made = made

    def answered(self, version: str, took_s: float) -> None:
        """Count a request that was answered with the output of a graph.

        Args:
            version: Short id of the bundle.
            took_s: From its head to the reply handed over.
        """
        self._made.counter("ctr_infer_requests_total", version, "ok").inc()
        self._made.histogram("ctr_infer_duration_seconds", version).observe(took_s)

    def refused(self, version: str, status: int) -> None:
        """Count a request that was answered with a problem document."""
        self._made.counter(
            "ctr_infer_requests_total", version, "failed" if status >= 500 else "rejected"
        ).inc()

    def disconnected(self, version: str) -> None:
        """Count a caller that left before it was answered."""
        self._made.counter("ctr_infer_requests_total", version, "disconnected").inc()


__all__ = ["InferMetrics"]
