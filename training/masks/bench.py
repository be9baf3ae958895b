"""What mask updates cost: `python -m training.masks.bench --out mask_bench.json`.

Builds aread models over random rows as wide as KuaiRand-Pure, the size of `configs/kuairand_tag_aread.yaml`
and the default size, and measures in one process: a training step, and an update of the masks of all
domains at D = 43 and D = 300, drawing and encoding its rows left out on both sides. Writes one json. Seconds
are processor seconds of this process, so that neighbours on the machine do not count; with one thread they
are wall seconds of an idle machine.

The plain search is timed on a few domains and scaled to all of them.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from training.clustering.lookahead_bench import bench_schema, random_rows, timed
from training.clustering.lookahead_model import LabelledRows
from training.engine.loss import training_loss
from training.engine.optim import Schedule, build_optimisers
from training.masks.config import MaskConfig
from training.masks.search import MaskSearch
from training.models.base import CtrModel, TensorBatch
from training.models.build import build_model
from training.models.config import AreadConfig, InputConfig, MmoeBaseConfig, TableConfig

Size = Literal["tag", "default"]

BATCH_ROWS: dict[Size, int] = {"tag": 512, "default": 1024}
"""Rows of a training batch: of the config, and of the published setting."""


def bench_model(num_domains: int, size: Size) -> CtrModel:
    """A model of the size of `kuairand_tag_aread.yaml`, or of the defaults of `AreadConfig`."""
    tables = (TableConfig(encoders=("item_id",), dim=16), TableConfig(dim=8))
    inputs = InputConfig(tables=tables, domain_dim=8, pooling="sqrt")
    if size == "default":
        return build_model(AreadConfig(inputs=inputs), bench_schema(num_domains))
    config = AreadConfig(
        inputs=inputs,
        base=MmoeBaseConfig(expert_widths=(64, 32), gate_input="domain"),
        expert_widths=((32,), (16,), (8,)),
        gate_dim=16,
        batch_norm=False,
    )
    return build_model(config, bench_schema(num_domains))


@dataclass
class HeldRows:
    """Random rows of every domain, made once.

    Attributes:
        rows: The same number of each domain.
    """

    rows: LabelledRows

    def num_rows(self, domain: int) -> int:
        """Rows of a domain."""
        return int(self.rows.sizes[domain])

    def draw(self, domain: int, num_rows: int, rng: np.random.Generator) -> LabelledRows:
        """The first ones."""
        del rng
        part = self.rows.span(domain, domain + 1)
        inputs = {name: getattr(part.inputs, name)[:num_rows] for name in TensorBatch.__dataclass_fields__}
        return LabelledRows(TensorBatch(**inputs), part.labels[:num_rows], np.array([num_rows]))


def step_seconds(model: CtrModel, rows: LabelledRows, *, steps: int) -> float:
    """One training step with masks that count: forward, backward, AdamW and SparseAdam."""
    model.train()
    optimisers = build_optimisers(
        dense=model.dense_parameters(),
        tables=model.tables(),
        dense_lr=1e-3,
        weight_decay=1e-5,
        table_method="sparse_adam",
        table_lr=1e-3,
        schedule=Schedule(kind="constant", warmup_steps=0, total_steps=1),
    )

    def step() -> None:
        out = model(rows.inputs)
        loss = training_loss(out, rows.labels, torch.ones_like(rows.labels)) + out.penalty
        optimisers.zero_grad()
        loss.backward()
        optimisers.step(0)

    return timed(step, repeats=steps)


def run_case(
    num_domains: int, size: Size, *, settings: MaskConfig, steps: int, plain_domains: int
) -> dict[str, Any]:
    """Measure one D.

    Args:
        num_domains: D.
        size: Of the model.
        settings: Rows, candidates and interval.
        steps: Training steps to time.
        plain_domains: Domains of the plain search to time; 0 leaves it out.
    """
    torch.manual_seed(0)
    model = bench_model(num_domains, size)
    rules = settings.tuning
    held = max(rules.steps, rules.eval_batches) * rules.rows
    source = HeldRows(random_rows(bench_schema(num_domains), [held] * num_domains, 1))
    batch = random_rows(bench_schema(num_domains), [BATCH_ROWS[size]], 2)
    batch.inputs.domain.random_(0, num_domains, generator=torch.Generator().manual_seed(0))
    step = step_seconds(model, batch, steps=steps)
    first = settings.schedule.at(1)

    def update(mode: Literal["cheap", "plain"], count: int) -> float:
        search = MaskSearch(model=model, tuning=source, real=source, rules=rules, mode=mode, seed=0)
        started = time.process_time()
        search(1, first, range(count), {})
        return time.process_time() - started

    update("cheap", min(8, num_domains))  # once for warm caches
    cheap = update("cheap", num_domains)
    interval_batches = settings.interval_steps(BATCH_ROWS[size])
    interval = step * interval_batches
    result: dict[str, Any] = {
        "num_domains": num_domains,
        "model": size,
        "dense_parameters": sum(p.numel() for p in model.dense_parameters()),
        "candidates": first.num_candidates,
        "rows_per_batch": rules.rows,
        "tuning_steps": rules.steps,
        "eval_batches": rules.eval_batches,
        "train_batch_rows": BATCH_ROWS[size],
        "train_step_s": step,
        "interval_batches": interval_batches,
        "interval_s": interval,
        "update_s": cheap,
        "overhead_ratio": cheap / interval,
        "interval_for_a_tenth": int(np.ceil(cheap / step / 0.1)),
    }
    if plain_domains:
        plain = update("plain", plain_domains) / plain_domains * num_domains
        result |= {"plain_update_s": plain, "plain_over_cheap": plain / cheap}
    return result


def main(arguments: list[str] | None = None) -> None:
    """Run all cases and write the json."""
    defaults = MaskConfig()
    parser = argparse.ArgumentParser(description="Cost of mask updates against training.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--domains", type=int, nargs="+", default=[43, 300])
    parser.add_argument("--sizes", nargs="+", choices=list(BATCH_ROWS), default=list(BATCH_ROWS))
    parser.add_argument("--rows", type=int, default=defaults.rows, help="rows of a tuning or scoring batch")
    parser.add_argument("--interval", type=int, help="batches; default: as MaskConfig has it")
    parser.add_argument("--steps", type=int, default=20, help="training steps to time")
    parser.add_argument("--plain-domains", type=int, default=1, help="domains of the plain search to time")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    settings = MaskConfig(rows=given.rows, update_interval=given.interval or defaults.update_interval)
    result = {
        "torch": torch.__version__,
        "threads": given.threads,
        "cases": [
            run_case(domains, size, settings=settings, steps=given.steps, plain_domains=given.plain_domains)
            for size in given.sizes
            for domains in given.domains
        ],
    }
    given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
