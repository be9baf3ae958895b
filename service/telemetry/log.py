"""Logs: one JSON object a line on stderr, records and warnings of libraries included.

Every record of a request carries its `request_id`; of one to `/score` also the `version` and `arm` that
answered. Formatting happens only for records that are written, so a quiet request costs nothing. Invariant:
a line is JSON whatever was put into it; numbers that JSON does not have are written as text.
"""

from __future__ import annotations

import logging
import math
import sys
from typing import Any

import structlog
from structlog.types import EventDict, Processor

_SHARED: tuple[Processor, ...] = (
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
)


def _finite(_: Any, __: str, record: EventDict) -> EventDict:
    """Turn `NaN` and infinities, which are no JSON, into text."""
    for key, value in record.items():
        if isinstance(value, float) and not math.isfinite(value):
            record[key] = repr(value)
    return record


def configure_logging(level: str) -> None:
    """Send all records of this process through one JSON formatter; safe to call again."""
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=_SHARED,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            _finite,
            structlog.processors.JSONRenderer(),
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(capture=True)
    for noisy in ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_SHARED,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def get_logger(name: str) -> Any:
    """A structured logger: `log.error("event", key=value)`."""
    return structlog.stdlib.get_logger(name)


__all__ = ["configure_logging", "get_logger"]
