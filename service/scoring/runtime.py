"""The one place that imports onnxruntime: `from service.scoring.runtime import onnxruntime`.

Telemetry is switched off before the import (release 1.30 and later look up an upload host otherwise).
"""

from __future__ import annotations

import os

from service.errors import RuntimeMissingError

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

try:
    import onnxruntime
except ImportError as error:
    raise RuntimeMissingError(
        "onnxruntime is not installed; install the extra `cpu` (pip install 'ctr-domains[cpu]') "
        "or, for NVIDIA GPUs, `gpu` (pip install 'ctr-domains[gpu]'), never both"
    ) from error

__all__ = ["onnxruntime"]
