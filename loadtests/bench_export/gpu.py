"""`make bench-gpu`: the reference graphs on a GPU beside one core of the processor.

Ways to run a graph: `cpu`; `cuda`, arrays copied by the runtime; `cuda bound`, padded and bound buffers;
`cuda graphs`, the same recorded; `tensorrt` as its plan says. Where the machine or the installed runtime has
no GPU it says so and measures nothing; a way that the machine lacks is named with the reason.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from export.onnx_export import write_graph
from export.rows import GraphArrays
from export.timing import wall_rows_per_second
from export.weights import WeightFiles
from loadtests.bench_export.models import HOT_DOMAIN, compiled_proto, make_model, make_sampler, make_schema
from service.contract.manifest import Graph
from service.errors import StartupError
from service.scoring.placement import CUDA, Device
from service.scoring.predictor import Predictor
from service.scoring.runtime import onnxruntime

SIZES = (1, 10, 100, 500, 2000)
DRAWS = 8
NO_GPU = "no GPU: onnxruntime has {found} here, not {wanted}; nothing was measured"


def missing_gpu(providers: Sequence[str]) -> str | None:
    """Why nothing can be measured; None where a GPU can be used."""
    return None if CUDA in providers else NO_GPU.format(found=", ".join(providers), wanted=CUDA)


def ways(entry: Graph) -> dict[str, tuple[Device, Graph]]:
    """Ways to run a graph: the device that is asked for, and the entry that leads to it."""
    plan = entry.gpu
    unplanned = entry.model_copy(update={"gpu": None})
    found: dict[str, tuple[Device, Graph]] = {"cpu": ("cpu", unplanned), "cuda": ("cuda", unplanned)}
    if plan is not None:
        still = plan.model_copy(update={"captures": False})
        found["cuda bound"] = ("cuda", entry.model_copy(update={"gpu": still}))
        found["cuda graphs"] = ("cuda", entry)
        found["tensorrt"] = ("tensorrt", entry)
    return found


def opened(folder: Path, entry: Graph) -> tuple[dict[str, Predictor], dict[str, str]]:
    """Predictors by way, and why others cannot be had or are not what they are called."""
    predictors, missing = {}, {}
    for name, (device, wanted) in ways(entry).items():
        try:
            made = Predictor(folder / entry.file, wanted, device=device)
        except StartupError as error:
            missing[name] = str(error)
            continue
        if name == "cuda graphs" and not made.placement.captures:
            missing[name] = made.placement.not_taken.get("captures", "the graph cannot be recorded")
            continue
        predictors[name] = made
    return predictors, missing


def largest_difference(predictors: dict[str, Predictor], inputs: Sequence[GraphArrays]) -> dict[str, float]:
    """Largest |dp| of each way against the processor."""
    expected = [predictors["cpu"].run(arrays) for arrays in inputs]
    return {
        name: max(
            float(np.abs(predictor.run(arrays) - scores).max())
            for arrays, scores in zip(inputs, expected, strict=True)
        )
        for name, predictor in predictors.items()
    }


def measure(folder: Path) -> dict[str, Any]:
    """Rows a second by N and way, differences, and placements."""
    schema = make_schema()
    proto = compiled_proto(make_model("aread", schema), schema)
    entry = write_graph(
        proto, schema, folder, name="whole", form="whole", weights=WeightFiles(folder / "graphs")
    )
    predictors, missing = opened(folder, entry)
    sampler = make_sampler(schema, seed=1)
    rates, differences = {}, {}
    for size in SIZES:
        drawn = [sampler.draw(domain=HOT_DOMAIN, num_rows=size) for _ in range(DRAWS)]
        inputs = [{spec.name: rows[spec.name] for spec in entry.inputs} for rows in drawn]
        differences[size] = largest_difference(predictors, inputs)
        rates[size] = wall_rows_per_second(
            {name: predictor.run for name, predictor in predictors.items()}, inputs, num_rows=size
        )
    return {
        "rows_per_s": rates,
        "max_difference": differences,
        "placements": {name: predictor.placement.shown() for name, predictor in predictors.items()},
        "missing": missing,
    }


def table(figures: dict[str, Any]) -> list[str]:
    """Markdown of what was measured."""
    rates = figures["rows_per_s"]
    lines = ["| rows/s | " + " | ".join(f"N={size}" for size in rates) + " |"]
    lines.append("|---|" + "---:|" * len(rates))
    lines += [
        f"| {name} | " + " | ".join(f"{rates[size][name]:,.0f}" for size in rates) + " |"
        for name in figures["placements"]
    ]
    worst = {name: max(d[name] for d in figures["max_difference"].values()) for name in figures["placements"]}
    lines += ["", *(f"- {name}: |dp| <= {error:.1e} against cpu" for name, error in worst.items())]
    return [*lines, *(f"- {name}: not measured, {reason}" for name, reason in figures["missing"].items())]


def main() -> None:
    """Measure all ways, or say why not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("runs/bench-gpu/figures.json"))
    args = parser.parse_args()
    reason = missing_gpu(onnxruntime.get_available_providers())
    if reason is not None:
        sys.stdout.write(f"{reason}\n")
        return
    with tempfile.TemporaryDirectory() as name:
        figures = measure(Path(name))
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(figures, indent=1) + "\n")
    sys.stdout.write("\n".join(table(figures)) + "\n")


if __name__ == "__main__":
    main()
