"""The loop on a two-weight model: loss, best weights, early stop, divergence, exact resume."""

import math
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from training.data.dataset import Batch
from training.engine.average import WeightAverage
from training.engine.checkpoint import CheckpointFile, weights_digest
from training.engine.errors import DivergedError, EngineError
from training.engine.evaluate import predict
from training.engine.loop import Plan, TrainLoop
from training.engine.loss import weighted_bce
from training.engine.monitor import EarlyStop
from training.engine.optim import Schedule, build_optimisers
from training.engine.seed import seed_everything
from training.models.base import ModelOutput, TableGroup
from training.track import Quiet, RunLog, read_log

CPU = torch.device("cpu")
NUM_BATCHES = 6


class TinyModel(nn.Module):
    """logit = table[id] . w with dropout, so that resuming needs the random state too."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(10, 4, sparse=True)
        self.dense = nn.Linear(4, 1)
        self.dropout = nn.Dropout(0.3)

    def forward(self, batch):
        vectors = self.dropout(self.table(batch.item_ints[:, 0]))
        return ModelOutput(self.dense(vectors).squeeze(1), vectors.new_zeros(()))

    def tables(self):
        return [TableGroup("t", [self.table.weight], 1.0)]

    def dense_parameters(self):
        return list(self.dense.parameters())


def make_batch(ids, labels, weights=None):
    n = len(ids)
    none_i, none_f = np.zeros((n, 0), np.int32), np.zeros((n, 0), np.float32)
    return Batch(
        user_ints=none_i,
        user_floats=none_f,
        context_ints=none_i,
        context_floats=none_f,
        item_ints=np.array(ids, np.int32)[:, None],
        item_floats=none_f,
        pairs=none_f,
        domain=np.zeros(n, np.int32),
        label=np.array(labels, np.float32),
        weight=np.ones(n, np.float32) if weights is None else np.array(weights, np.float32),
        user_code=np.arange(n, dtype=np.int32),
        true_probability=np.full(n, np.nan, np.float32),
    )


def read(epoch, start) -> Iterator[Batch]:
    for number in range(start, NUM_BATCHES):
        rng = np.random.default_rng([epoch, number])
        ids = rng.integers(0, 10, 32)
        yield make_batch(ids, (rng.random(32) < ids / 10).astype(int))


def scripted(values):
    """A validation whose total AUC follows a script."""
    left = iter(values)
    return lambda: SimpleNamespace(
        total_auc=next(left), domain_auc=0.5, gauc=0.5, logloss=0.5, ece=0.1, rows=9, positives=3
    )


class Harness:
    """A loop over `read` in a folder."""

    def __init__(self, folder, values, *, patience=99, reader=read, average=None, lr=0.05, **plan):
        seed_everything(3)
        model = TinyModel()
        self.log = RunLog(folder / "log.jsonl", keep=True)
        self.checkpoint = CheckpointFile(folder / "last.pt", identity={})
        settings = {
            "epochs": 2,
            "batches_per_epoch": NUM_BATCHES,
            "evaluations_per_epoch": 2,
            "checkpoint_every": 4,
        }
        self.loop = TrainLoop(
            model=model,
            optimisers=build_optimisers(
                dense=model.dense_parameters(),
                tables=model.tables(),
                dense_lr=lr,
                weight_decay=0.01,
                table_method="sparse_adam",
                table_lr=lr,
                schedule=Schedule(kind="linear_decay", warmup_steps=2, total_steps=12),
            ),
            read=reader,
            validate=scripted(values),
            stop=EarlyStop(monitor="total_auc", patience=patience),
            plan=Plan(**(settings | plan)),
            checkpoint=self.checkpoint,
            log=self.log,
            watcher=Quiet(),
            device=CPU,
            average=None if average is None else WeightAverage(model.dense_parameters(), decay=average),
        )
        self.model = model


@pytest.fixture
def make():
    made = []

    def factory(folder, *arguments, **options):
        folder.mkdir(exist_ok=True)
        made.append(Harness(folder, *arguments, **options))
        return made[-1]

    yield factory
    for harness in made:
        harness.log.close()
    torch.use_deterministic_algorithms(False)


class _KillError(BaseException):
    """Stands for a kill."""


def test_weighted_loss_by_hand():
    logits, labels = torch.tensor([0.0, math.log(3.0)]), torch.tensor([1.0, 0.0])
    # losses ln 2 and ln 4; weights 3 and 1: (3 ln 2 + 2 ln 2) / 4
    value = weighted_bce(logits, labels, torch.tensor([3.0, 1.0]))
    assert value.item() == pytest.approx(5 / 4 * math.log(2))
    assert weighted_bce(logits, labels, torch.zeros(2)).item() == 0.0


@pytest.mark.parametrize(
    ("batches", "count", "expected"), [(10, 4, {2, 5, 8, 10}), (3, 9, {1, 2, 3}), (7, 1, {7})]
)
def test_validation_is_spread_over_the_epoch_and_ends_it(batches, count, expected):
    plan = Plan(epochs=1, batches_per_epoch=batches, evaluations_per_epoch=count)
    assert plan.evaluation_batches == expected


def test_best_weights_come_back_when_training_runs_to_its_end(make, tmp_path):
    seen = []
    harness = make(tmp_path, [0.6, 0.9, 0.7, 0.8])
    script = harness.loop._validate
    harness.loop._validate = lambda: (seen.append(weights_digest(harness.model.state_dict())), script())[1]
    harness.loop.run()
    assert harness.loop.position.step == 12
    assert weights_digest(harness.model.state_dict()) == seen[1]
    assert len(set(seen)) == 4
    assert (harness.loop.stop.best_step, harness.loop.stop.best_epoch) == (6, 1.0)


def test_patience_stops_training_with_the_best_weights(make, tmp_path):
    harness = make(tmp_path, [0.9, 0.8, 0.7], patience=2)
    harness.loop.run()
    assert harness.loop.position.step == 9
    assert harness.loop.stop.best_step == 3
    events = [e["event"] for e in read_log(tmp_path / "log.jsonl")]
    assert events == ["evaluate", "evaluate", "evaluate", "early_stop", "finish"]


@pytest.mark.parametrize("average", [None, 0.9])
@pytest.mark.parametrize("killed_at", [2, 4, 5, 9, 12])
def test_a_cut_run_goes_on_with_the_same_bits_and_log(make, tmp_path, killed_at, average):
    values = [0.6, 0.9, 0.7, 0.8]
    whole = make(tmp_path / "whole", values, average=average, log_every=2)
    whole.loop.run()
    steps = 0

    def dying(epoch, start):
        nonlocal steps
        for batch in read(epoch, start):
            if steps == killed_at:
                raise _KillError
            steps += 1
            yield batch

    cut = make(tmp_path / "cut", values, average=average, log_every=2, reader=dying)
    if killed_at < 12:
        with pytest.raises(_KillError):
            cut.loop.run()
    else:
        cut.loop.run()
    cut.log.close()
    found = cut.checkpoint.exists()
    position = cut.checkpoint.load()["position"] if found else {"epoch": 0, "batch": 0}
    done = position["epoch"] * NUM_BATCHES + position["batch"]
    assert done >= killed_at - 4  # a checkpoint every four batches
    again = make(tmp_path / "cut", values[done // 3 :], average=average, log_every=2)
    if found:
        again.loop.resume()
    else:
        again.log.truncate(0)
    again.loop.run()
    assert weights_digest(again.model.state_dict()) == weights_digest(whole.model.state_dict())
    logs = [
        [
            {k: v for k, v in e.items() if k != "time_s"}
            for e in read_log(tmp_path / name / "log.jsonl")
            if e["event"] != "resume"
        ]
        for name in ("whole", "cut")
    ]
    assert logs[0] == logs[1]


def test_the_average_is_validated_and_kept(make, tmp_path):
    harness = make(tmp_path, [0.6, 0.9, 0.7, 0.8], average=0.9)
    harness.loop.run()
    plain = make(tmp_path, [0.6, 0.9, 0.7, 0.8])
    plain.loop.run()
    assert torch.equal(harness.model.table.weight, plain.model.table.weight)
    assert not torch.equal(harness.model.dense.weight, plain.model.dense.weight)


def test_a_loss_that_is_no_number_stops_the_run_and_says_where(make, tmp_path):
    def poisoned(epoch, start):
        for number, batch in enumerate(read(epoch, start)):
            yield make_batch([1, 2], [0, 1], [np.nan, 1.0]) if number == 2 else batch

    harness = make(tmp_path, [0.6] * 4, reader=poisoned)
    with pytest.raises(
        DivergedError, match=r"the loss is nan at step 3 \(epoch 0, batch 3\); lower optimiser"
    ):
        harness.loop.run()


def test_a_batch_of_one_row_is_passed_over(make, tmp_path):
    def short(epoch, start):
        yield make_batch([1], [1])
        yield from read(epoch, 1)

    harness = make(tmp_path, [0.6, 0.7], reader=short, epochs=1)
    harness.loop.run()
    assert harness.loop.position.step == NUM_BATCHES - 1


def test_a_reader_that_gives_too_few_batches_is_refused(make, tmp_path):
    harness = make(tmp_path, [0.6] * 4, reader=lambda epoch, start: list(read(epoch, start))[:-1])
    with pytest.raises(EngineError, match="epoch 0 gave 5 batches, planned were 6"):
        harness.loop.run()


def test_bf16_trains_and_keeps_float32_weights(make, tmp_path):
    harness = make(tmp_path, [0.6, 0.7], epochs=1, precision="bf16")
    harness.loop.run()
    assert {p.dtype for p in harness.model.parameters()} == {torch.float32}


def test_predict_keeps_order_and_mode_and_draws_nothing():
    seed_everything(0)
    model = TinyModel().train()
    before = torch.get_rng_state()
    told = []
    batches = [make_batch([1, 2], [0, 1]), make_batch([3], [1])]
    rows = predict(model, batches, device=CPU, on_rows=told.append)
    assert model.training
    assert torch.equal(before, torch.get_rng_state())
    assert told == [2, 1]
    with torch.no_grad():
        expected = [model.dense(model.table.weight[i]).item() for i in (1, 2, 3)]
    np.testing.assert_allclose(rows.logit, expected, rtol=1e-6)
    assert rows.label.tolist() == [0, 1, 1]
    assert not rows.knows_truth


def test_predict_refuses_nothing_and_diverged_weights():
    model = TinyModel()
    with pytest.raises(EngineError, match="no rows to score"):
        predict(model, [], device=CPU)
    with torch.no_grad():
        model.dense.bias.fill_(math.nan)
    with pytest.raises(EngineError, match="gives row 0 the logit nan"):
        predict(model, [make_batch([1], [1])], device=CPU)
