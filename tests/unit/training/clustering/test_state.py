"""Updates from start to resume: the matrix part of A2, its edge cases, and exactness of a saved state."""

from dataclasses import replace

import numpy as np
import pytest

from training.clustering.affinity import LookaheadGram
from training.clustering.archive import load_state, save_state, state_bytes, state_from_bytes
from training.clustering.errors import DistanceFallbackWarning, MatrixError, RulesError, StateError
from training.clustering.rules import CdcRules, default_num_clusters
from training.clustering.state import start, update

TRUTH = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2])
RULES = CdcRules(num_clusters=3, num_treatments=40)


def delivered(seed, truth=TRUTH, noise=0.002):
    """A Gram matrix in which domains of one group help each other and others do little."""
    rng = np.random.default_rng(seed)
    D = len(truth)
    harm = np.array([[0, -0.01, -0.06], [-0.05, 0, -0.02], [-0.02, -0.07, 0]])[np.ix_(truth, truth)]
    gram = 0.1 * (truth[:, None] == truth) + harm + noise * rng.standard_normal((D, D))
    return LookaheadGram(base=np.full(D, 0.5), gram=gram, step_size=0.1)


def run(state, seeds):
    for seed in seeds:
        state = update(state, state.plan(), delivered(seed, TRUTH[: state.num_domains]))
    return state


def same(one, other):
    return state_bytes(one) == state_bytes(other)


def test_updates_find_and_keep_the_groups():
    """T counts updates; the first S_k is remembered; records tell what happened."""
    state = start(np.ones(9), RULES)
    first = run(state, [0])
    later = run(first, [1, 2])
    assert state.clusters is None
    assert first.clusters.labels.tolist() == later.clusters.labels.tolist() == TRUTH.tolist()
    assert (first.t, later.t, len(later.history)) == (1, 3, 3)
    assert all(a is b for a, b in zip(first.clusters.sources, later.clusters.first_sources, strict=True))
    assert [record.prior for record in later.history] == pytest.approx([0, 0.0095, 0.009025])
    assert [record.churn_ratio for record in later.history] == [0, 0, 0]
    assert later.history[2].cluster_sizes == (3, 3, 3)
    assert TRUTH[later.clusters.centres].tolist() == [0, 1, 2]


def test_matrices_are_smoothed():
    """MI = .3 old + .7 new, on what the floor leaves."""
    first = run(start(np.ones(9), RULES), [0])
    second = run(first, [1])
    fresh = 0.1 * delivered(1).gram / (0.5 + 0.1 * 0.5)
    assert second.clusters.mi == pytest.approx(0.3 * first.clusters.mi + 0.7 * fresh)


def test_plan_follows_the_source_sets():
    """All domains at t = 0; S_k(u) and u later; other treatments each time."""
    state = start(np.ones(9), RULES)
    assert state.plan().companions.all()
    later = run(state, [0])
    plan = later.plan()
    for u, k in enumerate(later.clusters.labels):
        assert set(np.flatnonzero(plan.companions[u])) == set(later.clusters.sources[k]) | {u}
    assert plan.treatments.shape == (40, 9)
    assert np.array_equal(plan.treatments, later.plan().treatments)
    assert not np.array_equal(plan.treatments, state.plan().treatments)


def test_churn_of_one_move():
    """Domain 3 (a tenth of the rows) turns to group 0: 1 of 9 domains, 1 of 10 rows."""
    rows = np.array([1.0, 1, 1, 1, 1, 1, 1, 1, 2])
    state = run(start(rows, replace(RULES, history_weight=0.0)), [0])
    turned = TRUTH.copy()
    turned[3] = 0
    made = update(state, state.plan(), delivered(1, turned))
    record = made.history[-1]
    assert record.moved == (3,)
    assert (record.churn_ratio, record.churn_rows_ratio) == (pytest.approx(1 / 9), pytest.approx(0.1))
    assert made.clusters.last_moved.tolist() == [-1, -1, -1, 1, -1, -1, -1, -1, -1]


def test_freeze_keeps_a_moved_domain():
    """Moved at t = 1, turning back at t = 2: held for one update, free at t = 3. A big domain is not held."""
    turned = TRUTH.copy()
    turned[3] = 0
    for tail_share, after in ((1.0, 0), (0.05, 1)):
        rules = replace(RULES, history_weight=0.0, freeze_updates=1, tail_share=tail_share)
        state = run(start(np.ones(9), rules), [0])
        state = update(state, state.plan(), delivered(1, turned))
        assert state.clusters.labels[3] == 0
        state = run(state, [2])
        assert state.clusters.labels[3] == after
        assert run(state, [3]).clusters.labels[3] == 1


