"""When masks are updated, what of them is remembered, and that nothing else of the run changes."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.models import random_batch, trained_model
from tests.support.schemas import full_schema
from training.masks.errors import MaskSearchError
from training.masks.hook import MaskSteps
from training.masks.schedule import SearchSchedule
from training.masks.search import FoundMasks, aread_of
from training.models.mask import random_mask
from training.track import Quiet, RunLog, read_log

SCHEMA = full_schema()


class FakeSearch:
    """Gives random masks and keeps what it was asked."""

    def __init__(self, model):
        self._shape = aread_of(model).shape
        self.asked = []

    def __call__(self, update, settings, domains, current):
        self.asked.append((update, settings.num_candidates, tuple(domains), dict(current)))
        rng = np.random.default_rng(update)
        masks = {d: random_mask(self._shape, 0.5, rng) for d in domains}
        scores = np.tile([0.7, 0.5, 0.6], (len(masks), 1))
        return FoundMasks(masks, scores, np.stack([[m.bits] * 3 for m in masks.values()]))


def hook_of(model, log, *, search=None, domains=(0, 2), method="search", **options):
    wanted = {"warmup_batches": 3, "update_interval": 4, "max_updates": None, "last_step": 12, "start": {}}
    return MaskSteps(
        model,
        method=method,
        search=search,
        schedule=SearchSchedule(target_density=0.4),
        domains=domains,
        seed=1,
        log=log,
        watcher=Quiet(),
        **wanted | options,
    )


@pytest.fixture
def log(tmp_path: Path):
    with RunLog(tmp_path / "log.jsonl") as opened:
        yield opened


@pytest.fixture
def model():
    return trained_model("aread", SCHEMA)


def test_updates_come_after_the_warm_up_and_stop_in_time(model, log, tmp_path):
    search = FakeSearch(model)
    hook = hook_of(model, log, search=search)
    for step in range(30):
        hook.before_step(step)

    assert [record.step for record in hook.history] == [3, 7, 11]
    assert [asked[0] for asked in search.asked] == [1, 2, 3]
    assert search.asked[0][3] == {}  # nothing yet
    assert search.asked[1][3] == {
        0: random_mask(aread_of(model).shape, 0.5, np.random.default_rng(1)),
        2: search.asked[1][3][2],
    }
    log.sync()
    events = read_log(tmp_path / "log.jsonl")
    assert [(e["event"], e["score"], round(e["spread"], 9)) for e in events] == [("masks", 0.5, 0.2)] * 3


def test_the_first_update_comes_however_long_the_warm_up(model, log):
    hook = hook_of(model, log, search=FakeSearch(model), warmup_batches=20)
    for step in range(30):
        hook.before_step(step)

    assert [record.step for record in hook.history] == [20]


def test_updates_have_a_limit(model, log):
    hook = hook_of(model, log, search=FakeSearch(model), max_updates=2)
    for step in range(30):
        hook.before_step(step)

    assert len(hook.history) == 2


def test_the_warm_up_trains_the_mean_of_the_heads(model, log):
    hook = hook_of(model, log, search=FakeSearch(model))
    batch = random_batch(SCHEMA, 8, seed=0)

    assert hook.forward(batch).heads is None
    hook.before_step(3)
    assert hook.forward(batch).heads is not None


def test_start_masks_are_what_the_first_search_begins_with(model, log):
    start = {0: random_mask(aread_of(model).shape, 0.3, np.random.default_rng(5))}
    search = FakeSearch(model)
    hook = hook_of(model, log, search=search, start=start)
    hook.before_step(3)

    assert search.asked[0][3] == start


def test_domains_that_are_not_searched_keep_every_edge(model, log):
    hook = hook_of(model, log, search=FakeSearch(model))
    hook.before_step(3)

    masks = aread_of(model).masks
    assert masks[1].density == masks[-1].density == 1.0
    assert masks[0].density < 1.0
    assert hook.domains == (0, 2)


@pytest.mark.parametrize(("method", "density"), [("random", 0.4), ("none", 1.0)])
def test_methods_to_compare_with_act_once(method, density, model, log):
    hook = hook_of(model, log, method=method)
    before = copy.deepcopy(model.state_dict())
    generator = torch.get_rng_state().clone()
    for step in range(12):
        hook.before_step(step)

    (record,) = hook.history
    assert record.density == pytest.approx(density, abs=0.08)
    assert (record.score, record.num_candidates) == (None, 0)
    assert torch.equal(generator, torch.get_rng_state())
    changed = {name for name, value in model.state_dict().items() if not torch.equal(before[name], value)}
    assert changed <= {"gates.mask_bits", "ranker.gates.mask_bits", "ranker.gates.masks_in_use"}
    assert aread_of(model).own_gates.masks_count


def test_state_comes_back_whole(model, log):
    hook = hook_of(model, log, search=FakeSearch(model))
    for step in range(9):
        hook.before_step(step)
        if step == 5:
            hook.keep_best()
    other = hook_of(trained_model("aread", SCHEMA), log, search=FakeSearch(model))

    other.load_state_dict(hook.state_dict())
    other.restore_best()

    assert other.history == hook.history
    assert (other.best_update, hook.best_update) == (1, 1)
    np.testing.assert_array_equal(other.masks_over_updates, hook.masks_over_updates)
    assert (other.judged, other.finished) == (True, False)


def test_models_without_masks_are_refused(log):
    with pytest.raises(MaskSearchError, match="ranker Dcnv2 has no masks"):
        hook_of(trained_model("dcnv2", SCHEMA), log)
