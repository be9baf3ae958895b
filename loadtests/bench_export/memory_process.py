"""One process that holds graphs as the service does: its modules, and a predictor of every graph.

    python -m loadtests.bench_export.memory_process FOLDER COUNT TABLE_ROWS

Opens the first COUNT graphs of a folder, scores rows that touch every page of all tables, tells a line of
JSON and waits for a line on standard input. Imports nothing of training or export, as a process that serves.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import service.app
from service.contract.manifest import Graph
from service.scoring.predictor import Predictor

NUM_ROWS = 500
ROWS_OF_A_PAGE = 32
"""A page of 4 KiB holds 64 rows of width 16 in fp32; half as many are sure to meet every page."""


def main() -> None:
    """Open, score, tell, wait."""
    folder, count, table_rows = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    begun = time.perf_counter()
    entries = [Graph.model_validate_json((folder / f"g{k}.json").read_text()) for k in range(count)]
    predictors = [Predictor(folder / entry.file, entry) for entry in entries]
    open_s = time.perf_counter() - begun
    for inputs in _rows(table_rows):
        predictors[0].run({spec.name: inputs[spec.name] for spec in entries[0].inputs})
    inputs = next(_rows(table_rows))
    for predictor in predictors:
        predictor.run({spec.name: inputs[spec.name] for spec in predictor.graph.inputs})
    sys.stdout.write(json.dumps({"open_s": open_s, "app": service.app.__name__}) + "\n")
    sys.stdout.flush()
    sys.stdin.readline()


def _rows(table_rows: int) -> Iterator[dict[str, NDArray[Any]]]:
    """Inputs of 500 candidates that read every page of every table."""
    step = NUM_ROWS * ROWS_OF_A_PAGE
    for start in range(0, table_rows, step):
        ids = np.arange(start, start + step, ROWS_OF_A_PAGE, dtype=np.int32) % table_rows
        block = np.repeat(ids[:, None], 8, axis=1)
        yield {
            "user_ints": block,
            "item_ints": block,
            "item_floats": np.zeros((len(ids), 4), np.float32),
            "request_index": np.arange(len(ids), dtype=np.int64),
            "domain": np.zeros(len(ids), np.int64),
        }


if __name__ == "__main__":
    main()
