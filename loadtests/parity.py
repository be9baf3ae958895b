"""Post rows of a run's test split to a running service and compare with the offline evaluation.

    python -m loadtests.parity --run runs/a --data DIR --recipe kuairand_tag --url http://127.0.0.1:8000

What is sent is raw: user id, item id, domain and context as the log has them. The service must answer
the calibrated probability that `ctr-train run` wrote to `predictions/test.parquet`. Exits with 1 when
one row differs by more than the limit.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl

from service.contract.schema import Entity
from training.data.source import DataSource, open_data
from training.data.table import CategoricalSpec, TimePart

MS = {"s": 1000, "ms": 1, "us": 0.001}
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
THURSDAY = 3  # 1970-01-01, with Monday as 0


def raw_requests(source: DataSource, split: str, rows: np.ndarray[Any, Any]) -> list[dict[str, Any]]:
    """One request of one candidate for each chosen row of a split, in the log's order.

    Args:
        source: A data set whose log has a split column.
        split: Which split.
        rows: (n,) positions within the split.
    """
    description = source.description
    columns = description.columns
    log = pl.concat([pl.read_parquet(path) for path in source.interactions])
    part = log.filter(pl.col(columns.split or "split") == split)[rows.tolist()]
    local_ms = part[columns.time.column].cast(pl.Float64) * MS[columns.time.unit]
    local_ms = local_ms + columns.time.timezone_offset_h * HOUR_MS
    context: dict[str, list[Any]] = {}
    for feature in description.features:
        if feature.entity is not Entity.CONTEXT:
            continue
        column = getattr(feature, "column", None)
        if isinstance(feature, CategoricalSpec) and isinstance(column, TimePart):
            values = (
                (local_ms % DAY_MS) // HOUR_MS
                if column.from_time == "hour"
                else (local_ms // DAY_MS + THURSDAY) % 7
            )
            context[feature.name] = values.cast(pl.Int64).to_list()
        else:
            context[feature.name] = part[column if isinstance(column, str) else feature.name].to_list()
    users, items = part[columns.user].to_list(), part[columns.item].to_list()
    domains = [f"{columns.domain.prefix}{value}" for value in part[columns.domain.column].to_list()]
    return [
        {
            "domain": domains[n],
            "user": {"id": str(users[n])},
            "context": {name: values[n] for name, values in context.items()},
            "items": [{"id": str(items[n])}],
        }
        for n in range(len(part))
    ]


def compare(run: Path, source: DataSource, client: httpx.Client, *, num_rows: int, seed: int) -> float:
    """Largest |p_service - p_offline| over randomly chosen test rows of known domains."""
    offline = pl.read_parquet(run / "predictions" / "test.parquet")
    known = np.flatnonzero((offline["domain"] != "(unknown)").to_numpy())
    rows = np.sort(np.random.default_rng(seed).choice(known, min(num_rows, len(known)), replace=False))
    expected = offline["score"].to_numpy()[rows]
    worst = 0.0
    for request, score in zip(raw_requests(source, "test", rows), expected, strict=True):
        reply = client.post("/score", json=request)
        reply.raise_for_status()
        worst = max(worst, abs(reply.json()["scores"][0] - float(score)))
    return worst


def main() -> int:
    """Run the comparison; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="finished run folder")
    parser.add_argument("--data", type=Path, required=True, help="raw data the run was trained on")
    parser.add_argument("--recipe", help="recipe of the run, if it used one")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="base address of the service")
    parser.add_argument("--rows", type=int, default=500, help="rows to post")
    parser.add_argument("--limit", type=float, default=1e-5, help="largest difference that passes")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of rows")
    options = parser.parse_args()
    with httpx.Client(base_url=options.url, timeout=10) as client:
        worst = compare(
            options.run,
            open_data(options.data, options.recipe),
            client,
            num_rows=options.rows,
            seed=options.seed,
        )
    sys.stdout.write(f"{options.rows} test rows: |p_service - p_offline| <= {worst:.2e}\n")
    return 0 if worst <= options.limit else 1


if __name__ == "__main__":
    sys.exit(main())
