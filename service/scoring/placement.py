"""On which execution provider a graph runs: what may be tried, in order, and what came of it.

Reads the setting, the graph's plan and the runtime's list of providers; opens nothing. Invariant: a device
that was named is had or refused; only `auto` goes on to the next, and every provider that was left out has
its reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from service.contract.manifest import GpuPlan
from service.errors import RuntimeMissingError

Device = Literal["auto", "cpu", "cuda", "tensorrt"]
CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"
TENSORRT: Final = "TensorrtExecutionProvider"
NAMED: Final[dict[Device, str]] = {"cpu": CPU, "cuda": CUDA, "tensorrt": TENSORRT}
CAPTURE_OPTION: Final = {CUDA: "enable_cuda_graph", TENSORRT: "trt_cuda_graph_enable"}
UNPLANNED: Final[dict[str, dict[str, str]]] = {CPU: {}, CUDA: {"use_tf32": "0"}, TENSORRT: {}}
"""Options of providers that a manifest says nothing of; products of fp32 graphs stay fp32."""


@dataclass(frozen=True)
class Candidate:
    """One way to open a graph.

    Attributes:
        provider: That the graph is to run on.
        options: For the runtime, by provider, in order of preference.
        plan: Sizes of padded runs; None where rows are handed over as they come.
        captures: Whether runs are recorded as CUDA graphs.
    """

    provider: str
    options: dict[str, dict[str, str]]
    plan: GpuPlan | None = None
    captures: bool = False

    def without_captures(self) -> Candidate:
        """The same, with every kernel launched on its own."""
        switch = CAPTURE_OPTION[self.provider]
        own = {k: v for k, v in self.options[self.provider].items() if k != switch}
        return replace(self, options={**self.options, self.provider: own}, captures=False)


@dataclass(frozen=True)
class Placement:
    """Where a graph runs, and why not elsewhere.

    Attributes:
        provider: That runs it.
        options: In force, as the runtime tells them.
        rows, requests: Sizes to which runs are padded; empty where they are not.
        captures: Whether runs of one request are replayed as CUDA graphs.
        not_taken: Reasons by provider, or by `captures`.
    """

    provider: str
    options: dict[str, str] = field(default_factory=dict)
    rows: tuple[int, ...] = ()
    requests: tuple[int, ...] = ()
    captures: bool = False
    not_taken: dict[str, str] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        """Whether inputs and outputs cross to another memory."""
        return self.provider != CPU

    def shown(self) -> dict[str, Any]:
        """For operators."""
        return {
            "provider": self.provider,
            "options": self.options,
            "padded_rows": list(self.rows),
            "padded_requests": list(self.requests),
            "cuda_graphs": self.captures,
            "not_taken": self.not_taken,
        }


def candidates(
    device: Device, plan: GpuPlan | None, available: Sequence[str]
) -> tuple[tuple[Candidate, ...], dict[str, str]]:
    """What may be tried for a graph, the best first, and why the rest is not.

    Args:
        device: As set.
        plan: Of the graph.
        available: Providers that the runtime was built with.

    Raises:
        RuntimeMissingError: The runtime lacks the device that was named.
    """
    if device == "auto":
        return _automatic(plan, available)
    wanted = NAMED[device]
    if wanted not in available:
        raise RuntimeMissingError(
            f"this onnxruntime has no {wanted}; for device '{device}' install the extra "
            f"`{'cpu' if device == 'cpu' else 'gpu'}`"
        )
    others = (CPU, *(provider.name for provider in plan.providers)) if plan is not None else (CPU,)
    reasons = {name: f"device is set to {device}" for name in others if name != wanted}
    return (_candidate(wanted, plan, available),), reasons


def _automatic(
    plan: GpuPlan | None, available: Sequence[str]
) -> tuple[tuple[Candidate, ...], dict[str, str]]:
    found: list[Candidate] = []
    if plan is None:
        reasons = dict.fromkeys((TENSORRT, CUDA), "the manifest plans no GPU for this graph")
        return (_candidate(CPU, None, available),), reasons
    reasons = {}
    for name in [str(provider.name) for provider in plan.providers]:
        if name not in available:
            reasons[name] = "this onnxruntime was built without it"
        else:
            found.append(_candidate(name, plan, available))
    return (*found, _candidate(CPU, None, available)), reasons


def _candidate(name: str, plan: GpuPlan | None, available: Sequence[str]) -> Candidate:
    names = [name, CUDA] if name == TENSORRT and CUDA in available else [name]
    options = {each: _options(each, plan) for each in names}
    if name == CPU or plan is None:
        return Candidate(name, options)
    if plan.captures:
        options[name][CAPTURE_OPTION[name]] = "1"
    return Candidate(name, options, plan, plan.captures)


def _options(name: str, plan: GpuPlan | None) -> dict[str, str]:
    planned = None if plan is None else plan.options_of(name)
    return dict(UNPLANNED[name]) if planned is None else planned


__all__ = ["CPU", "CUDA", "TENSORRT", "Candidate", "Device", "Placement", "candidates"]
