"""Memory and opening time of bundles with few and many graphs, in one and several processes.

    python -m loadtests.bench_export.memory FOLDER COUNT     one process: tells a line, waits for a line

Graphs are a domain graph and copies of it with other constants of the domain: biases and mixing. A process
holds what the service's does: its modules, and a predictor of every graph. It scores rows that touch all
tables before its memory is read as PSS, where shared pages count by their share.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from export.memory import proportional_mib
from export.onnx_export import write_graph
from export.rows import GraphArrays
from export.weights import WeightFiles
from loadtests.bench_export.models import ROWS_PER_FIELD, make_schema
from service.contract.manifest import Graph
from service.scoring.predictor import Predictor

TOUCHED_ROWS = 500
MIXING_COLUMNS = 96  # of the first layers that hold a level's mixing


@dataclass(frozen=True)
class Held:
    """What processes held.

    Attributes:
        open_s: Seconds until all graphs were open, of the slowest process.
        pss_mib: Of all processes together.
    """

    open_s: float
    pss_mib: float


def write_graphs(proto: onnx.ModelProto, folder: Path, count: int) -> None:
    """Graphs of a domain and of others like it, weights shared as a bundle shares them."""
    schema, weights = make_schema(), WeightFiles(folder / "graphs")
    rng = np.random.default_rng(0)
    for number in range(count):
        own = onnx.ModelProto()
        own.CopyFrom(proto)
        if number:
            _other_domain(own, rng)
        entry = write_graph(own, schema, folder, name=f"g{number}", form="domain", weights=weights)
        (folder / f"g{number}.json").write_text(entry.model_dump_json())


def _other_domain(proto: onnx.ModelProto, rng: np.random.Generator) -> None:
    for tensor in proto.graph.initializer:
        values = numpy_helper.to_array(tensor)
        mixes = values.ndim == 2 and values.shape[1] == MIXING_COLUMNS
        if values.dtype == np.float32 and values.size > 1 and (values.ndim == 1 or mixes):
            changed = values * rng.uniform(0.9, 1.1, values.shape).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))


def held(folder: Path, graphs: int, processes: int) -> Held:
    """Memory of processes that each hold the first graphs of a folder."""
    command = [sys.executable, "-m", "loadtests.bench_export.memory", str(folder), str(graphs)]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    told = [json.loads(process.stdout.readline()) for process in started if process.stdout is not None]
    total = sum(proportional_mib(process.pid) for process in started)
    for process in started:
        process.communicate("\n")
    return Held(max(each["open_s"] for each in told), total)


def main() -> None:
    """One process."""
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    import service.app

    begun = time.perf_counter()
    entries = [Graph.model_validate_json((folder / f"g{k}.json").read_text()) for k in range(count)]
    predictors = [Predictor(folder / entry.file, entry) for entry in entries]
    open_s = time.perf_counter() - begun
    rows = _rows()
    for inputs in rows:
        predictors[0].run({spec.name: inputs[spec.name] for spec in entries[0].inputs})
    for predictor in predictors:
        predictor.run({spec.name: rows[0][spec.name] for spec in predictor.graph.inputs})
    sys.stdout.write(json.dumps({"open_s": open_s, "app": service.app.__name__}) + "\n")
    sys.stdout.flush()
    sys.stdin.readline()


def _rows() -> list[GraphArrays]:
    """Inputs that read every row of every table once."""
    made: list[GraphArrays] = []
    for start in range(0, ROWS_PER_FIELD, TOUCHED_ROWS):
        ids = np.arange(start, min(start + TOUCHED_ROWS, ROWS_PER_FIELD), dtype=np.int32)
        block = np.repeat(ids[:, None], 8, axis=1)
        made.append(
            {
                "user_ints": block,
                "item_ints": block,
                "item_floats": np.zeros((len(ids), 4), np.float32),
                "request_index": np.arange(len(ids), dtype=np.int64),
                "domain": np.zeros(len(ids), np.int64),
            }
        )
    return made


if __name__ == "__main__":
    main()
