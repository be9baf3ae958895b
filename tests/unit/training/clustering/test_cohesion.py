"""Lambda, J and P against a worked example, their conventions and properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.training.clustering.worked_example import (
    EXAMPLE,
    MC,
    MH,
    MI,
    W,
    literal_lambda,
    random_matrices,
)
from training.clustering.cohesion import cohesion, interaction, prior_preference
from training.clustering.errors import MatrixError
from training.clustering.gain import Matrices, pair_gains, source_gain, target_weights
from training.clustering.rules import CdcRules

LAMBDAS = [
    ([0, 1], 0.2, [0.5, 0.5, 1, 1], [0.5, 0.5, 0, 0]),
    ([2, 3], 0.25, [1, 1, 0.5, 0.5], [0, 0, 0.5, 0.5]),
    ([0, 1, 2], 0.6, [0.444444, 0.416667, 0.638889, 0.666667], [0.421053, 0.384615, 0.741935, 0.8]),
    ([0, 1, 3], 0.511111, [0.456522, 0.423913, 0.913043, 0.619565], [0.4375, 0.393939, 1, 0.703704]),
    (
        [0, 1, 2, 3],
        0.6375,
        [0.509804, 0.470588, 0.549020, 0.470588],
        [0.513158, 0.461538, 0.567568, 0.461538],
    ),
]


@pytest.mark.parametrize(("members", "coefficient", "paper", "code"), LAMBDAS)
def test_d2_lambda(members, coefficient, paper, code):
    """The table of D2, both formulas."""
    made = cohesion(MC, np.array(members))
    assert made.coefficient == pytest.approx(coefficient, abs=1e-6)
    assert made.interactions() == pytest.approx(paper, abs=1e-6)
    assert made.interactions(rule="code") == pytest.approx(code, abs=1e-6)


def test_d2_gains():
    """J(u -> v|S) and J(u -> T|S)."""
    first, second = np.array([0, 1, 2]), np.array([0, 1, 3])
    weights = target_weights(W, np.array([0, 1]))
    gains = pair_gains(EXAMPLE, first)[2, :2]
    assert gains == pytest.approx([-0.00622222, -0.00416667], abs=1e-8)
    assert gains @ weights == pytest.approx(-0.00534127, abs=1e-8)
    gains = pair_gains(EXAMPLE, second)[3, :2]
    assert gains == pytest.approx([-0.00071739, 0.00357609], abs=1e-8)
    assert gains @ weights == pytest.approx(0.00112267, abs=1e-8)
    assert source_gain(EXAMPLE, first) == pytest.approx(
        pair_gains(EXAMPLE, first)[first].sum(axis=0), abs=1e-15
    )


def test_d2_preference_and_rho():
    """P given S0 = {0, 1}, and the decay of its weight."""
    assert prior_preference(MC, W, np.array([0, 1])) == pytest.approx([0, 0, -0.447214, -0.316228], abs=1e-6)
    rules = CdcRules(num_clusters=3)
    assert [rules.prior_at(t) for t in (1, 2, 3)] == pytest.approx([0.0095, 0.009025, 0.00857375], abs=1e-12)
    assert rules.prior_at(0) == 0
    assert rules.prior_weight == 0.01


def test_conventions():
    """A set of one has no interaction; a set without spread is half or whole."""
    assert cohesion(MC, np.array([2])).interactions().tolist() == [0, 0, 0, 0]
    flat = np.array([[0, 0, 1.0], [0, 0, 0], [1.0, 0, 0]])
    assert cohesion(flat, np.array([0, 1])).interactions().tolist() == [0.5, 0.5, 1.0]
    mixed = interaction(2, np.array([[0.0], [2.0]]), np.array([[0.0, 1.0], [1.0, 4.0]]))
    assert mixed.tolist() == [[0.5, 1.0], [0.5, 1.0]]
    assert interaction(1, 0.0, np.ones(3)).tolist() == [0, 0, 0]
    assert target_weights(np.zeros(4), np.array([1, 3])).tolist() == [0.5, 0.5]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), D=st.integers(2, 9), factor=st.floats(0.01, 100))
def test_properties(seed, D, factor):
    """Properties (a) to (d) of A5, the literal formula, and growing one by one."""
    rng = np.random.default_rng(seed)
    m = random_matrices(rng, D)
    members = rng.permutation(D)[: rng.integers(2, D + 1)]
    made = cohesion(m.mc, members)
    n = len(members)
    unclipped = n * made.sums[members] / (2 * made.total)
    assert unclipped.mean() == pytest.approx(0.5)
    assert cohesion(factor * m.mc, members).interactions() == pytest.approx(made.interactions())
    if n == 2:
        assert made.interactions()[members] == pytest.approx([0.5, 0.5])
    assert (unclipped <= n / 4 + 1e-12).all()
    assert made.interactions() == pytest.approx([literal_lambda(m.mc, v, members.tolist()) for v in range(D)])
    grown = cohesion(m.mc, members[:1])
    for u in members[1:]:
        grown = grown.add(m.mc, u)
    assert (grown.size, grown.total) == (n, pytest.approx(made.total))
    assert grown.sums == pytest.approx(made.sums)
    assert np.isfinite(made.interactions(rule="code")).all()


def test_refusals():
    """Matrices are checked once, at the door."""
    with pytest.raises(MatrixError, match=r"mh has shape \(3, 4\); it must be 4 x 4"):
        Matrices(mi=MI, mh=MH[:3], mc=MC, shares=W)
    with pytest.raises(MatrixError, match="shares and mc must not be negative"):
        Matrices(mi=MI, mh=MH, mc=-MC, shares=W)
