"""What `ctr-train` prints: data sets, figures of runs, comparisons.

Writes to standard output only. Invariant: nothing here imports torch before it has something to print.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from training.data.prepared import PreparedDataset
    from training.engine.artefacts import RunFolder

out_console = Console()


def print_dataset(dataset: PreparedDataset) -> None:
    """One line on a prepared data set."""
    rows = ", ".join(f"{split} {sum(counts.values()):,}" for split, counts in dataset.domain_rows.items())
    schema = dataset.schema
    out_console.print(
        f"{schema.name}: {rows}; {schema.num_domains} domains, {len(schema.features)} features, "
        f"{len(schema.pairs)} pair features; schema {schema.digest[:12]}, data {dataset.data_digest[:12]}",
        highlight=False,
        soft_wrap=True,
    )


def print_source(data: Path) -> None:
    """How a raw data set will be read."""
    import yaml

    from training.data.describe import describe_source
    from training.data.source import open_data

    described = describe_source(open_data(data))
    out_console.print(
        yaml.safe_dump(described, sort_keys=False), highlight=False, markup=False, soft_wrap=True, end=""
    )


def print_study(tables: dict[str, Any]) -> None:
    """The variants of a study in a table, and what they come to in words."""
    from training.study.summary import sentences, variant_rows

    heads, rows = variant_rows(tables, ("domain_auc", "total_auc", "logloss"))
    table = Table(*heads, box=None)
    for row in rows:
        table.add_row(*row)
    out_console.print(table)
    for line in sentences(tables):
        out_console.print(f"- {line}", highlight=False, markup=False, soft_wrap=True)


def print_metrics(folder: RunFolder) -> None:
    """The figures of a finished run."""
    from training.engine.fit import EVALUATED_SPLITS

    metrics = json.loads(folder.metrics.read_text(encoding="utf-8"))
    columns = {split: metrics[split] for split in EVALUATED_SPLITS}
    if "oracle" in metrics:
        columns["test, truth"] = metrics["oracle"]["test"]
    print_columns(columns)


def print_columns(columns: dict[str, dict[str, Any]]) -> None:
    """Evaluations side by side."""
    from training.metrics import HEADLINE

    table = Table("metric", *columns, box=None)
    for name in (*HEADLINE, "rows", "skipped_domains"):
        table.add_row(name, *(_shown(column[name]) for column in columns.values()))
    out_console.print(table)


def _shown(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
