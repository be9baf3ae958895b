"""The dependence kernel and its alternatives: worked examples, a literal second formula, invariances."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.clustering.arrays import as_mask
from training.clustering.causal import (
    causal_distance,
    centred_spacing,
    dependence_gamma,
    dependence_gram,
    normalised,
)
from training.clustering.errors import DistanceFallbackWarning, MatrixError, RulesError, TreatmentError
from training.clustering.kmeans_start import kmeans_clusters

K1 = np.array(
    [[0.10, 0.20, 0.60], [0.30, 0.10, 0.40], [0.05, 0.15, 0.90], [0.50, 0.45, 0.20], [0.20, 0.25, 0.70]]
)
K3 = np.repeat(np.array([[0.3, 0.1, 0], [0, 0.2, 0.1], [0.1, 0, 0.25], [-0.1, 0.15, 0.05]]), 2, axis=1)
K4 = np.array([[0.1, 0.1, -0.2, -0.2], [0.3, 0.3, 0.1, 0.1]])


def near(values):
    return pytest.approx(values, abs=1e-6)


def upper(matrix):
    return matrix[np.triu_indices(len(matrix), 1)]


def test_k1_step_by_step():
    """Every printed number of K1."""
    gram = dependence_gram(K1)
    gamma = dependence_gamma(gram, 5)
    assert centred_spacing(K1[0]) == near(np.array([[-0.8, -0.2, 1], [-0.2, -0.5, 0.7], [1, 0.7, -1.7]]))
    assert gram[np.triu_indices(3)] == near([6.912284, 3.479152, -10.391436, 7.282872, -10.762024, 21.153460])
    assert gamma[np.triu_indices(3)] == near(
        [36.191167, 7.382264, 131.000882, 40.710548, 139.581282, 407.398026]
    )
    assert upper(normalised(gamma)) == near([0.192325, 1.078856, 1.083838])
    assert upper(causal_distance(K1, fallback=False).mc) == near([1.377266, 0, 0])
    assert upper(causal_distance(K1, kind="signed").mc) == near([1.058298, 2.604809, 2.620078])


def test_k1_clips_two_of_three_pairs_and_falls_back():
    """More than half clipped: `signed` stands in, and both the warning and the value say so."""
    with pytest.warns(
        DistanceFallbackWarning, match=r"depcon clipped 67% of the pairs of 3 domains; using signed"
    ):
        made = causal_distance(K1)
    assert (made.kind, made.fell_back, made.clipped_ratio) == ("signed", True, pytest.approx(2 / 3))
    assert upper(made.mc) == near([1.058298, 2.604809, 2.620078])


def test_k2():
    """The transpose as MT."""
    gamma = dependence_gamma(dependence_gram(K1.T), 3)
    assert gamma.diagonal() == near([3.748382, 15.975801, 47.856375, 319.479967, 2.000497])
    kappa = [
        0.630403,
        0.343584,
        1.292836,
        0.267751,
        0.370222,
        0.023238,
        1.537901,
        1.050938,
        0.113902,
        0.627223,
    ]
    assert upper(normalised(gamma)) == near(kappa)
    mc = [0.888723, 1.220066, 0, 1.299738, 1.191548, 1.547556, 0, 0, 1.456646, 0.892813]
    made = causal_distance(K1.T)
    assert upper(made.mc) == near(mc)
    assert (made.kind, made.fell_back, made.clipped_ratio) == ("depcon", False, 0.3)


def test_k3_three_groups():
    """Groups of identical domains have distance 0 within, and K-means finds them."""
    gram = dependence_gram(K3)
    assert gram.diagonal()[::2] == pytest.approx([19.33, 15.13, 11.83], abs=5e-3)
    assert [gram[0, 2], gram[0, 4], gram[2, 4]] == pytest.approx([-11.315, -8.015, -3.815], abs=5e-4)
    kappa = normalised(dependence_gamma(gram, 4))
    assert [kappa[0, 2], kappa[0, 4], kappa[2, 4]] == near([0.587068, 0.412062, 0.156976])
    mc = causal_distance(K3).mc
    assert [mc[0, 2], mc[0, 4], mc[2, 4]] == near([0.943364, 1.146080, 1.413168])
    assert [mc[0, 1], mc[2, 3], mc[4, 5]] == [0, 0, 0]
    assert causal_distance(K3).clipped_ratio == 0
    assert kmeans_clusters(mc, 3).tolist() == [0, 0, 1, 1, 2, 2]


def test_k4_two_groups_are_invisible():
    """Two exact groups: MC is 0 everywhere, so the fallback must speak."""
    gram = dependence_gram(K4)
    gamma = dependence_gamma(gram, 2)
    assert np.abs(gram) == near(np.full((4, 4), 8.0))
    assert [gamma[0, 1], gamma[0, 2]] == near([49.414214, 81.414214])
    assert normalised(gamma)[0, 2] == near(1.647587)
    assert not causal_distance(K4, fallback=False).mc.any()
    with pytest.warns(DistanceFallbackWarning):
        made = causal_distance(K4)
    assert made.mc[0] == pytest.approx([0, 0, np.pi, np.pi], abs=1e-6)


def test_two_domains_always_fall_back():
    """D = 2 always gives MC = 0."""
    with pytest.warns(DistanceFallbackWarning):
        assert causal_distance(np.array([[0.1, 0.2], [0.3, -0.1], [0.0, 0.5]])).fell_back


def test_one_domain_has_distance_zero():
    """Nothing to compare."""
    assert causal_distance(np.ones((3, 1))).mc.tolist() == [[0.0]]


def literal_kernel(MT):
    """The published tensor form: centred distance matrices flattened by treatment, then cosines."""
    R, D = MT.shape
    z = np.empty((R, D, D))
    for r in range(R):
        a = np.array([[abs(MT[r, u] - MT[r, v]) for v in range(D)] for u in range(D)])
        z[r] = (a - a.mean(0, keepdims=True) - a.mean(1, keepdims=True) + a.mean()) / a.mean()
    g = np.einsum("rux,rvx->uv", z, z)
    gamma = g * g - 2 * g + np.linalg.norm(np.eye(R))
    return gamma / np.sqrt(np.outer(gamma.diagonal(), gamma.diagonal()))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), D=st.integers(3, 9), R=st.integers(2, 20))
def test_kernel_facts(seed, D, R):
    """Facts 1 and 3 of A4, the literal form, and equivariance under relabelling."""
    rng = np.random.default_rng(seed)
    MT = rng.standard_normal((R, D))
    gamma = dependence_gamma(dependence_gram(MT), R)
    kappa = normalised(gamma)
    mc = causal_distance(MT, fallback=False).mc
    assert gamma.min() >= np.sqrt(R) - 1 - 1e-9
    assert kappa.diagonal() == pytest.approx(np.ones(D))
    assert np.array_equal(kappa, kappa.T)
    assert kappa == pytest.approx(literal_kernel(MT), abs=1e-10)
    assert mc.min() >= 0
    assert mc.max() <= np.pi / 2
    factors = rng.uniform(0.2, 5, (R, 1)) * rng.choice([-1, 1], (R, 1))
    moved = normalised(dependence_gamma(dependence_gram(MT * factors + rng.standard_normal((R, 1))), R))
    assert moved == pytest.approx(kappa, abs=1e-10)
    order = rng.permutation(D)
    assert causal_distance(MT[:, order], fallback=False).mc == pytest.approx(
        mc[np.ix_(order, order)], abs=1e-6
    )


def test_k5_invariance_at_fifty_treatments():
    """50 x 8: kappa moves by less than 1e-12."""
    rng = np.random.default_rng(0)
    MT = rng.standard_normal((50, 8))
    kappa = normalised(dependence_gamma(dependence_gram(MT), 50))
    moved = MT * (rng.uniform(0.5, 2, (50, 1)) * rng.choice([-1, 1], (50, 1))) + rng.standard_normal((50, 1))
    assert np.abs(normalised(dependence_gamma(dependence_gram(moved), 50)) - kappa).max() < 1e-12


def test_treatments_with_one_effect_are_dropped():
    """Fact 5: they change neither G nor R."""
    padded = np.vstack([K1.T, np.full(5, 0.3), np.full(5, -0.1)])
    made = causal_distance(padded)
    assert (made.num_treatments, made.num_dropped) == (3, 2)
    assert np.array_equal(made.mc, causal_distance(K1.T).mc)


def test_cosine_by_hand():
    """Columns (1, 0), (1, 1), (0, -1)."""
    made = causal_distance(np.array([[1.0, 1, 0], [0, 1, -1], [0, 0, 0]]), kind="cosine")
    assert upper(made.mc) == near([np.pi / 4, np.pi / 2, 3 * np.pi / 4])
    assert made.num_dropped == 1


def test_refusals():
    """Each raise names what is wrong."""
    with pytest.raises(TreatmentError, match="1 of 3 treatments tell domains apart; at least 2 must"):
        causal_distance(np.array([[0.1, 0.1], [0.2, 0.2], [0.1, 0.3]]))
    with pytest.raises(RulesError, match="distance 'euclid'; it must be one of depcon, cosine, signed"):
        causal_distance(K1, kind="euclid")
    with pytest.raises(MatrixError, match=r"MT\[1, 0\] is nan; every entry must be finite"):
        causal_distance(np.array([[0.1, 0.2], [np.nan, 0.1]]))
    with pytest.raises(MatrixError, match=r"MT has shape \(3,\); it must be any x any"):
        causal_distance(np.ones(3))
    with pytest.raises(MatrixError, match="plan has type int64; it must be boolean"):
        as_mask("plan", np.ones(2, dtype=int), (2,))
