"""Algorithms 1 and 2 against a worked example, the literal recomputation, and their invariants."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.training.clustering.worked_example import (
    EXAMPLE,
    MC,
    W,
    literal_recluster,
    literal_score,
    literal_source_set,
    random_matrices,
)
from training.clustering.cohesion import prior_preference
from training.clustering.errors import MatrixError, RulesError
from training.clustering.gain import Matrices
from training.clustering.kmeans_start import fill_empty, kmeans_clusters, numbered_by_first
from training.clustering.recluster import (
    Stickiness,
    all_source_sets,
    cluster_members,
    mutual_moves,
    recluster,
)
from training.clustering.source_sets import SourceRules, most_cohesive, source_set

RULES = SourceRules()
PRIOR = 0.01 * prior_preference(MC, W, np.array([0, 1]))
SEEDS = st.integers(0, 100_000)


def sets(arrays):
    return [sorted(ids.tolist()) for ids in arrays]


@pytest.mark.parametrize(
    ("targets", "found", "with_prior"),
    [
        ([0, 1], [0, 1, 3], [0, 1]),
        ([2, 3], [2, 3], [2, 3]),
        ([0, 1, 2], [1, 0, 3], [1, 0]),
        ([0, 3], [0, 3, 1], [0, 3, 1]),
    ],
)
def test_d3_algorithm_1(targets, found, with_prior):
    """Order of entry, without and with the preference of the first source set."""
    assert source_set(EXAMPLE, np.array(targets), rules=RULES).tolist() == found
    assert source_set(EXAMPLE, np.array(targets), rules=RULES, bonus=PRIOR).tolist() == with_prior


def test_d3_scores():
    """The printed scores, which the literal form of the tests must meet as well."""

    def score(u, T, S, bonus=None):
        return literal_score(EXAMPLE, u, T, S, bonus)

    assert [score(2, [0, 1], [0, 1]), score(3, [0, 1], [0, 1])] == pytest.approx(
        [-0.005341, 0.001123], abs=1e-6
    )
    assert score(2, [0, 1], [0, 1, 3]) == pytest.approx(-0.005146, abs=1e-6)
    assert [score(u, [2, 3], [2, 3]) for u in (0, 1)] == pytest.approx([-0.002713, -0.001013], abs=1e-6)
    assert [score(u, [0, 1, 2], [1, 0]) for u in (2, 3)] == pytest.approx([-0.001593, 0.001839], abs=1e-6)
    assert score(2, [0, 1, 2], [1, 0, 3]) == pytest.approx(-0.001301, abs=1e-6)
    assert [score(u, [0, 3], [0, 3]) for u in (1, 2)] == pytest.approx([0.005761, -0.002978], abs=1e-6)
    assert score(2, [0, 3], [0, 3, 1]) == pytest.approx(-0.003345, abs=1e-6)
    assert [score(u, [0, 1], [0, 1], PRIOR) for u in (2, 3)] == pytest.approx(
        [-0.009813, -0.002040], abs=1e-6
    )


def test_min_gain_moves_the_stop():
    """3 enters {0, 1} with .001123: above that, nothing enters."""
    assert source_set(EXAMPLE, np.array([0, 1]), rules=SourceRules(min_gain=0.00112)).tolist() == [0, 1, 3]
    assert source_set(EXAMPLE, np.array([0, 1]), rules=SourceRules(min_gain=0.00113)).tolist() == [0, 1]


def test_a_score_of_zero_adds():
    """The paper stops below 0, so nothing to gain and nothing to lose takes all, lowest id first."""
    zeros = np.zeros((4, 4))
    flat = Matrices(mi=zeros, mh=zeros, mc=MC, shares=W)
    assert source_set(flat, np.array([2]), rules=RULES).tolist() == [2, 0, 1, 3]


@pytest.mark.parametrize(
    ("old", "labels", "found", "passes"),
    [
        ([0, 0, 1, 0], [0, 0, 1, 1], [[0, 1, 3], [2, 3]], 1),
        ([0, 1, 0, 1], [0, 1, 1, 1], [[0, 1], [0, 1, 2, 3]], 2),
        ([0, 1, 1, 1], [0, 0, 1, 1], [[0, 1, 3], [2, 3]], None),
        ([0, 0, 1, 1], [0, 0, 1, 1], [[0, 1, 3], [2, 3]], None),
    ],
)
def test_d3_algorithm_2(old, labels, found, passes):
    """Both worked starts, the repair of the second, and the fixed point."""
    made = recluster(EXAMPLE, np.array(old), 2, rules=RULES)
    assert made.labels.tolist() == labels
    assert sets(made.sources) == found
    assert passes in (None, made.num_passes)


def test_d3_centres():
    """The most cohesive member carries the cluster over."""
    assert recluster(EXAMPLE, np.array([0, 0, 1, 0]), 2, rules=RULES).centres.tolist() == [1, 2]


def test_d3_kmeans():
    """The inertias of D3 make {01|23} the best of the four."""
    for labels, inertia in (
        ([0, 0, 1, 1], 0.46),
        ([0, 1, 1, 1], 2.046667),
        ([0, 0, 0, 1], 2.393333),
        ([0, 0, 1, 0], 1.806667),
    ):
        groups = [MC[np.array(labels) == k] for k in (0, 1)]
        assert sum(((g - g.mean(0)) ** 2).sum() for g in groups) == pytest.approx(inertia, abs=1e-6)
    assert kmeans_clusters(MC, 2).tolist() == [0, 0, 1, 1]


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, D=st.integers(2, 12), with_bonus=st.booleans(), num_seeds=st.integers(1, 3))
def test_source_set_is_the_literal_one(seed, D, with_bonus, num_seeds):
    """Running sums give the set, in the order, that recomputing everything gives."""
    rng = np.random.default_rng(seed)
    m = random_matrices(rng, D)
    targets = rng.permutation(D)[: rng.integers(1, D + 1)]
    bonus = rng.normal(0, 0.005, D) if with_bonus else None
    made = source_set(m, targets, rules=SourceRules(num_seeds=num_seeds), bonus=bonus)
    assert made.tolist() == literal_source_set(m, targets.tolist(), num_seeds, bonus)
    assert len(made) >= min(num_seeds, len(targets))
    assert set(most_cohesive(m, targets, num_seeds, RULES)) <= set(made)


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, D=st.integers(3, 12))
def test_recluster_is_the_literal_one(seed, D):
    """S_k only for changed clusters equals S_k for all; partition, K clusters, at most D - K passes."""
    rng = np.random.default_rng(seed)
    m = random_matrices(rng, D)
    K = int(rng.integers(1, min(D, 5) + 1))
    old = rng.permutation(np.r_[np.arange(K), rng.integers(0, K, D - K)])
    made = recluster(m, old, K, rules=RULES)
    labels, sources, passes = literal_recluster(m, old, K)
    assert made.labels.tolist() == labels.tolist()
    assert sets(made.sources) == [sorted(ids) for ids in sources]
    assert made.num_passes == passes <= D - K
    assert sorted(set(made.labels)) == list(range(K))
    assert made.labels[made.centres].tolist() == list(range(K))
    scaled = Matrices(mi=m.mi, mh=m.mh, mc=m.mc, shares=m.shares * 7)
    assert recluster(scaled, old, K, rules=RULES).labels.tolist() == labels.tolist()


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, K=st.integers(1, 3), per_cluster=st.integers(3, 4))
def test_relabelling_domains_relabels_the_result(seed, K, per_cluster):
    """Permutation equivariance; old clusters of three or more, since the centre of two is always a tie."""
    rng = np.random.default_rng(seed)
    D = K * per_cluster
    m = random_matrices(rng, D)
    old = rng.permutation(np.arange(D) % K)
    order = rng.permutation(D)
    turned = Matrices(
        mi=m.mi[np.ix_(order, order)],
        mh=m.mh[np.ix_(order, order)],
        mc=m.mc[np.ix_(order, order)],
        shares=m.shares[order],
    )
    plain, other = recluster(m, old, K, rules=RULES), recluster(turned, old[order], K, rules=RULES)
    assert other.labels.tolist() == plain.labels[order].tolist()
    assert [sorted(order[ids].tolist()) for ids in other.sources] == sets(plain.sources)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, D=st.integers(2, 10), levels=st.integers(1, 3))
def test_ties_end_in_a_partition(seed, D, levels):
    """A handful of distinct values makes ties everywhere; the result is still a partition, and repeatable."""
    rng = np.random.default_rng(seed)
    mc = np.triu(rng.integers(0, levels, (D, D)), 1).astype(float)
    m = Matrices(
        mi=rng.integers(-levels, levels, (D, D)) / 100,
        mh=rng.integers(-levels, levels, (D, D)) / 100,
        mc=mc + mc.T,
        shares=rng.integers(0, 2, D).astype(float),
    )
    K = int(rng.integers(1, D + 1))
    made = recluster(m, np.r_[np.arange(K), np.zeros(D - K, dtype=int)], K, rules=RULES)
    assert sorted(set(made.labels)) == list(range(K))
    assert all(len(ids) for ids in made.sources)
    assert made.num_passes <= D - K


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, n=st.integers(1, 6), K=st.integers(1, 4), levels=st.integers(1, 4))
def test_every_pass_moves(seed, n, K, levels):
    """The proof of A7, ties included: the largest cell moves, and a row moves to its own best cluster."""
    gains = np.random.default_rng(seed).integers(-levels, levels, (n, K)).astype(float)
    moves = mutual_moves(gains)
    k = int(gains.max(axis=0).argmax())
    assert moves[int(gains[:, k].argmax())] == k
    for row, cluster in moves.items():
        assert gains[row, cluster] == gains[row].max() == gains[:, cluster].max()


def test_a_pass_moves_even_without_numbers():
    """NaN must not stop the loop."""
    assert mutual_moves(np.full((3, 2), np.nan)) == {0: 0}


def test_as_many_clusters_as_domains():
    """K = D: each domain is its own centre and nothing moves."""
    made = recluster(EXAMPLE, np.arange(4), 4, rules=RULES)
    assert (made.labels.tolist(), made.num_passes) == ([0, 1, 2, 3], 0)
    assert sorted(kmeans_clusters(MC, 4).tolist()) == [0, 1, 2, 3]


def test_hysteresis_holds_a_domain():
    """Start {0,1,3},{2}: domain 3 gains .017 in cluster 1 and .009902 at home, .418 of .017 less."""
    old = np.array([0, 0, 1, 0])

    def labels(margin, sticky=True):
        held = Stickiness(margin=margin, sticky=np.full(4, sticky), frozen=np.zeros(4, dtype=bool))
        return recluster(EXAMPLE, old, 2, rules=RULES, stickiness=held).labels.tolist()

    assert labels(0.0) == labels(0.41) == [0, 0, 1, 1]
    assert labels(0.42) == [0, 0, 1, 0]
    assert labels(5.0, sticky=False) == [0, 0, 1, 1]


def test_frozen_domains_stay():
    """Domain 3 would move; frozen it does not."""
    frozen = np.array([False, False, False, True])
    held = Stickiness(margin=0.0, sticky=frozen, frozen=frozen)
    made = recluster(EXAMPLE, np.array([0, 0, 1, 0]), 2, rules=RULES, stickiness=held)
    assert made.labels.tolist() == [0, 0, 1, 0]


def test_empty_clusters_take_the_farthest_row():
    """Rows 0 1 2 10 in one cluster, centroid 3.25: row 3 goes first, then row 0 (1 from 1, lowest id)."""
    points = np.array([[0.0], [1], [2], [10]])
    assert fill_empty(points, np.zeros(4, dtype=int), 3).tolist() == [2, 0, 0, 1]


def test_kmeans_with_duplicate_rows():
    """Fewer distinct rows than K still gives K clusters, without a warning."""
    assert sorted(np.bincount(kmeans_clusters(np.zeros((5, 5)), 3), minlength=3)) == [1, 1, 3]
    assert numbered_by_first(np.array([2, 0, 2, 1])).tolist() == [0, 1, 0, 2]


def test_refusals():
    """Each raise names what is wrong."""
    with pytest.raises(RulesError, match="K is 5; with 4 domains it must be from 1 to 4"):
        kmeans_clusters(MC, 5)
    with pytest.raises(RulesError, match="T is empty"):
        source_set(EXAMPLE, np.array([], dtype=int), rules=RULES)
    with pytest.raises(RulesError, match="num_seeds is 0; it must be at least 1"):
        SourceRules(num_seeds=0)
    with pytest.raises(RulesError, match="min_gain is nan"):
        SourceRules(min_gain=float("nan"))
    with pytest.raises(RulesError, match="hysteresis margin is -1"):
        Stickiness(margin=-1, sticky=np.ones(2, dtype=bool), frozen=np.ones(2, dtype=bool))
    with pytest.raises(MatrixError, match="labels run from 0 to 2; K is 2"):
        cluster_members(np.array([0, 2]), 2)
    with pytest.raises(MatrixError, match="cluster 1 has no domain"):
        all_source_sets(EXAMPLE, np.zeros(4, dtype=int), 2, rules=RULES)
