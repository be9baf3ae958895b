"""What a manifest says of a graph on a GPU: providers, sizes of padded runs, whether they may be recorded.

Reads a graph, needs no GPU. Invariant: a plan never changes what a graph computes: products of fp32 graphs
stay fp32, and a graph made for processors has no plan.
"""

from __future__ import annotations

from typing import Final

import onnx

from service.contract.manifest import GpuPlan, GpuProvider

ROWS: Final = (8, 32, 128, 512, 1024)
REQUESTS: Final = (1, 64)
CUDA_OPTIONS: Final = {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}
"""Memory of a device grows by what is asked for: a bundle has many graphs, and their sizes are known."""
TENSORRT_OPTIONS: Final = {"trt_fp16_enable": "0"}
SIZED_BY_VALUES: Final = frozenset({"NonZero", "Compress", "Unique", "If", "Loop", "Scan"})
"""Operators whose output's size, or course, depends on values: a recording would repeat the first run's."""
FOR_PROCESSORS: Final = ("int8",)


def gpu_plan(proto: onnx.ModelProto, precision: str) -> GpuPlan | None:
    """The plan of a graph; None where it is made for processors.

    Args:
        proto: As it is written.
        precision: Of it.
    """
    if precision in FOR_PROCESSORS:
        return None
    return GpuPlan(
        providers=(
            GpuProvider(name="TensorrtExecutionProvider", options=dict(TENSORRT_OPTIONS)),
            GpuProvider(name="CUDAExecutionProvider", options=dict(CUDA_OPTIONS)),
        ),
        rows=ROWS,
        requests=REQUESTS,
        captures=not any(node.op_type in SIZED_BY_VALUES for node in proto.graph.node),
    )
