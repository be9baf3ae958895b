"""`make bench-gpu`: the reference graphs on a GPU beside one core of the processor.

Where the machine or the installed runtime has no GPU it says so and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import onnx

from export.onnx_export import write_graph
from export.timing import wall_rows_per_second
from export.weights import WeightFiles
from loadtests.bench_export.models import HOT_DOMAIN, compiled_proto, make_model, make_sampler, make_schema
from service.scoring.predictor import PROVIDERS, Predictor
from service.scoring.runtime import onnxruntime

SIZES = (1, 10, 100, 500, 2000)
DRAWS = 8
NO_GPU = "no GPU: onnxruntime has {found} here, not {wanted}; nothing was measured"


def missing_gpu(providers: list[str]) -> str | None:
    """Why nothing can be measured; None where a GPU can be used."""
    wanted = PROVIDERS["cuda"]
    return None if wanted in providers else NO_GPU.format(found=", ".join(providers), wanted=wanted)


def main() -> None:
    """Measure both devices, or say why not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("runs/bench-gpu/figures.json"))
    args = parser.parse_args()
    reason = missing_gpu(onnxruntime.get_available_providers())
    if reason is not None:
        sys.stdout.write(f"{reason}\n")
        return
    schema = make_schema()
    proto: onnx.ModelProto = compiled_proto(make_model("aread", schema), schema)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        entry = write_graph(
            proto, schema, folder, name="whole", form="whole", weights=WeightFiles(folder / "graphs")
        )
        on = {device: Predictor(folder / entry.file, entry, device=device) for device in PROVIDERS}
        sampler = make_sampler(schema, seed=1)
        figures = {}
        for size in SIZES:
            drawn = [sampler.draw(domain=HOT_DOMAIN, num_rows=size) for _ in range(DRAWS)]
            inputs = [{spec.name: rows[spec.name] for spec in entry.inputs} for rows in drawn]
            figures[size] = wall_rows_per_second(
                {device: predictor.run for device, predictor in on.items()}, inputs, num_rows=size
            )
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(figures, indent=1) + "\n")
    sys.stdout.write("\n".join(f"N={size}: {rates}" for size, rates in figures.items()) + "\n")


if __name__ == "__main__":
    main()
