"""Sequence runs: whole folders, exact resume, choice by validation, worded refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.unit.training.sequences.toy import random_log
from training.config import ConfigError, load_tree
from training.engine.checkpoint import CheckpointError
from training.engine.errors import RunError
from training.sequences.config import (
    RankingConfig,
    SasrecEncoderConfig,
    SequenceConfig,
    SequenceTrainingConfig,
    SyncrecEncoderConfig,
)
from training.sequences.errors import SequenceError
from training.sequences.judge import draw_candidates, history
from training.sequences.log import log_of_arrays
from training.sequences.report import (
    compared,
    losses_to_single,
    read_metrics,
    served_at,
    write_run_report,
)
from training.sequences.run import load_sequence_model, train_sequences
from training.track import Quiet

LOG = random_log(5, num_users=40)


def config(*, epochs: int = 3, **changes: object) -> SequenceConfig:
    """A tiny run."""
    model = SyncrecEncoderConfig(width=8, max_len=8, num_layers=1, num_experts=2, num_cross_experts=1)
    training = SequenceTrainingConfig(epochs=epochs, batch_size=16, num_threads=1, device="cpu", lr=1e-2)
    whole = {"name": "tiny", "model": model, "training": training, "ranking": RankingConfig(negatives="full")}
    return SequenceConfig.model_validate(whole | changes)


class StopError(Exception):
    """Stands for a kill."""


class Dying(Quiet):
    """Dies after the first epoch's checkpoint, in the second epoch."""

    def __init__(self) -> None:
        self.steps = 0

    def advance(self, amount: int = 1, *, note: str = "") -> None:
        self.steps += bool(note)
        if self.steps == 5:
            raise StopError


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run that nothing interrupted."""
    out: Path = tmp_path_factory.mktemp("finished") / "run"
    train_sequences(config(), LOG, out)
    return out


def test_a_killed_run_goes_on_to_the_same_bits(finished: Path, tmp_path: Path) -> None:
    """Weights, figures and log of a run resumed after a kill are those of an unbroken one."""
    out = tmp_path / "run"
    with pytest.raises(StopError):
        train_sequences(config(), LOG, out, watcher=Dying())
    assert not (out / "metrics.json").exists()
    resumed = train_sequences(config(), LOG, out, resume=True)
    whole = read_metrics(finished)

    assert resumed["digests"] == whole["digests"]
    assert resumed["test"] == whole["test"]
    lines = (out / "log.jsonl").read_text().splitlines()
    assert len(lines) == len((finished / "log.jsonl").read_text().splitlines())


def test_a_finished_run_is_loaded_and_reported(finished: Path) -> None:
    """Net, items, domains and choice of views; a page with every view."""
    model = load_sequence_model(finished)
    page = write_run_report(finished).read_text()
    metrics = read_metrics(finished)

    assert model.items == LOG.items
    assert model.domains == ("a", "b", "c")
    assert dict(zip(model.domains, model.use_single, strict=True)) == metrics["use_single"]
    assert model.trained_until == int(LOG.time[LOG.train_events].max())
    for view in ("cross", "single", "served"):
        assert f"test, {view} view" in page
        assert set(metrics["test"][view]["domains"]) == {"a", "b", "c"}
    heads, rows = compared([metrics])
    assert heads == ["run, view", "a", "b", "c", "mean"]
    assert [row[0] for row in rows] == [f"tiny seed 0, {view}" for view in ("cross", "single", "served")]
    assert set(losses_to_single(metrics)) == {"a", "b", "c"}


def test_served_figures_follow_another_limit_of_the_switch(finished: Path) -> None:
    """With the run's own limit they stay; with none, a domain is served by the view of the lower loss."""
    metrics = read_metrics(finished)
    same, all_by_sign = served_at(metrics, deviations=2.0), served_at(metrics, deviations=0.0)

    assert same["use_single"] == metrics["use_single"]
    assert same["test"]["served"]["domains"] == metrics["test"]["served"]["domains"]
    assert same["test"]["served"]["mean"] == pytest.approx(metrics["test"]["served"]["mean"])
    for name, single in all_by_sign["use_single"].items():
        assert single == (metrics["phi"][name][0] < 0)
        view = metrics["test"]["single" if single else "cross"]
        assert all_by_sign["test"]["served"]["domains"][name] == view["domains"][name]
    one_view = {"test": {"cross": {}}}
    assert served_at(one_view, deviations=1.0) is one_view


