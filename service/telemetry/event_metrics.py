"""What is counted of exposure records and feedback."""

from __future__ import annotations

from service.telemetry.instruments import Instruments
from service.telemetry.metric_table import EXPOSURE_OUTCOMES


class EventMetrics:
    """Metrics of exposure records and feedback."""

    def __init__(self, made: Instruments) -> None:
        self._exposures = {name: made.counter("ctr_exposures_total", name) for name in EXPOSURE_OUTCOMES}
        self._requests = {
            name: made.counter("ctr_feedback_requests_total", name) for name in ("ok", "rejected", "failed")
        }
        self._items = [made.counter("ctr_feedback_items_total", click) for click in ("0", "1")]

    def exposures(self, outcome: str, count: int) -> None:
        """Count records, by one of `EXPOSURE_OUTCOMES`."""
        self._exposures[outcome].inc(count)

    def accepted(self, num_items: int, num_clicks: int) -> None:
        """Count feedback that is on disk."""
        self._requests["ok"].inc()
        unclicked, clicked = self._items
        unclicked.inc(num_items - num_clicks)
        clicked.inc(num_clicks)

    def refused(self, status: int) -> None:
        """Count feedback that was answered with a problem document."""
        self._requests["failed" if status >= 500 else "rejected"].inc()


__all__ = ["EventMetrics"]