def test_useless_treatments_skip_the_update():
    """Nothing told apart: T stays, t stays, the record says why, and the next plan differs."""
    state = run(start(np.ones(9), RULES), [0])
    flat = LookaheadGram(base=np.ones(9), gram=np.zeros((9, 9)), step_size=0.1)
    skipped = update(state, state.plan(), flat)
    assert skipped.clusters is state.clusters
    assert (skipped.t, len(skipped.history)) == (1, 2)
    assert skipped.history[1].skipped == "0 of 40 treatments tell domains apart; at least 2 must"
    assert not np.array_equal(skipped.plan().treatments, state.plan().treatments)


def test_fallback_is_recorded():
    """Two domains cannot be told apart by depcon."""
    state = start(np.ones(2), CdcRules(num_clusters=2, num_treatments=5, min_treatment_size=1))
    gram = np.array([[0.1, 0.02], [0.01, 0.2]])
    with pytest.warns(DistanceFallbackWarning):
        made = update(state, state.plan(), LookaheadGram(base=np.ones(2), gram=gram, step_size=0.1))
    assert (made.history[0].distance, made.history[0].fell_back) == ("signed", True)


def test_one_domain_one_cluster():
    """The smallest product."""
    state = start([7], CdcRules(num_clusters=1))
    gram = LookaheadGram(base=np.ones(1), gram=np.ones((1, 1)), step_size=0.1)
    for _ in range(2):
        state = update(state, state.plan(), gram)
    assert (state.clusters.labels.tolist(), state.clusters.sources[0].tolist()) == ([0], [0])


def test_resume_is_exact(tmp_path):
    """Saved after any update and read again, a run goes on bit for bit."""
    whole = run(start(np.ones(9), RULES), range(5))
    for cut in range(5):
        save_state(run(start(np.ones(9), RULES), range(cut)), tmp_path / "state.npz")
        assert same(run(load_state(tmp_path / "state.npz"), range(cut, 5)), whole)


def test_rule_of_thumb_for_k():
    """max(3, D / 8), never more than D."""
    assert [default_num_clusters(D) for D in (1, 2, 3, 24, 43, 300)] == [1, 2, 3, 3, 5, 38]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_clusters": 0}, "num_clusters is 0; it must be at least 1"),
        ({"freeze_updates": -1}, "freeze_updates -1 and seed 0 must be from 0 up"),
        ({"distance": "far"}, "distance 'far'; it must be one of depcon, cosine, signed"),
        ({"history_weight": 1.0}, r"history_weight is 1.0; it must be in \[0, 1\)"),
        ({"prior_decay": 1.5}, "prior_decay is 1.5; it must be a number from 0 to 1.0"),
        ({"hysteresis": float("nan")}, "hysteresis is nan"),
    ],
)
def test_rules_refuse(setting, message):
    """Values outside their range."""
    with pytest.raises(RulesError, match=message):
        CdcRules(**({"num_clusters": 3} | setting))


def test_refusals(tmp_path):
    """Each raise names what is wrong."""
    with pytest.raises(RulesError, match="K is 3; with 2 domains it must be from 1 to 2"):
        start(np.ones(2), RULES)
    with pytest.raises(MatrixError, match="must not be negative nor all 0"):
        start(np.zeros(3), RULES)
    with pytest.raises(StateError, match="there are no clusters yet"):
        start(np.ones(9), RULES).require_clusters()
    with pytest.raises(StateError, match=r"nothing\.npz: "):
        load_state(tmp_path / "nothing.npz")
    with pytest.raises(StateError, match="not a clustering state"):
        state_from_bytes(b"PK or not")
    content = state_bytes(start(np.ones(9), RULES))
    (tmp_path / "cut.npz").write_bytes(content[:40])
    with pytest.raises(StateError, match=r"cut.npz: not a clustering state"):
        load_state(tmp_path / "cut.npz")
    np.savez(tmp_path / "next.npz", head=np.array('{"format": 2}'))
    with pytest.raises(StateError, match="format 2 of a clustering state; this code reads 1"):
        load_state(tmp_path / "next.npz")
