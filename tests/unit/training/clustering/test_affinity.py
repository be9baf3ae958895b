"""Lookahead to matrices against a worked example, the first-order formulas, and the floors."""

import numpy as np
import pytest

from training.clustering.affinity import (
    LookaheadGram,
    LookaheadLosses,
    LookaheadPlan,
    affinities,
    loss_floor,
    smoothed,
)
from training.clustering.causal import causal_distance
from training.clustering.errors import MatrixError, RulesError
from training.clustering.tail import attach, eligible_domains
from training.clustering.toy_lookahead import (
    after_steps,
    domain_gradients,
    domain_losses,
    exact_lookahead,
    first_order_lookahead,
)
from training.clustering.treatments import default_count, sample_treatments

X = np.array(
    [
        [[1, 0], [1, 1], [-1, 0], [-1, -1]],
        [[1, 0], [0, 1], [-1, 0], [0, -1]],
        [[1, 1], [-1, 1], [1, -1], [-1, -1]],
    ],
    dtype=float,
)
Y = np.array([[1, 1, 0, 0], [1, 0, 0, 1], [0, 1, 0, 1]], dtype=float)
THETA = np.zeros(2)
TREATMENTS = np.array([[1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 0, 0]], dtype=bool)
PLAN = LookaheadPlan(companions=np.ones((3, 3), dtype=bool), treatments=TREATMENTS)


def lookahead(plan=PLAN, step_size=0.5):
    return exact_lookahead(
        THETA,
        domain_gradients(THETA, X, Y),
        plan,
        lambda thetas: domain_losses(thetas, X, Y),
        step_size=step_size,
    )


def test_d4():
    """Every printed number."""
    assert domain_gradients(THETA, X, Y).tolist() == [[-0.5, -0.25], [-0.25, 0.25], [0.5, 0.0]]
    losses = lookahead()
    assert losses.base == pytest.approx([np.log(2)] * 3, abs=1e-12)
    assert losses.after_companions == pytest.approx(np.tile([0.672531, 0.682839, 0.714198], (3, 1)), abs=1e-6)
    made = affinities(losses, PLAN)
    mi = [[0.207194, 0.038055, -0.194351], [0.043676, 0.087353, -0.095789], [-0.191579, -0.095789, 0.169095]]
    mh = [[0.092698, 0.015565, -0.077427], [0.007725, 0.036921, -0.029644], [-0.113858, -0.053006, 0.097421]]
    mt = [
        [0.128922, 0.064461, -0.141583],
        [0.022190, -0.022894, -0.000704],
        [-0.069386, -0.000704, 0.043676],
        mi[0],
    ]
    assert made.mi == pytest.approx(np.array(mi), abs=1e-6)
    assert made.mh == pytest.approx(np.array(mh), abs=1e-6)
    assert made.mt == pytest.approx(np.array(mt), abs=1e-6)
    mc = causal_distance(made.mt, fallback=False).mc
    assert mc[np.triu_indices(3, 1)] == pytest.approx([1.187309, 0.151548, 1.221861], abs=1e-6)


def test_no_step_no_gain():
    """Eta = 0 gives MI = MH = MT = 0."""
    made = affinities(lookahead(step_size=0.0), PLAN)
    assert not made.mi.any()
    assert not made.mh.any()
    assert not made.mt.any()


def test_alone_in_its_set_mh_is_mi():
    """M_u = {u}: the reference is Theta itself, in both modes."""
    plan = LookaheadPlan(companions=np.eye(3, dtype=bool), treatments=TREATMENTS)
    exact = affinities(lookahead(plan), plan)
    assert np.array_equal(exact.mi, exact.mh)
    gradients = domain_gradients(THETA, X, Y)
    first = affinities(first_order_lookahead(np.ones(3), gradients, gradients, step_size=0.5), plan)
    assert np.array_equal(first.mi, first.mh)


def test_first_order_is_the_limit_of_small_steps():
    """Gains over eta agree as eta goes to 0, for every matrix and an uneven plan."""
    plan = LookaheadPlan(
        companions=np.array([[1, 1, 0], [1, 1, 1], [0, 0, 1]], dtype=bool), treatments=TREATMENTS
    )
    eta = 1e-6
    exact = affinities(lookahead(plan, eta), plan)
    gradients = domain_gradients(THETA, X, Y)
    base = domain_losses(THETA[None], X, Y)[0]
    first = affinities(first_order_lookahead(base, gradients, gradients, step_size=eta), plan)
    for name in ("mi", "mh", "mt"):
        assert getattr(first, name) / eta == pytest.approx(getattr(exact, name) / eta, abs=1e-5)


def test_gradient_reuse_equals_separate_steps():
    """The mean of domain gradients is the gradient of the concatenated batches; float32, 1e-6."""
    theta = np.array([0.3, -0.2])
    gradients = domain_gradients(theta, X, Y).astype(np.float32)
    for members in TREATMENTS:
        joint = domain_gradients(theta, X[members].reshape(1, -1, 2), Y[members].reshape(1, -1))
        separate = (theta - 0.5 * joint[0]).astype(np.float32)
        assert after_steps(theta, gradients, members[None], 0.5)[0] == pytest.approx(separate, abs=1e-6)


def test_mh_scale_multiplies_by_set_size():
    """Row u times |M_u|."""
    plan = LookaheadPlan(
        companions=np.array([[1, 1, 0], [1, 1, 1], [0, 0, 1]], dtype=bool), treatments=TREATMENTS
    )
    plain, scaled = affinities(lookahead(plan), plan), affinities(lookahead(plan), plan, mh_scale="size")
    assert scaled.mh == pytest.approx(plain.mh * np.array([[2], [3], [1]]))
    assert np.array_equal(scaled.mi, plain.mi)


