"""A log that does not fit: prepared and read within a memory limit below the table's own size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

ROWS, NUMBERS, GROUP = 1_600_000, 40, 100_000
LIMIT_BYTES = 420 * 2**20

RUN = """
import json, sys
from pathlib import Path
from training.data.dataset import RowReader
from training.data.prepare import prepare

prepared = prepare(sys.argv[1], sys.argv[2])
rows = clicks = 0
for batch in RowReader(prepared, "train").batches(4096, seed=1, shuffle=True, buffer_rows=65_536):
    rows += len(batch)
    clicks += int(batch.label.sum())
# Not ru_maxrss: that one starts at the size of the process that forked us.
status = Path("/proc/self/status").read_text().splitlines()
peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
print(json.dumps({"rows": rows, "clicks": clicks, "peak": peak, "all": prepared.rows}))
"""


def _write(folder: Path) -> tuple[int, int]:
    """Write the log by row groups; returns (bytes of the table in memory, train clicks)."""
    rng = np.random.default_rng(0)
    names = [f"x{i}" for i in range(NUMBERS)]
    pool = rng.normal(size=(64, GROUP)).round(2)
    size = clicks = 0
    schema = None
    for start in range(0, ROWS, GROUP):
        label = rng.integers(0, 2, GROUP)
        split = "train" if start < ROWS - 2 * GROUP else ("valid" if start < ROWS - GROUP else "test")
        columns = {
            "user_id": rng.integers(0, 20_000, GROUP),
            "item_id": rng.integers(0, 2_000, GROUP),
            "domain": rng.integers(0, 20, GROUP),
            "time_ms": (np.arange(start, start + GROUP) * 500).astype(np.int64),
            "label": label,
            "split": [split] * GROUP,
        } | {name: pool[rng.integers(64)] for name in names}
        table = pa.table(columns)
        size += table.nbytes
        clicks += int(label.sum()) if split == "train" else 0
        if schema is None:
            schema = table.schema
            writer = pq.ParquetWriter(folder / "log.parquet", schema, compression="lz4")
        writer.write_table(table)
    writer.close()
    roles = {"user": "user_id", "item": "item_id", "domain": "domain", "label": "label", "time": "time_ms"}
    features = [
        {"name": "user_id", "entity": "user", "kind": "categorical"},
        {"name": "item_id", "entity": "item", "kind": "categorical"},
        *({"name": name, "entity": "context", "kind": "numeric"} for name in names),
    ]
    keys = [{"key": ["user_id"]}, {"key": ["item_id"]}, {"key": ["item_id", "domain"], "top": 8}]
    description = {
        "name": "big",
        "interactions": "log.parquet",
        "columns": roles | {"split": "split"},
        "features": features,
        "statistics": {"keys": keys},
    }
    (folder / "dataset.yaml").write_text(yaml.safe_dump(description))
    return size, clicks


@pytest.mark.slow
def test_a_log_larger_than_the_memory_limit(tmp_path):
    size, clicks = _write(tmp_path)
    assert size > LIMIT_BYTES

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUN, str(tmp_path), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"},
    )

    assert done.stderr == ""
    found = json.loads(done.stdout)
    print(f"table {size >> 20} MiB, limit {LIMIT_BYTES >> 20} MiB, peak {found['peak'] >> 20} MiB")
    assert found["all"] == {"train": ROWS - 2 * GROUP, "valid": GROUP, "test": GROUP}
    assert (found["rows"], found["clicks"]) == (ROWS - 2 * GROUP, clicks)
    assert found["peak"] < LIMIT_BYTES
