"""The one place that imports onnxruntime: `from service.scoring.runtime import onnxruntime`.

Telemetry is switched off before the import (release 1.30 and later look up an upload host otherwise). So are
products of 10-bit numbers that NVIDIA's libraries would use for fp32; TensorRT has no option for that.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import Any, Final

from service.errors import RuntimeMissingError

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")

try:
    import onnxruntime
except ImportError as error:
    raise RuntimeMissingError(
        "onnxruntime is not installed; install the extra `cpu` (pip install 'ctr-domains[cpu]') "
        "or, for NVIDIA GPUs, `gpu` (pip install 'ctr-domains[gpu]'), never both"
    ) from error


SHARED_POOL: Final = "session.use_env_allocators"
"""Entry of a session's configuration: working memory comes from the pool of the process."""


@cache
def share_working_memory() -> None:
    """One pool of working memory for all sessions of this process that ask for it, made once.

    Each session would otherwise keep a pool of its own, as large as its largest run so far. The pool takes
    locks, so sessions may run in several threads.
    """
    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    onnxruntime.create_and_register_allocator(memory, None)


def unchecked_run(session: Any) -> Callable[[list[str], Any, None], list[Any]]:
    """The session's native `run(outputs, inputs, None)`, without what Python does around it.

    The wrapper compares names of inputs, already checked when the graph was opened, on each call, which costs
    a small graph a fifth of its time; and on failure it may go on with another provider without a word.
    Ends what the session would do so in any other way as well.
    """
    session.disable_fallback()
    native: Callable[[list[str], Any, None], list[Any]] = session._sess.run
    return native


__all__ = ["SHARED_POOL", "onnxruntime", "share_working_memory", "unchecked_run"]
