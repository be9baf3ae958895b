"""Who a rank is, what it refuses, and what it does alone; several ranks are an integration test."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist
from typer.testing import CliRunner

from training.cli import app
from training.data.dataset import RankShare
from training.engine import distributed
from training.engine.distributed import ALONE, RankGroup, joined, own_gpu, rank_group, refuse_ranks
from training.engine.errors import PeerError, RankError
from training.engine.seed import reseed
from training.engine.shared_hook import HookOnFirst
from training.track import NoLog

TWO = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


def test_torchrun_s_variables_make_a_group_and_their_absence_none():
    assert rank_group({}) is ALONE
    assert rank_group({"WORLD_SIZE": "2"}) is ALONE  # of a job's pods, not of a process that torchrun made
    found = rank_group(TWO | {"TORCHELASTIC_RESTART_COUNT": "3"})
    assert found == RankGroup(rank=1, world_size=2, local_rank=1, restarts=3)
    assert not found.is_first
    assert not found.is_alone
    assert rank_group(TWO).restarts == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"RANK": "2"}, "RANK is 2; allowed with WORLD_SIZE 2: 0 to 1"),
        ({"RANK": "-1"}, "RANK is '-1'; allowed: whole numbers from 0"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'; allowed: whole numbers"),
        ({"LOCAL_RANK": None, "MASTER_PORT": None}, "RANK is set, but not LOCAL_RANK, MASTER_PORT; start"),
    ],
)
def test_other_variables_are_refused(change, said):
    given = {name: value for name, value in (TWO | change).items() if value is not None}
    with pytest.raises(RankError, match=said):
        rank_group(given)


def test_alone_every_exchange_is_the_identity():
    values = torch.tensor([1.0, 2.0])
    assert ALONE.on_first(lambda: 7) == 7
    assert ALONE.gather("own") == ["own"]
    assert ALONE.sum(values) is values
    assert ALONE.all(values).tolist() == [[1.0, 2.0]]
    with joined(device="cpu") as group:
        assert group is ALONE
    with pytest.raises(ZeroDivisionError):
        ALONE.on_first(lambda: 1 // 0)


def test_a_time_limit_of_nothing_is_refused():
    with (
        pytest.raises(RankError, match=r"the group's time limit is 0 s; allowed: more than 0"),
        joined(device="cpu", timeout_s=0),
    ):
        pass


def test_a_group_that_nobody_joins_is_given_up(monkeypatch):
    for name, value in TWO.items():
        monkeypatch.setenv(name, value)

    def refused(*_arguments, **options):
        assert options["timeout"].total_seconds() == 5
        raise RuntimeError("nobody listens")

    monkeypatch.setattr(distributed, "rendezvous", refused)
    with (
        pytest.raises(RankError, match="rank 1 of 2 cannot join the others: nobody listens"),
        joined(device="cpu", timeout_s=5),
    ):
        pass


@pytest.mark.parametrize(
    ("error", "raised", "said"),
    [
        (
            RuntimeError("[gloo/transport/tcp/pair.cc:1] Connection closed by peer"),
            PeerError,
            r"rank 1 of 2 lost the others \(limit 5 s\): .*Connection closed by peer",
        ),
        (RuntimeError("shapes differ"), RuntimeError, "^shapes differ$"),
    ],
)
def test_a_rank_that_loses_the_others_says_so(monkeypatch, error, raised, said):
    for name, value in TWO.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "rendezvous", lambda *_, **__: iter([(dist.HashStore(), 1, 2)]))
    monkeypatch.setattr(distributed.dist, "init_process_group", lambda *_, **__: None)
    with pytest.raises(raised, match=said), joined(device="cpu", timeout_s=5):
        raise error


def test_a_rank_without_a_gpu_of_its_own_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert own_gpu(RankGroup(5, 8, 1)) == 1
    with pytest.raises(RankError, match="local rank 2 has no GPU, the machine has 2; lower --nproc-per-node"):
        own_gpu(RankGroup(2, 4, 2))


def test_only_run_works_under_torchrun(monkeypatch):
    for name, value in TWO.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RankError, match="ctr-train tune works in one process, WORLD_SIZE is 2; only"):
        refuse_ranks("ctr-train tune")
    found = CliRunner().invoke(app, ["report", "nowhere"])
    assert isinstance(found.exception, RankError)
    assert "ctr-train report works in one process" in str(found.exception)


def test_the_command_line_says_it_in_one_line():
    found = subprocess.run(
        [sys.executable, "-m", "training.cli", "report", "nowhere"],
        env=os.environ | TWO,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 1
    assert found.stderr.startswith("error: ctr-train report works in one process")
    assert "Traceback" not in found.stderr


def test_draws_depend_on_the_key_alone():
    def drawn(*key):
        reseed(*key)
        return torch.rand(1).item(), float(np.random.random())

    assert drawn(5, 1) == drawn(5, 1)
    assert len({drawn(5, 1), drawn(5, 2), drawn(6, 1)}) == 3


def test_a_rank_that_leaves_the_log_to_the_first_writes_nothing(tmp_path):
    with NoLog() as log:
        log.event("train", loss=1.0)
        log.truncate(3)
        assert log.sync() == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("rows", "batch", "ranks"), [(10, 4, 3), (7, 7, 2), (1, 5, 4), (100, 9, 4)])
def test_shares_of_ranks_cover_every_row_once(rows, batch, ranks):
    shares = [RankShare(rows, batch, rank, ranks) for rank in range(ranks)]
    places = [share.places(0, rows).tolist() for share in shares]
    assert sorted(place for own in places for place in own) == list(range(rows))
    for step in range(-(-rows // batch)):
        inside = [[p for p in own if p // batch == step] for own in places]
        assert [len(own) for own in inside] == [share.size(step) for share in shares]
    assert shares[0].places(2, 6).tolist() == [p for p in places[0] if 2 <= p < 6]


class Counting:
    """A hook that is due at even steps and writes a buffer."""

    judged, finished = True, False

    def __init__(self, model):
        self.model, self.worked = model, []

    def due(self, step):
        return step % 2 == 0

    def before_step(self, step):
        self.worked.append(step)
        self.model.get_buffer("table").fill_(step)

    def state_dict(self):
        return {"worked": list(self.worked)}

    def load_state_dict(self, state):
        self.worked = list(state["worked"])


class Told:
    """Stands for a group: hears the first rank, or is it."""

    def __init__(self, message=None):
        self.is_first, self.message = message is None, message

    def on_first(self, work):
        if self.is_first:
            self.message = work()
        return self.message


def test_a_hook_works_on_the_first_rank_and_the_others_copy_it():
    def model():
        made = torch.nn.Linear(2, 1)
        made.register_buffer("table", torch.zeros(3))
        return made

    models = [model(), model()]
    hooks = [Counting(m) for m in models]
    first = Told()
    HookOnFirst(hooks[0], models[0], group=first).before_step(4)
    second = HookOnFirst(hooks[1], models[1], group=Told(first.message))
    second.before_step(3)  # not due: nobody is asked
    assert hooks[1].worked == []
    kept = models[1].weight.clone()
    second.before_step(4)
    assert hooks[1].worked == [4]
    assert models[1].get_buffer("table").tolist() == [4.0, 4.0, 4.0]
    assert torch.equal(models[1].weight, kept)
