"""Holders of run state: random generators, weight average, early stop."""

import io
import random

import numpy as np
import pytest
import torch
from torch import nn

from training.engine.average import WeightAverage
from training.engine.errors import MonitorError
from training.engine.monitor import EarlyStop, monitored_value
from training.engine.seed import random_state, restore_random_state, seed_everything
from training.metrics import evaluate


def _draws():
    return random.random(), np.random.rand(), np.random.randn(), torch.rand(2).tolist()


@pytest.fixture(autouse=True)
def _kernels():
    yield
    torch.use_deterministic_algorithms(False)


def test_a_seed_repeats_and_a_restored_state_goes_on():
    seed_everything(7)
    first = _draws()
    buffer = io.BytesIO()
    torch.save(random_state(), buffer)
    second = _draws()
    buffer.seek(0)
    restore_random_state(torch.load(buffer, weights_only=True))
    assert _draws() == second
    seed_everything(7)
    assert _draws() == first


def test_the_average_by_hand():
    """Decay 0.5 over weights 2, 4: sums 1, 2.5; correction 0.75; average 10/3."""
    weight = nn.Parameter(torch.tensor([0.0]))
    average = WeightAverage([weight], decay=0.5)
    with average.applied():
        assert weight.item() == 0.0
    for value in (2.0, 4.0):
        with torch.no_grad():
            weight.fill_(value)
        average.update()
    with average.applied():
        assert weight.item() == pytest.approx(10 / 3)
    assert weight.item() == 4.0
    other = WeightAverage([weight], decay=0.5)
    other.load_state_dict(average.state_dict())
    with other.applied():
        assert weight.item() == pytest.approx(10 / 3)
    assert weight.item() == 4.0


def test_early_stop_keeps_a_copy_of_the_best_and_counts_ties_as_no_gain():
    stop = EarlyStop(monitor="total_auc", patience=2)
    weight = torch.tensor([1.0])
    assert stop.observe(0.6, state={"w": weight}, step=1, epoch=0.1)
    weight += 1
    assert stop.observe(0.7, state={"w": weight}, step=2, epoch=0.2)
    weight += 1
    assert not stop.observe(0.7, state={"w": weight}, step=3, epoch=0.3)
    assert not stop.should_stop
    assert not stop.observe(0.5, state={"w": weight}, step=4, epoch=0.4)
    assert stop.should_stop
    assert (stop.best_value, stop.best_step, stop.best_epoch) == (0.7, 2, 0.2)
    assert stop.best_state["w"].tolist() == [2.0]
    again = EarlyStop(monitor="total_auc", patience=2)
    again.load_state_dict(stop.state_dict())
    assert again.state_dict() == stop.state_dict()


def test_logloss_is_better_lower():
    stop = EarlyStop(monitor="logloss", patience=1)
    assert stop.observe(0.6, state={}, step=1, epoch=0.1)
    assert stop.observe(0.5, state={}, step=2, epoch=0.2)
    assert not stop.observe(0.55, state={}, step=3, epoch=0.3)


def test_monitored_values():
    result = evaluate(
        labels=[0, 1, 0, 1],
        scores=[0.1, 0.9, 0.8, 0.2],
        domains=[0, 0, 1, 1],
        domain_names=["a", "b"],
        users=[0, 0, 1, 1],
    )
    # Pooled pairs: .9 beats .1 and .8, .2 beats .1 only: 3/4. Domains: 1 and 0.
    assert monitored_value(result, "total_auc") == pytest.approx(0.75)
    assert monitored_value(result, "domain_auc") == pytest.approx(0.5)
    assert monitored_value(result, "mean_auc") == pytest.approx(0.625)
    assert monitored_value(result, "logloss") == result.logloss


def test_an_undefined_monitor_is_refused():
    result = evaluate(labels=[1, 1], scores=[0.1, 0.9], domains=[0, 0], domain_names=["a"])
    with pytest.raises(MonitorError, match="'domain_auc' is undefined: 2 rows, 2 clicks"):
        monitored_value(result, "domain_auc")
