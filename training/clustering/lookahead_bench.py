"""What lookaheads cost: `python -m training.clustering.lookahead_bench --out lookahead_bench.json`.

Builds a model of the size of `configs/kuairand_tag_mmoe.yaml` over random rows and measures, in one process:
a training interval, mode exact and the literal scheme at D = 43, mode first_order at D = 300. Writes one
json. Seconds are processor seconds of this process, so that neighbours on the machine do not count; with
one thread they are wall seconds of an idle machine. Reading rows is left out on both sides.

The literal scheme is timed on a few of its sets and scaled to all of them, unless `--all-sets` is given:
once as published (batches of 1024 rows, one batch per step whatever the set) and once on the very rows that
mode exact reads.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from service.contract.layout import entity_layout
from service.contract.schema import (
    CategoricalFeature,
    Entity,
    FeatureSchema,
    HashEncoder,
    NumericFeature,
    SequenceFeature,
    SequenceField,
    StandardiseEncoder,
)
from training.clustering.affinity import LookaheadPlan
from training.clustering.arrays import BoolArray
from training.clustering.lookahead import LookaheadRows, Measured, measure
from training.clustering.lookahead_cost import LookaheadMode
from training.clustering.lookahead_literal import evaluate_domains, step_on_set
from training.clustering.lookahead_model import LabelledRows, undisturbed
from training.clustering.lookahead_step import SGD, FrozenRows
from training.clustering.rules import default_num_clusters
from training.clustering.treatments import default_count, sample_treatments
from training.engine.optim import Schedule, build_optimisers
from training.models.base import CtrModel, TensorBatch
from training.models.build import build_model
from training.models.config import InputConfig, MmoeConfig, TableConfig
from training.models.inputs import id_encoders

BATCH_ROWS = 1024
INTERVAL_BATCHES = 1000
SCHEME_ROWS = 1024
"""Rows of every batch in the literal scheme."""

STEP_SIZE = 0.05


def bench_schema(num_domains: int) -> FeatureSchema:
    """About as wide as KuaiRand-Pure with its histories and statistics."""
    features: list[Any] = [
        SequenceFeature(
            name="history",
            entity=Entity.USER,
            max_len=20,
            fields=(SequenceField(name="item", encoder="item_id"),),
        ),
        CategoricalFeature(name="item_id", entity=Entity.ITEM, encoder="item_id", is_id=True),
        NumericFeature(name="rates", entity=Entity.ITEM, encoder="plain", width=32),
        NumericFeature(name="habits", entity=Entity.USER, encoder="plain", width=8),
    ]
    features += [
        CategoricalFeature(name=f"{entity}_{i}", entity=entity, encoder="code")
        for entity, count in ((Entity.USER, 24), (Entity.ITEM, 6), (Entity.CONTEXT, 3))
        for i in range(count)
    ]
    return FeatureSchema(
        name="bench",
        domains=tuple(f"d{i}" for i in range(num_domains)),
        encoders={
            "item_id": HashEncoder(num_buckets=7_600),
            "code": HashEncoder(num_buckets=50),
            "plain": StandardiseEncoder(),
        },
        features=tuple(features),
    )


def bench_model(schema: FeatureSchema) -> CtrModel:
    """MMoE of 4 experts 64-32 and towers of 16, one per cluster."""
    tables = (TableConfig(encoders=("item_id",), dim=16), TableConfig(dim=8))
    config = MmoeConfig(
        inputs=InputConfig(tables=tables, domain_dim=8, pooling="sqrt"),
        num_experts=4,
        expert_widths=(64, 32),
        tower_widths=(16,),
        gate_input="domain",
        dropout=0.2,
        batch_norm=False,
        towers="clusters",
    )
    clusters = default_num_clusters(schema.num_domains)
    return build_model(config, schema, [d % clusters for d in range(schema.num_domains + 1)])


def random_rows(schema: FeatureSchema, sizes: list[int], seed: int) -> LabelledRows:
    """Random rows, ids skewed as u^2 so that some are popular."""
    rng = np.random.default_rng(seed)
    num_rows = sum(sizes)
    values: dict[str, torch.Tensor] = {}
    limits = id_encoders(schema, frozenset())
    for entity in Entity:
        layout = entity_layout(schema, entity)
        ints = np.zeros((num_rows, layout.int_width), dtype=np.int64)
        for slot in layout.slots:
            if slot.block == "int":
                rows = limits[slot.encoder]
                ints[:, slot.columns] = rows * rng.random((num_rows, slot.size)) ** 2
        values[f"{entity}_ints"] = torch.from_numpy(ints)
        floats = rng.normal(size=(num_rows, layout.float_width)).astype(np.float32)
        values[f"{entity}_floats"] = torch.from_numpy(floats)
    domain = torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes))
    batch = TensorBatch(**values, pairs=torch.zeros(num_rows, 0), domain=domain)
    labels = torch.from_numpy(rng.integers(0, 2, num_rows).astype(np.float32))
    return LabelledRows(batch, labels, np.array(sizes))


def bench_plan(num_domains: int, seed: int = 0) -> LookaheadPlan:
    """A plan of a later update: source sets of about D / K domains, default treatments."""
    rng = np.random.default_rng(seed)
    clusters = default_num_clusters(num_domains)
    sources = rng.random((clusters, num_domains)) < 1.5 / clusters
    companions: BoolArray = sources[np.arange(num_domains) % clusters] | np.eye(num_domains, dtype=bool)
    shares = np.full(num_domains, 1 / num_domains)
    treatments = sample_treatments(rng, shares, count=default_count(num_domains))
    return LookaheadPlan(companions, treatments)


def interval_seconds(model: CtrModel, rows: LabelledRows, *, steps: int) -> float:
    """Training of one interval: forward, backward, AdamW and SparseAdam, `steps` batches scaled up."""
    twin = copy.deepcopy(model).train()
    schedule = Schedule(kind="constant", warmup_steps=0, total_steps=1)
    optimisers = build_optimisers(
        dense=twin.dense_parameters(),
        tables=twin.tables(),
        dense_lr=1e-3,
        weight_decay=1e-5,
        table_method="sparse_adam",
        table_lr=1e-3,
        schedule=schedule,
    )

    def step() -> None:
        out = twin(rows.inputs)
        loss = functional.binary_cross_entropy_with_logits(out.logits, rows.labels) + out.penalty
        optimisers.zero_grad()
        loss.backward()
        optimisers.step(0)

    return timed(step, repeats=steps) * INTERVAL_BATCHES


def timed(call: Callable[[], object], *, repeats: int) -> float:
    """Mean seconds of a call, after one that does not count."""
    call()
    started = time.process_time()
    for _ in range(repeats):
        call()
    return (time.process_time() - started) / repeats


@dataclass(frozen=True)
class Literal:
    """Seconds of the literal scheme: measured sets, and all of them."""

    sets_measured: int
    sets: int
    seconds: float


def literal_scheme(
    model: CtrModel, rows: LookaheadRows, sets: BoolArray, *, one_batch: bool, count: int
) -> Literal:
    """Copy, step and evaluate `count` sets spread evenly; scaled to all sets.

    Args:
        model: In evaluation mode.
        rows: To step and measure on.
        sets: (n, D) every set of the plan, repeats included.
        one_batch: Whether a step reads one batch only, whatever the set.
        count: Sets to time.
    """
    some = sets[np.unique(np.linspace(0, len(sets) - 1, count).astype(int))]
    started = time.process_time()
    for members in some:
        twin = copy.deepcopy(model)
        stepped = np.arange(len(members)) == members.argmax() if one_batch else members
        step_on_set(
            twin,
            rows.train,
            stepped,
            step_size=STEP_SIZE,
            serving="own",
            preconditioner=SGD,
            frozen=FrozenRows(),
        )
        evaluate_domains(twin, rows.evaluation, "own")
    seconds = (time.process_time() - started) * len(sets) / len(some)
    return Literal(len(some), len(sets), seconds)


def run_case(
    num_domains: int,
    mode: LookaheadMode,
    *,
    train: int,
    evaluation: int,
    literal_sets: int,
    steps: int,
) -> dict[str, Any]:
    """Measure one D.

    Args:
        num_domains: D.
        mode: Of the lookahead.
        train: Rows of B_u.
        evaluation: Rows of E_v.
        literal_sets: Sets of the literal scheme to time; 0 leaves it out.
        steps: Training steps to time.
    """
    torch.manual_seed(0)
    schema = bench_schema(num_domains)
    model, plan = bench_model(schema), bench_plan(num_domains)
    rows = LookaheadRows(
        random_rows(schema, [train] * num_domains, 1), random_rows(schema, [evaluation] * num_domains, 2)
    )
    interval = interval_seconds(model, random_rows(schema, [BATCH_ROWS], 3), steps=steps)
    _measured(model, rows, plan, mode)  # once for warm caches
    started = time.process_time()
    found = _measured(model, rows, plan, mode)
    seconds = time.process_time() - started
    result: dict[str, Any] = {
        "num_domains": num_domains,
        "mode": mode,
        "train_rows_per_domain": train,
        "eval_rows_per_domain": evaluation,
        "dense_parameters": sum(p.numel() for p in model.dense_parameters()),
        "input_width": model.inputs.request_width + model.inputs.row_width,
        "num_sets": found.num_sets,
        "interval_batches": INTERVAL_BATCHES,
        "interval_batch_rows": BATCH_ROWS,
        "interval_s": interval,
        "lookahead_s": seconds,
        "share_of_interval": seconds / interval,
        "estimate": asdict(found.estimate),
    }
    if literal_sets:
        result |= _against_literal(model, schema, rows, plan, literal_sets, seconds)
    return result


def _measured(model: CtrModel, rows: LookaheadRows, plan: LookaheadPlan, mode: LookaheadMode) -> Measured:
    return measure(
        model,
        rows,
        plan,
        serving="own",
        step_size=STEP_SIZE,
        interval_rows=BATCH_ROWS * INTERVAL_BATCHES,
        mode=mode,
    )


def _against_literal(
    model: CtrModel,
    schema: FeatureSchema,
    rows: LookaheadRows,
    plan: LookaheadPlan,
    count: int,
    seconds: float,
) -> dict[str, Any]:
    D = plan.num_domains
    clusters = default_num_clusters(D)
    # Spec E counts K joint models, not D, and the base once: (R + 2 D + K + 1) D evaluations.
    scheme_sets = np.concatenate(
        [np.eye(D, dtype=bool), plan.companions[:clusters], plan.others, plan.treatments, plan.others[:1]]
    )
    sizes = [SCHEME_ROWS] * D
    whole = LookaheadRows(random_rows(schema, sizes, 4), random_rows(schema, sizes, 5))
    every = np.concatenate([np.eye(D, dtype=bool), plan.companions, plan.others, plan.treatments])
    with undisturbed(model):
        scheme = literal_scheme(model, whole, scheme_sets, one_batch=True, count=count)
        same = literal_scheme(model, rows, every, one_batch=False, count=count)
    return {
        "literal_scheme": asdict(scheme),
        "literal_scheme_over_lookahead": scheme.seconds / seconds,
        "literal_same_rows": asdict(same),
        "literal_same_rows_over_lookahead": same.seconds / seconds,
    }


def main(arguments: list[str] | None = None) -> None:
    """Run both cases and write the json."""
    parser = argparse.ArgumentParser(description="Cost of lookaheads against training.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--small", type=int, default=43, help="D of mode exact")
    parser.add_argument("--large", type=int, default=300, help="D of mode first_order")
    parser.add_argument("--train", type=int, default=128, help="rows of B_u")
    parser.add_argument("--evaluation", type=int, default=128, help="rows of E_v")
    parser.add_argument("--steps", type=int, default=30, help="training steps to time")
    parser.add_argument("--literal-sets", type=int, default=8)
    parser.add_argument("--all-sets", action="store_true", help="time every set of the literal scheme")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    count = 10**6 if given.all_sets else given.literal_sets
    sizes = {"train": given.train, "evaluation": given.evaluation, "steps": given.steps}
    result = {
        "torch": torch.__version__,
        "threads": given.threads,
        "cases": [
            run_case(given.small, "exact", literal_sets=count, **sizes),
            run_case(given.small, "first_order", literal_sets=0, **sizes),
            run_case(given.large, "first_order", literal_sets=0, **sizes),
        ],
    }
    given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
