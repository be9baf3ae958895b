"""The GPU bench: it says where there is none, and names every way that it cannot measure."""

from pathlib import Path

import numpy as np
import pytest

from loadtests.bench_export import gpu
from service.contract.manifest import GpuPlan, GpuProvider, Graph
from service.scoring.placement import CUDA, TENSORRT, Placement
from service.scoring.predictor import Predictor
from tests.support.quotient_graph import FLOATS, write

PLAN = GpuPlan(
    providers=(GpuProvider(name=TENSORRT), GpuProvider(name=CUDA)), rows=(8,), requests=(1,), captures=True
)
ENTRY = Graph(file="g.onnx", inputs=(FLOATS,), output="y", gpu=PLAN)


def test_a_machine_without_a_gpu_is_told_apart():
    assert gpu.missing_gpu(["CPUExecutionProvider"]) == (
        "no GPU: onnxruntime has CPUExecutionProvider here, not CUDAExecutionProvider; nothing was measured"
    )
    assert gpu.missing_gpu([CUDA, "CPUExecutionProvider"]) is None


def test_every_way_of_the_plan_is_measured():
    found = gpu.ways(ENTRY)
    assert list(found) == ["cpu", "cuda", "cuda bound", "cuda graphs", "tensorrt"]
    assert found["cuda"][1].gpu is None
    assert (found["cuda bound"][1].gpu.captures, found["cuda graphs"][1].gpu.captures) == (False, True)
    assert list(gpu.ways(ENTRY.model_copy(update={"gpu": None}))) == ["cpu", "cuda"]


def test_ways_that_cannot_be_had_are_named_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Here the runtime has no GPU but for the way of plain CUDA, which the processor plays."""
    write(tmp_path / "g.onnx")

    def play(path, entry, *, device):
        if device == "cuda":
            made = Predictor(path, entry)
            made.placement = Placement(CUDA, not_taken={"captures": "a node is on the processor"})
            return made
        return Predictor(path, entry, device=device)

    monkeypatch.setattr(gpu, "Predictor", play)
    predictors, missing = gpu.opened(tmp_path, ENTRY)
    assert list(predictors) == ["cpu", "cuda", "cuda bound"]
    assert missing["cuda graphs"] == "a node is on the processor"
    assert f"this onnxruntime has no {TENSORRT}" in missing["tensorrt"]

    inputs = [{"x": np.array([[1, 2], [3, 4]], np.float32)}]
    assert gpu.largest_difference(predictors, inputs) == {"cpu": 0.0, "cuda": 0.0, "cuda bound": 0.0}
    lines = gpu.table(
        {
            "rows_per_s": {1: {"cpu": 10.0, "cuda": 2000.0}},
            "max_difference": {1: {"cpu": 0.0, "cuda": 1e-7}},
            "placements": {"cpu": {}, "cuda": {}},
            "missing": {"tensorrt": "no library"},
        }
    )
    assert "| cuda | 2,000 |" in lines
    assert "- cuda: |dp| <= 1.0e-07 against cpu" in lines
    assert lines[-1] == "- tensorrt: not measured, no library"
