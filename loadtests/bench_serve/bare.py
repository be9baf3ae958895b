"""The bare graph's rate: processes that do nothing but run it, with the service's session options.

    python -m loadtests.bench_serve.bare STORE ITEMS SECONDS   one process; waits for a line, then measures

The parent starts as many as the service has workers, lets all begin together, and adds up.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from loadtests.bench_serve.load import draw, graph_inputs
from service.contract.store import ModelStore
from service.scoring.session import open_session


@dataclass(frozen=True)
class Bare:
    """Rate of all processes together, and CPU of one run."""

    rate: float
    cpu_us: float


class BareGraph:
    """Processes ready to run a store's graphs on the rows of N candidates.

    Args:
        store: Folder of the store.
        num_items: N.
        processes: How many.
    """

    def __init__(self, store: Path, num_items: int, processes: int) -> None:
        command = [sys.executable, "-m", "loadtests.bench_serve.bare", str(store), str(num_items)]
        self._processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(processes)
        ]
        for process in self._processes:
            self._read(process)

    def measure(self, seconds: float) -> Bare:
        """Run all at once for a while."""
        for process in self._processes:
            if process.stdin is None:
                raise RuntimeError("the process of the bare graph takes no orders")
            process.stdin.write(f"{seconds}\n")
            process.stdin.flush()
        results = [json.loads(self._read(process)) for process in self._processes]
        return Bare(
            rate=sum(r["runs"] / r["wall_s"] for r in results),
            cpu_us=1e6 * sum(r["cpu_s"] for r in results) / sum(r["runs"] for r in results),
        )

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.communicate()

    @staticmethod
    def _read(process: subprocess.Popen[str]) -> str:
        line = "" if process.stdout is None else process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of the bare graph ended with {process.wait()}")
        return line


def main() -> None:
    """One process: a line `ready`, then a figure for each number of seconds read."""
    store, num_items = Path(sys.argv[1]), int(sys.argv[2])
    bundle = ModelStore(store).open("stable", verify=False)
    sessions = {
        key: open_session(bundle.file(graph.file))[0] for key, graph in bundle.manifest.graphs.items()
    }
    outputs = {key: [graph.output] for key, graph in bundle.manifest.graphs.items()}
    work = [
        (sessions[graph].run, outputs[graph], inputs)
        for graph, inputs in graph_inputs(bundle, draw(num_items))
    ]
    for run, names, inputs in work:
        run(names, inputs)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        runs, cpu, begun = 0, time.process_time(), time.perf_counter()
        until = begun + float(line)
        while time.perf_counter() < until:
            for run, names, inputs in work:
                run(names, inputs)
            runs += len(work)
        figures = {
            "runs": runs,
            "wall_s": time.perf_counter() - begun,
            "cpu_s": time.process_time() - cpu,
        }
        sys.stdout.write(json.dumps(figures) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
