"""Opening one ONNX graph in the runtime, on the best provider that it may have.

Reads the graph's file; external weights are found beside it and memory-mapped. Invariant: a session runs on
the provider that its placement names, or it was not opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from service.contract.manifest import GpuPlan
from service.errors import GraphError
from service.scoring.placement import CPU, Candidate, Device, Placement, candidates
from service.scoring.runtime import SHARED_POOL, onnxruntime, share_working_memory


def open_session(
    path: Path, device: Device = "cpu", plan: GpuPlan | None = None, *, available: Sequence[str] | None = None
) -> tuple[Any, Placement]:
    """A session, and where it runs.

    Args:
        path: The graph's file.
        device: As set.
        plan: What the manifest says of GPUs.
        available: Providers of the runtime; None asks it.

    Raises:
        GraphError: The file cannot be opened on any provider that may be tried.
        RuntimeMissingError: The runtime lacks the device that was named.
    """
    known = onnxruntime.get_available_providers() if available is None else available
    tried, not_taken = candidates(device, plan, known)
    last: GraphError | None = None
    for candidate in tried:
        try:
            session, taken = _with_or_without_captures(path, candidate, not_taken)
        except GraphError as error:
            not_taken[candidate.provider] = str(error)
            last = error
            continue
        left = [other.provider for other in tried[tried.index(candidate) + 1 :]]
        reasons = not_taken | dict.fromkeys(left, f"{taken.provider} comes first")
        return session, _placement(session, taken, reasons)
    raise last if last is not None else GraphError(f"{path}: no provider may be tried for device '{device}'")


def _with_or_without_captures(
    path: Path, candidate: Candidate, not_taken: dict[str, str]
) -> tuple[Any, Candidate]:
    """A graph whose parts do not all run on the GPU cannot be captured, which only opening it tells."""
    if candidate.captures:
        try:
            return _session(path, candidate), candidate
        except GraphError as error:
            candidate = candidate.without_captures()
            session = _session(path, candidate)
            not_taken["captures"] = str(error)
            return session, candidate
    return _session(path, candidate), candidate


def _session(path: Path, candidate: Candidate) -> Any:
    """A sequential session: parallel runs come from processes, not from threads inside one run."""
    share_working_memory()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.add_session_config_entry("session.disable_prepacking", "0")
    options.add_session_config_entry(SHARED_POOL, "1")
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=list(candidate.options.items()), enable_fallback=0
        )
    except Exception as error:  # noqa: BLE001 - the runtime raises its own unrelated classes
        raise GraphError(
            f"{path}: cannot be opened as an ONNX graph ({type(error).__name__}: {error})"
        ) from None
    # A provider whose libraries or device are missing is left out by the runtime, with a warning at most.
    if candidate.provider not in session.get_providers():
        raise GraphError(
            f"{path}: the runtime fell back to {session.get_providers()} instead of {candidate.provider}"
        )
    return session


def _placement(session: Any, taken: Candidate, not_taken: dict[str, str]) -> Placement:
    if taken.provider == CPU:
        return Placement(CPU, not_taken=not_taken)
    options = {k: str(v) for k, v in session.get_provider_options().get(taken.provider, {}).items()}
    if taken.plan is None:
        return Placement(taken.provider, options, not_taken=not_taken)
    return Placement(taken.provider, options, taken.plan.rows, taken.plan.requests, taken.captures, not_taken)


__all__ = ["open_session"]