def test_what_is_in_the_way_is_refused(finished: Path, tmp_path: Path) -> None:
    """A taken folder, another config's checkpoint, too few events, a folder without a run."""
    with pytest.raises(RunError, match="already holds a run; pass --resume"):
        train_sequences(config(), LOG, finished)
    with pytest.raises(CheckpointError, match="is of another run: config"):
        train_sequences(config(epochs=4), LOG, finished, resume=True)
    short = log_of_arrays(
        user=np.array([0, 0, 1, 1]),
        item=np.array([0, 1, 0, 1]),
        domain=np.array([0, 1, 0, 1]),
        domains=("a", "b"),
        num_valid=1,
        num_test=1,
    )
    with pytest.raises(SequenceError, match="no event is held out for valid: no user has more than 2 events"):
        train_sequences(config(), short, tmp_path / "short")
    with pytest.raises(SequenceError, match=r"not a finished sequence run, metrics\.json is missing"):
        load_sequence_model(tmp_path)
    with pytest.raises(SequenceError, match="go on with --resume"):
        read_metrics(tmp_path)
    (tmp_path / "metrics.json").write_text('{"test": {}}')
    with pytest.raises(SequenceError, match="a run of another kind"):
        read_metrics(tmp_path)


def test_runs_of_different_events_are_not_compared(finished: Path, tmp_path: Path) -> None:
    """Nor does a net with one view have a view to lose to."""
    model = SasrecEncoderConfig(width=8, max_len=8, num_layers=1)
    found = train_sequences(config(epochs=1, model=model), random_log(6), tmp_path / "other")

    assert set(found["test"]) == {"cross"}
    assert losses_to_single(found) == {}
    write_run_report(tmp_path / "other")
    with pytest.raises(SequenceError, match="the runs are of 2 different event logs"):
        compared([read_metrics(finished), found])


def test_histories_end_before_the_event() -> None:
    """Only known events of the same user, the last T of them, in order; of one domain where one is named."""
    events = LOG.held_out("test")
    rows = history(LOG, events, max_len=6)
    own = history(LOG, events, max_len=6, domain=1)
    for place, event in enumerate(events):
        first = max(int(LOG.start[LOG.user_of_event[event]]), int(event) - 6)
        before = [e for e in range(first, int(event)) if LOG.item[e] >= 2]
        length = int(rows.length[place])
        assert rows.items[place, :length].tolist() == LOG.item[before].tolist()
        assert rows.domains[place, :length].tolist() == LOG.domain[before].tolist()
        assert not rows.items[place, length:].any()
        mine = [int(LOG.item[e]) for e in before if LOG.domain[e] == 1]
        assert own.items[place, : int(own.length[place])].tolist() == mine


def test_candidates_are_fixed_and_of_one_domain() -> None:
    """Distinct negatives that the user has not met, the same at every draw; a small domain is refused."""
    rng = np.random.default_rng(0)
    item = rng.integers(0, 300, 400)
    log = log_of_arrays(
        user=np.repeat(np.arange(40), 10),
        item=item,
        domain=item % 2,
        domains=("a", "b"),
        num_valid=1,
        num_test=1,
    )
    events = log.held_out("test")
    first, again = (draw_candidates(log, events, negatives=10, seed=3) for _ in range(2))
    names = np.array([int(name) for name in log.items])
    for domain, (own, other) in enumerate(zip(first, again, strict=True)):
        assert own is not None and other is not None  # noqa: PT018
        assert np.array_equal(own.items, other.items)
        assert (names[own.items - 2] % 2 == domain).all()
        assert all(len(set(row)) == 11 for row in own.items[own.known].tolist())
        users = np.repeat(log.user_of_event[own.events][:, None], 10, axis=1)
        assert not log.has_seen(users, own.items[:, 1:]).any()
    with pytest.raises(
        SequenceError, match=r"too few to draw 100 negatives from; set ranking\.negatives to full"
    ):
        draw_candidates(log, events, negatives=100, seed=0)


@pytest.mark.parametrize(
    "name", ["amazon5_sasrec", "amazon5_syncrec", "kuairand_tag_syncrec", "synthetic_syncrec"]
)
def test_shipped_configs_load(name: str) -> None:
    """And resolve to files that give them again; an unknown key is refused with its neighbours."""
    path = Path("training/configs/sequences") / f"{name}.yaml"
    found = load_tree(path, (), SequenceConfig)

    assert SequenceConfig.model_validate(yaml.safe_load(found.to_yaml())) == found
    with pytest.raises(ConfigError, match=r"unknown key model\.widht; did you mean width"):
        load_tree(path, ("model.widht=3",), SequenceConfig)


def test_configs_that_contradict_themselves_are_refused() -> None:
    """Experts on both sides, and a width that heads divide."""
    with pytest.raises(ValueError, match="num_cross_experts is 3; with num_experts 3 at most 2"):
        SyncrecEncoderConfig(num_cross_experts=3)
    with pytest.raises(ValueError, match="width is 64, not a multiple of num_heads, 3"):
        SyncrecEncoderConfig(num_heads=3)


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    """With the epoch and the batch."""
    training = SequenceTrainingConfig(epochs=3, batch_size=16, num_threads=1, device="cpu", lr=1e30)
    with pytest.raises(SequenceError, match=r"the loss is (nan|inf); lower training.lr"):
        train_sequences(config(training=training), LOG, tmp_path / "run")
