"""Finding clusters: a grouping at once, or warm-up and updates of a model that is then thrown away.

    config.yaml, schema.json   as in a run folder
    log.jsonl                  one event a line, `clusters` for every update
    checkpoint/last.pt         everything needed to go on
    choice.json                evidence for the number of clusters, where it was `auto`
    choice/                    checkpoint and log of the warm-up that the choice stands on
    state.npz                  the clustering state, where there was a lookahead
    matrices.npz               mi, mh, mc (D, D), mt (R, D); nan where a domain was not measured
    assignment.json            the result; written last

Invariant: a folder with `assignment.json` is finished; a killed run that goes on ends with the same clusters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from training.clustering import lookahead
from training.clustering.affinity import LookaheadGram, LookaheadLosses, LookaheadPlan
from training.clustering.archive import save_state
from training.clustering.assignment import (
    ASSIGNMENT_FILE,
    MATRICES_FILE,
    ClusterAssignment,
    load_assignment,
    make_assignment,
    save_assignment,
)
from training.clustering.baselines import (
    CdcGroups,
    Grouping,
    ManualGroups,
    OneCluster,
    OnePerDomain,
    RandomGroups,
    TagGroups,
)
from training.clustering.cdc import CdcSteps, Lookahead
from training.clustering.choice_file import CHOICE_FILE, save_choice, saved_choice
from training.clustering.choose_k import choose_num_clusters
from training.clustering.errors import AssignmentError, RulesError
from training.clustering.gain import Matrices
from training.clustering.interval import lookahead_size, steps_between_updates
from training.clustering.lookahead_model import LabelledRows, Serving
from training.clustering.lookahead_step import SGD, adaptive_preconditioner
from training.clustering.measured import RowPool
from training.clustering.rules import default_num_clusters
from training.clustering.state import CdcState, start
from training.config import RunConfig
from training.data.dataset import RowReader
from training.data.prepared import PreparedDataset
from training.engine.artefacts import RunFolder
from training.engine.checkpoint import CheckpointFile
from training.engine.distributed import ALONE, RankGroup
from training.engine.files import write_atomically
from training.engine.optim import OptimiserSet
from training.engine.row_view import view
from training.engine.run import build_loop, claim, open_log, run_identity, run_loop, settle
from training.models.base import CtrModel
from training.models.build import build_model
from training.models.config import TowerConfig
from training.track import Quiet, RunLog, Watcher

STATE_FILE = "state.npz"

LookaheadMaker = Callable[[RunConfig, CtrModel, OptimiserSet, int], Lookahead]
"""Makes the lookahead of a model that is trained by these optimisers for so many steps between updates."""


def model_lookahead(config: RunConfig, model: CtrModel, optimisers: OptimiserSet, interval: int) -> Lookahead:
    """The lookahead on the model itself, with the step that the config asks for."""
    settings = config.clustering

    def look(
        plan: LookaheadPlan, steps: LabelledRows, evaluation: LabelledRows, serving: Serving
    ) -> LookaheadLosses | LookaheadGram:
        adaptive = settings.step_method == "adaptive"
        return lookahead.measure(
            model,
            lookahead.LookaheadRows(train=steps, evaluation=evaluation),
            plan,
            serving=serving,
            step_size=settings.step_size or config.optimiser.dense.lr,
            interval_rows=interval * config.training.batch_size,
            mode=settings.mode,
            preconditioner=adaptive_preconditioner(model, optimisers.optimisers) if adaptive else SGD,
            frozen_above=settings.frozen_rows,
            max_share=settings.max_overhead_ratio,
        ).delivered

    return look


@dataclass(frozen=True)
class Job:
    """What every step of finding clusters needs.

    Attributes:
        config: Of the run.
        prepared: The data.
        make_lookahead: Makes the lookahead.
        resume: Whether to go on from what the folder holds.
        watcher: Shows progress.
        group: Whose ranks train the models that clusters are measured on.
    """

    config: RunConfig
    prepared: PreparedDataset
    make_lookahead: LookaheadMaker = model_lookahead
    resume: bool = False
    watcher: Watcher = Quiet()  # noqa: RUF009 (it holds nothing)
    group: RankGroup = ALONE

    def rows(self) -> RowPool:
        """Held-out rows and the pool of the steps."""
        settings = self.config.clustering
        self.watcher.say("reading rows for the lookahead")
        return RowPool(
            self.prepared,
            step_rows=settings.step_rows,
            eval_rows=settings.eval_rows,
            held_out_ratio=settings.held_out_ratio,
            min_train_rows=settings.min_train_rows,
            min_eval_rows=settings.min_eval_rows,
            seed=self.config.training.seed,
        )

    def trained_on(self, rows: RowPool) -> PreparedDataset:
        """The data without the rows that losses are measured on."""
        if self.config.clustering.train_on_held_out:
            return self.prepared
        return view(self.prepared, {"train": ~rows.held_out})


def find_clusters(job: Job, out: Path) -> ClusterAssignment:
    """Fill a folder with an assignment, or read the one that the config names.

    Raises:
        ClusteringError: settings that cannot work, or a folder of another run.
        EngineError: the folder is taken, or training diverged.
    """
    if (known := job.group.on_first(lambda: _unmeasured(job, out))) is not None:
        return known
    rows = job.rows()
    num_clusters = choose_clusters(job, out, rows)
    updates = job.config.clustering.cluster_updates
    state = measure(job, out, rows, num_clusters=num_clusters, updates=updates)
    return job.group.on_first(lambda: save_clusters(job, out, rows, state))


def _unmeasured(job: Job, out: Path) -> ClusterAssignment | None:
    """The assignment where no effects are to be measured for it; else the folder is claimed for that."""
    settings = job.config.clustering
    if settings.assignment is not None:
        return _given(job, Path(settings.assignment), out)
    if job.resume and (out / ASSIGNMENT_FILE).is_file():
        return require_same(load_assignment(out), job, out)
    claim(RunFolder(out), job.config, job.prepared, resume=job.resume)
    if settings.needs_lookahead:
        return None
    assignment = _grouped(job)
    save_assignment(out, assignment)
    return assignment


def _given(job: Job, path: Path, out: Path) -> ClusterAssignment:
    """Read an assignment found before, and copy it with all that speaks of it.

    Raises:
        AssignmentError: it is not one, or knows no domain of the data.
    """
    if not path.is_dir() and path.name != ASSIGNMENT_FILE:
        raise AssignmentError(
            f"clustering.assignment {path}: expected {ASSIGNMENT_FILE} or the folder that holds it"
        )
    folder = path if path.is_dir() else path.parent
    assignment = load_assignment(folder)
    names = set(job.prepared.schema.domains)
    if not names & set(assignment.domains):
        raise AssignmentError(
            f"{folder / ASSIGNMENT_FILE}: knows none of the {len(names)} domains of the data"
        )
    if new := sorted(names - set(assignment.domains)):
        job.watcher.say(
            f"{len(new)} domains are not in the assignment and go to cluster {assignment.default_cluster}: "
            f"{', '.join(new)}"
        )
    for name in (MATRICES_FILE, STATE_FILE, CHOICE_FILE):
        if (folder / name).is_file():
            content = (folder / name).read_bytes()
            write_atomically(out / name, partial(Path.write_bytes, data=content))
    save_assignment(out, assignment)
    return assignment


def require_same(assignment: ClusterAssignment, job: Job, out: Path) -> ClusterAssignment:
    """Refuse to go on from the clusters of another config or data set.

    Raises:
        AssignmentError: they are.
    """
    for name, found, wanted in (
        ("config", assignment.config_digest, job.config.digest),
        ("data", assignment.data_digest, job.prepared.data_digest),
    ):
        if found != wanted:
            raise AssignmentError(
                f"{out / ASSIGNMENT_FILE}: is of another run: {name} is {found[:12]!r} there and "
                f"{wanted[:12]!r} here"
            )
    return assignment


def save_clusters(job: Job, out: Path, rows: RowPool, state: CdcState) -> ClusterAssignment:
    """Write state, matrices and, last, the assignment.

    Raises:
        StateError: no update took place.
    """
    settings = job.config.clustering
    grouping: Grouping = CdcGroups(state)
    if settings.method == "tag":
        grouping = TagGroups(
            state.require_clusters().mi, state.rules.num_clusters, seed=job.config.training.seed
        )
    names = np.array(rows.domains.names, dtype=object)[rows.domains.ids]
    assignment = rows.domains.assignment(
        grouping.group(tuple(names)),
        state,
        data_digest=job.prepared.data_digest,
        config_digest=job.config.digest,
    )
    save_state(state, out / STATE_FILE)
    save_assignment(out, assignment, rows.domains.matrices(state))
    return assignment


def choose_clusters(job: Job, out: Path, rows: RowPool) -> int:
    """K as the config gives it, or by a scan after a warm-up with one tower; writes `choice.json`."""
    wanted = job.config.clustering.num_clusters
    if wanted != "auto":
        return wanted
    path = out / CHOICE_FILE
    identity = {"config": job.config.digest, "data": job.prepared.data_digest}
    known = job.group.on_first(lambda: saved_choice(path, identity=identity) if job.resume else None)
    if known is not None:
        return known
    job.watcher.say("choosing the number of clusters")
    state = measure(job, out / "choice", rows, num_clusters=1, updates=1)
    measured = state.require_clusters()

    def choose() -> int:
        choice = choose_num_clusters(
            Matrices(mi=measured.mi, mh=measured.mh, mc=measured.mc, shares=state.shares),
            measured.mt,
            distance=job.config.clustering.distance,
            rules=state.rules.source,
            seed=job.config.training.seed,
        )
        save_choice(path, choice, identity=identity)
        job.watcher.say(f"{choice.num_clusters} clusters")
        return choice.num_clusters

    return job.group.on_first(choose)


def measure(job: Job, folder: Path, rows: RowPool, *, num_clusters: int, updates: int) -> CdcState:
    """Train through warm-up and so many updates; gives the state after the last."""
    config, settings = job.config, job.config.clustering
    run = RunFolder(folder)
    data = job.trained_on(rows)
    batches = RowReader(data, "train").num_batches(config.training.batch_size)
    steps = settings.warmup_batches + (updates - 1) * interval_of(job, rows, num_clusters) + 1
    identity = run_identity(config, job.prepared) | {"num_clusters": str(num_clusters)}
    checkpoint = CheckpointFile(run.checkpoint, identity=identity)
    going_on = job.group.on_first(lambda: job.resume and checkpoint.exists())
    device = settle(config, job.group)
    made: list[CdcSteps] = []

    def make_hook(model: CtrModel, optimisers: OptimiserSet, log: RunLog, watcher: Watcher) -> CdcSteps:
        hook = cdc_steps(job, rows, num_clusters, stop_after=updates)(model, optimisers, log, watcher)
        made.append(hook)
        return hook

    with open_log(run.log, keep=going_on, group=job.group) as log:
        loop = build_loop(
            config.model_copy(update={"model": with_cluster_towers(config)}),
            job.prepared,
            trained_on=data,
            # One more than needed: a batch of one row is passed over.
            epochs=math.ceil(steps / batches) + 1,
            towers=first_towers(job.prepared.schema.num_domains, num_clusters),
            make_hook=make_hook,
            checkpoint=checkpoint,
            log=log,
            watcher=job.watcher,
            device=device,
            group=job.group,
        )
        run_loop(loop, going_on=going_on, watcher=job.watcher)
    return made[0].state


def cdc_steps(
    job: Job, rows: RowPool, num_clusters: int, *, stop_after: int | None = None
) -> Callable[[CtrModel, OptimiserSet, RunLog, Watcher], CdcSteps]:
    """Maker of the hook of a run, see `CdcSteps`."""
    settings, seed = job.config.clustering, job.config.training.seed
    state = start(rows.domains.train_rows[rows.domains.ids], settings.rules(num_clusters, seed=seed))

    interval = interval_of(job, rows, num_clusters)

    def make(model: CtrModel, optimisers: OptimiserSet, log: RunLog, watcher: Watcher) -> CdcSteps:
        return CdcSteps(
            model,
            state=state,
            rows=rows,
            lookahead=job.make_lookahead(job.config, model, optimisers, interval),
            warmup_batches=settings.warmup_batches,
            update_interval=interval,
            max_updates=settings.max_updates,
            stop_after=stop_after,
            log=log,
            watcher=watcher,
        )

    return make


def interval_of(job: Job, rows: RowPool, num_clusters: int) -> int:
    """Steps between updates of a run with so many clusters."""
    towers = first_towers(job.prepared.schema.num_domains, num_clusters)
    config = job.config.model_copy(update={"model": with_cluster_towers(job.config)})
    with torch.device("meta"):  # sizes alone are wanted, and the random state must not move
        model = build_model(config.model, job.prepared.schema, towers)
    return steps_between_updates(
        job.config.clustering,
        lookahead_size(job.config, model, rows),
        batch_size=job.config.training.batch_size,
    )


def first_towers(num_domains: int, num_clusters: int) -> list[int]:
    """(D + 1,) table before the first update: every tower serves someone; nothing is read of it."""
    return [d % num_clusters for d in range(num_domains + 1)]


def with_cluster_towers(config: RunConfig) -> TowerConfig:
    """The model of a config with towers by cluster.

    Raises:
        RulesError: it has no towers.
    """
    if not isinstance(config.model, TowerConfig):
        raise RulesError(
            f"model {config.model.type} has no towers; clustering.method {config.clustering.method} needs a "
            "model that has: mmoe, ple, star or pepnet"
        )
    return config.model.model_copy(update={"towers": "clusters"})


def _grouped(job: Job) -> ClusterAssignment:
    """The assignment of a method that reads no gradients."""
    names = job.prepared.schema.domains
    counts = job.prepared.domain_rows["train"]
    groups = _grouping(job.config, len(names)).group(names)
    rows = np.bincount(groups.labels, weights=[counts.get(name, 0) for name in names])
    return make_assignment(
        groups,
        names,
        default_cluster=int(rows.argmax()),
        data_digest=job.prepared.data_digest,
        config_digest=job.config.digest,
    )


def _grouping(config: RunConfig, num_domains: int) -> Grouping:
    settings = config.clustering
    if settings.method == "manual":
        if settings.groups is None:
            raise RulesError("clustering.method manual needs clustering.groups, a file of lists of names")
        return ManualGroups(Path(settings.groups))
    if settings.method == "random":
        wanted = settings.num_clusters
        count = default_num_clusters(num_domains) if wanted == "auto" else wanted
        return RandomGroups(count, seed=config.training.seed)
    return OneCluster() if settings.method == "one_cluster" else OnePerDomain()
