"""One rank of several, for tests: `python -m tests.support.rank_worker ARGUMENTS.json`.

Started by `ranks.launch`. Works through the jobs that the arguments name and leaves `JOB-RANK.json` beside
them.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.support.models import fresh_model, random_batch
from tests.support.runs import Dying, KillError
from tests.support.schemas import full_schema
from training.config import load_config
from training.data.dataset import Batch
from training.data.prepared import PreparedDataset
from training.engine import run as run_module
from training.engine.checkpoint import weights_digest
from training.engine.distributed import RankGroup, joined
from training.engine.errors import EngineError
from training.engine.fit import run_training
from training.engine.loop import TrainLoop
from training.engine.shared_steps import SharedSteps
from training.engine.steps import LocalSteps
from training.models.base import CtrModel, TensorBatch
from training.models.embedding import EmbeddingBank
from training.track import Quiet

CPU = torch.device("cpu")
SCHEMA = full_schema()


def without_draws(model: CtrModel) -> CtrModel:
    """The model with every random draw of training switched off."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, EmbeddingBank):
            module.dropout = module.unknown_rate = 0.0
    model.inputs.domain_unknown_rate = 0.0
    return model


def labelled(num_rows: int, *, seed: int) -> Batch:
    """B rows of the test schema with labels and uneven weights."""
    rows = random_batch(SCHEMA, num_rows, seed=seed)
    random = np.random.default_rng(seed)
    return Batch(
        **{f.name: getattr(rows, f.name).numpy() for f in fields(TensorBatch)},
        label=random.integers(0, 2, num_rows).astype(np.float32),
        weight=random.uniform(0.2, 3.0, num_rows).astype(np.float32),
        user_code=np.arange(num_rows, dtype=np.int32),
        true_probability=np.full(num_rows, np.nan, np.float32),
    )


def rows_of(batch: Batch, place: slice) -> Batch:
    """Some rows of a batch."""
    return Batch(**{f.name: getattr(batch, f.name)[place] for f in fields(Batch)})


def gradients(model: CtrModel) -> dict[str, torch.Tensor]:
    """Dense copies of all gradients; zeros where there is none."""
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.to_dense().clone()
        for name, p in model.named_parameters()
    }


def steps_job(group: RankGroup, *, models: list[str]) -> dict[str, Any]:
    """Gradients, losses and buffers of two steps of some models, against one process on all rows."""
    told: dict[str, Any] = {}
    for name in models:
        torch.manual_seed(0)
        alone = without_draws(fresh_model(name, SCHEMA)).train()
        shared = copy.deepcopy(alone)
        if not group.is_first:  # the first rank's weights are the ones that count
            with torch.no_grad():
                for parameter in shared.parameters():
                    parameter.add_(1.0)
        local = LocalSteps(precision="fp32", device=CPU)
        steps = SharedSteps(shared, group=group, precision="fp32", device=CPU)
        worst = {"gradient": 0.0, "loss": 0.0, "buffer": 0.0, "rows": 0}
        same: list[str] = []
        # Rank 0 takes so many of so many rows: an uneven share, and none at all.
        for number, (total, first) in enumerate([(33, 12), (9, 0)]):
            batch = labelled(total, seed=number)
            mine = rows_of(batch, slice(0, first) if group.is_first else slice(first, total))
            alone.zero_grad(set_to_none=True)
            shared.zero_grad(set_to_none=True)
            local.num_rows(batch)
            expected = local.backward(batch, alone)
            worst["rows"] += steps.num_rows(mine)
            found = steps.backward(mine, shared)
            wanted, got = gradients(alone), gradients(shared)
            worst["gradient"] = max(
                worst["gradient"], *((wanted[n] - got[n]).abs().max().item() for n in wanted)
            )
            worst["loss"] = max(
                worst["loss"], abs(expected.rows - found.rows), abs(expected.total - found.total)
            )
            same.append(weights_digest(got))
        for buffer, value in alone.named_buffers():
            gap = (value.double() - shared.get_buffer(buffer).double()).abs()
            worst["buffer"] = max(worst["buffer"], gap.max().item() if gap.numel() else 0.0)
        told[name] = worst | {"digests": [*same, weights_digest(dict(shared.named_buffers()))]}
    return told


def run_job(
    group: RankGroup,
    *,
    config: str,
    prepared: str,
    out: str,
    overrides: list[str],
    resume: bool = False,
    killed_at: int | None = None,
) -> dict[str, Any]:
    """A run, killed after so many steps or whole; tells what this rank ends with."""
    made: list[TrainLoop] = []
    build = run_module.build_loop

    def keeping(*arguments: Any, **options: Any) -> TrainLoop:
        made.append(build(*arguments, **options))
        return made[-1]

    run_module.build_loop = keeping
    try:
        result = run_training(
            load_config(Path(config), overrides),
            PreparedDataset.open(Path(prepared)),
            Path(out),
            resume=resume,
            watcher=Quiet() if killed_at is None else Dying(killed_at),
            group=group,
        )
    except KillError:
        return {"killed": killed_at}
    finally:
        run_module.build_loop = build
    loop = made[-1]
    optimisers = [
        {f"{number}.{name}": value for number, held in state["state"].items() for name, value in held.items()}
        for state in loop._optimisers.state_dict()
    ]
    return {
        "weights": weights_digest(loop.model.state_dict()),
        "best": result.metrics["digests"]["weights"],
        "optimisers": [
            weights_digest({n: v for n, v in held.items() if isinstance(v, torch.Tensor)})
            for held in optimisers
        ],
        "hook": repr(loop._hook.state_dict()),
        "steps": loop.position.step,
        "rows": loop.position.rows,
        "draw": torch.rand(1).item(),
        "test": result.metrics["test"]["total_auc"],
    }


def failing_job(group: RankGroup) -> dict[str, Any]:
    """Work that fails on the first rank."""
    try:
        group.on_first(lambda: int("no number"))
    except (ValueError, EngineError) as error:
        return {"said": f"{type(error).__name__}: {error}"}
    return {"said": "nothing"}


JOBS: dict[str, Callable[..., dict[str, Any]]] = {
    "steps": steps_job,
    "run": run_job,
    "failing": failing_job,
}


def main(arguments: Path) -> None:
    """Work through the jobs."""
    torch.set_num_threads(1)
    with joined(device="cpu", timeout_s=120) as group:
        for name, job in json.loads(arguments.read_text()).items():
            told = JOBS[job["job"]](group, **job.get("with", {}))
            (arguments.parent / f"{name}-{group.rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