def test_floor_by_hand():
    """L = .01 to .03 is a gain of -2; with e = .07, .1/.08 is a gain of -.25."""
    losses = LookaheadLosses(
        base=np.array([0.01]),
        after_single=np.array([[0.03]]),
        after_companions=np.array([[0.03]]),
        after_others=np.array([[0.01]]),
        after_treatments=np.array([[0.03]]),
    )
    plan = LookaheadPlan(companions=np.ones((1, 1), dtype=bool), treatments=np.ones((1, 1), dtype=bool))
    assert affinities(losses, plan).mi.item() == pytest.approx(-2)
    made = affinities(losses, plan, floor=0.07)
    assert [made.mi.item(), made.mh.item(), made.mt.item()] == pytest.approx([-0.25] * 3)
    assert loss_floor(np.array([0.2, 0.6]), np.array([0.75, 0.25]), 0.1) == pytest.approx(0.03)
    assert loss_floor(np.array([0.2, 0.6]), np.zeros(2), 0.1) == pytest.approx(0.04)


def test_ema_by_hand():
    """Alpha .3, .01 then .02: .017 (D2); no history gives the new value."""
    assert smoothed(np.array([[0.01]]), np.array([[0.02]]), 0.3).item() == pytest.approx(0.017, abs=1e-12)
    assert smoothed(None, np.array([[0.02]]), 0.3).item() == 0.02


@pytest.mark.parametrize("draw", ["uniform", "sqrt_share"])
@pytest.mark.parametrize("D", [1, 2, 3, 5, 40])
def test_treatments_keep_the_rule(draw, D):
    """Sizes 2..min(D - 1, 16), one domain at least, the same for the same seed."""
    shares = np.r_[np.ones(D - 1), 0.0] if D > 1 else np.ones(1)
    made = sample_treatments(np.random.default_rng(3), shares, count=200, draw=draw)
    sizes = made.sum(axis=1)
    assert made.shape == (200, D)
    assert (sizes.min(), sizes.max()) == (min(2, max(1, D - 1)), max(1, min(D - 1, 16)))
    assert np.array_equal(made, sample_treatments(np.random.default_rng(3), shares, count=200, draw=draw))
    assert (default_count(12), default_count(300)) == (50, 300)


def test_big_domains_are_drawn_more_under_sqrt_share():
    """W = 16:1:1:1 and sets of one: chances 4/7 and 1/7."""
    made = sample_treatments(
        np.random.default_rng(0),
        np.array([16.0, 1, 1, 1]),
        count=7000,
        min_size=1,
        max_size=1,
        draw="sqrt_share",
    )
    assert made.mean(axis=0) == pytest.approx([4 / 7, 1 / 7, 1 / 7, 1 / 7], abs=0.03)


def test_tail_domains():
    """Too few rows: left out; attached to the best mean gain over S_k, or to the default."""
    assert eligible_domains(np.array([500, 499, 900]), np.array([100, 200, 99])).tolist() == [0]
    sources = (np.array([0, 1]), np.array([2]))
    gains = np.array([[0.1, 0.0], [0.3, 0.0], [0.15, 0.0]])
    assert attach(gains, sources, default_cluster=1, num_left_out=2).tolist() == [0, 0]
    assert attach(
        gains - np.array([[0.2], [0.2], [0]]), sources, default_cluster=0, num_left_out=2
    ).tolist() == [1, 1]
    assert attach(None, sources, default_cluster=1, num_left_out=3).tolist() == [1, 1, 1]


def test_refusals():
    """Each raise names what is wrong."""
    ones = np.ones((3, 3), dtype=bool)
    with pytest.raises(MatrixError, match=r"companions\[1\] lacks domain 1; M_u must hold u"):
        LookaheadPlan(companions=np.diag([True, False, True]), treatments=TREATMENTS)
    with pytest.raises(MatrixError, match="treatment 0 has no domain"):
        LookaheadPlan(companions=ones, treatments=np.zeros((1, 3), dtype=bool))
    with pytest.raises(MatrixError, match=r"base\[1\] is 0.0; a loss must be above 0"):
        affinities(LookaheadGram(base=np.array([1.0, 0, 1]), gram=np.zeros((3, 3)), step_size=0.1), PLAN)
    with pytest.raises(MatrixError, match=r"gram has shape \(2, 3\); it must be 3 x 3"):
        affinities(LookaheadGram(base=np.ones(3), gram=np.zeros((2, 3)), step_size=0.1), PLAN)
    with pytest.raises(RulesError, match=r"floor ratio is -0.1"):
        loss_floor(np.ones(2), np.ones(2), -0.1)
    with pytest.raises(RulesError, match="number of treatments is 0"):
        sample_treatments(np.random.default_rng(0), np.ones(3), count=0)
    with pytest.raises(RulesError, match="treatment sizes 5 to 4"):
        sample_treatments(np.random.default_rng(0), np.ones(9), count=1, min_size=5, max_size=4)
    with pytest.raises(
        RulesError, match="no domain has 500 training and 100 evaluation rows; lower the minimum"
    ):
        eligible_domains(np.array([1]), np.array([1]))
    with pytest.raises(RulesError, match="default cluster 2; there are 1 clusters"):
        attach(None, (np.array([0]),), default_cluster=2, num_left_out=1)
