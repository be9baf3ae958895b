"""Source domains in the part of the new one: what start they make where rates tell clicks, and where not."""

import numpy as np
import pytest

from training.hier.clicks import Impressions
from training.hier.errors import GraphError
from training.hier.factors import Factors
from training.hier.rehearsal import Stage, few_rows, few_shot_scorer, rehearse
from training.hier.start import Start
from training.models.hier import HEAD_COLUMNS, RATES

WIDTH, NUM_USERS, NUM_ITEMS, ROWS = 3, 40, 30, 3000


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def drawn(rng, quality, domain, size):
    user, item = rng.integers(0, NUM_USERS, size), rng.integers(0, NUM_ITEMS, size)
    label = (rng.random(size) < sigmoid(quality[item])).astype(np.float32)
    return Impressions(user, item, np.full(size, domain), label)


def stages(*, shared):
    """Three domains; the quality of an item is the same in all, or each domain's own. The score is noise."""
    rng = np.random.default_rng(0)
    quality = [rng.normal(0, 1.5, NUM_ITEMS) for _ in range(3)]
    quality = [quality[0]] * 3 if shared else quality
    logs = [drawn(rng, own, domain, ROWS) for domain, own in enumerate(quality)]
    users, items = (rng.normal(size=(n, WIDTH + 2)).astype(np.float32) for n in (NUM_USERS, NUM_ITEMS))
    factors = Factors(users, items, users.mean(axis=0), WIDTH)
    found = []
    for domain, own in enumerate(logs):
        first, second = [log for other, log in enumerate(logs) if other != domain]
        half = np.arange(ROWS) < ROWS // 2
        found.append(Stage(f"d{domain}", factors, first.plus(second), own.where(half), own.where(~half)))
    return found


def weights(start):
    return dict(zip(HEAD_COLUMNS, start.head, strict=False))


def test_rates_of_other_domains_count_where_domains_agree():
    found = rehearse(stages(shared=True))
    told = weights(found.start)
    assert told["item_elsewhere"] > 0.5
    assert told["score"] < 0.1
    assert min(curve[0] for curve in found.stages.values()) > 0.7  # without a row of the domain
    assert min(found.start.head) >= 0


def test_rates_of_other_domains_do_not_count_where_domains_differ():
    found = rehearse(stages(shared=False))
    told = weights(found.start)
    assert told["item_elsewhere"] < 0.2 < 0.5 < told["item_here"]
    for curve in found.stages.values():
        assert curve[5000] > curve[0] + 0.1


def test_the_best_setting_is_chosen_and_all_are_told():
    found = rehearse(stages(shared=True))
    best = max(found.tried, key=lambda one: one.auc)
    assert (found.start.prior, found.start.strength) == (best.prior, best.strength)
    mean = np.mean([value for curve in found.stages.values() for value in curve.values()])
    assert best.auc == pytest.approx(mean)


def test_without_rates_the_start_is_the_score():
    start = rehearse(stages(shared=True), counted=False).start
    assert start.head[0] > 0
    assert set(start.head[1:]) == {0.0}


def test_without_rows_a_scorer_is_its_start():
    stage = stages(shared=True)[0]
    head = np.zeros(len(HEAD_COLUMNS) + WIDTH)
    head[HEAD_COLUMNS.index(RATES[0])] = 2.0
    none = few_rows(stage.train, 0, draw=0)
    elsewhere = stage.elsewhere(5.0)
    score = few_shot_scorer(stage.factors, none, elsewhere, Start(tuple(head), 5.0, 100.0))
    items = np.arange(NUM_ITEMS)
    np.testing.assert_allclose(score(items, items), 2 * elsewhere.items, rtol=1e-6)


def test_few_rows_are_the_earliest_of_a_half():
    train = stages(shared=True)[0].train
    half = few_rows(train, len(train), draw=1)
    assert len(half) == (len(train) + 1) // 2
    first = few_rows(train, 50, draw=1)
    assert first.item.tolist() == half.item[:50].tolist()
    assert few_rows(train, 50, draw=2).item.tolist() != first.item.tolist()


def test_one_stage_is_too_few():
    with pytest.raises(
        GraphError, match=r"rehearsals need 2 source domains with 50 .* found 1; set rehearsals"
    ):
        rehearse(stages(shared=True)[:1])
