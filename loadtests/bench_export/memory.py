"""Memory and opening time of bundles with few and many graphs, in one and several processes.

Graphs are a domain graph and copies of it with other constants of the domain: biases and mixing. Processes
are those of `memory_process.py`; their memory is read as PSS, where shared pages count by their share.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from export.memory import proportional_mib
from export.onnx_export import write_graph
from export.weights import WeightFiles
from loadtests.bench_export.models import ROWS_PER_FIELD, make_schema
from service.contract.manifest import Graph

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


def write_graphs(proto: onnx.ModelProto, folder: Path, count: int, *, made: int | None = None) -> None:
    """Graphs of a domain and of others like it, weights shared as a bundle shares them.

    Args:
        proto: Of a domain, weights inside.
        folder: Where to.
        count: Graphs.
        made: How many are written as the exporter does, the rest being copies with files of their own; None
            for all.
    """
    schema, weights = make_schema(), WeightFiles(folder / "graphs")
    rng = np.random.default_rng(0)
    for number in range(min(count, made or count)):
        own = onnx.ModelProto()
        own.CopyFrom(proto)
        if number:
            _other_domain(own, rng)
        entry = write_graph(own, schema, folder, name=f"g{number}", form="domain", weights=weights)
        (folder / f"g{number}.json").write_text(entry.model_dump_json())
    for number in range(made or count, count):
        _copy(folder, 1 + number % ((made or count) - 1), number)


def _other_domain(proto: onnx.ModelProto, rng: np.random.Generator) -> None:
    for tensor in proto.graph.initializer:
        values = numpy_helper.to_array(tensor)
        mixes = values.ndim == 2 and values.shape[1] == MIXING_COLUMNS
        if values.dtype == np.float32 and values.size > 1 and (values.ndim == 1 or mixes):
            changed = values * rng.uniform(0.9, 1.1, values.shape).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))


def _copy(folder: Path, source: int, number: int) -> None:
    """A graph under another name, with a file of its own for what only it holds."""
    graphs, old, new = folder / "graphs", f"g{source}.bin", f"g{number}.bin"
    proto = onnx.load(graphs / f"g{source}.onnx", load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location" and entry.value == old:
                entry.value = new
    (graphs / f"g{number}.onnx").write_bytes(proto.SerializeToString())
    shutil.copyfile(graphs / old, graphs / new)
    entry = Graph.model_validate_json((folder / f"g{source}.json").read_text())
    named = entry.model_copy(update={"file": f"graphs/g{number}.onnx"})
    (folder / f"g{number}.json").write_text(named.model_dump_json())


def held(folder: Path, graphs: int, processes: int) -> Held:
    """Memory of processes that each hold the first graphs of a folder."""
    module = "loadtests.bench_export.memory_process"
    command = [sys.executable, "-m", module, str(folder), str(graphs), str(ROWS_PER_FIELD)]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    told = [json.loads(process.stdout.readline()) for process in started if process.stdout is not None]
    total = sum(proportional_mib(process.pid) for process in started)
    for process in started:
        process.communicate("\n")
    return Held(max(each["open_s"] for each in told), total)
