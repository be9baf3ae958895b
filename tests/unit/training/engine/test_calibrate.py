"""The calibrator against scikit-learn, its limits, and its file."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from training.engine.calibrate import (
    GLOBAL_ONLY,
    Calibrator,
    fit_calibrator,
    identity_calibrator,
    user_folds,
)
from training.engine.errors import CalibrationError
from training.engine.platt import sigmoid


def _rows(num, seed=0, num_domains=1):
    rng = np.random.default_rng(seed)
    logit = rng.normal(-1.0, 1.5, num)
    domain = rng.integers(0, num_domains, num)
    return rng, logit, domain


def _click(rng, eta):
    return (rng.random(len(eta)) < sigmoid(eta)).astype(int)


def _sklearn(logit, label):
    fit = LogisticRegression(C=np.inf, tol=1e-12, max_iter=2000).fit(logit[:, None], label)
    return fit.coef_[0, 0], fit.intercept_[0]


def test_global_line_is_unpenalised_logistic_regression():
    rng, logit, domain = _rows(5000)
    label = _click(rng, 0.7 * logit + 0.4)
    fitted = fit_calibrator(
        logits=logit, labels=label, domains=domain, users=domain, domain_names=["a"], strengths=[GLOBAL_ONLY]
    )
    scale, bias = _sklearn(logit, label)
    np.testing.assert_allclose(fitted.scale, scale, atol=1e-5)
    np.testing.assert_allclose(fitted.bias, bias, atol=1e-5)


def test_without_shrinkage_each_domain_is_its_own_logistic_regression():
    rng, logit, domain = _rows(6000, num_domains=2)
    label = _click(rng, np.where(domain == 0, 0.5 * logit - 1.0, 1.5 * logit + 0.5))
    fitted = fit_calibrator(
        logits=logit, labels=label, domains=domain, users=domain, domain_names=["a", "b"], strengths=[1e-9]
    )
    for d in (0, 1):
        scale, bias = _sklearn(logit[domain == d], label[domain == d])
        np.testing.assert_allclose([fitted.scale[d], fitted.bias[d]], [scale, bias], atol=1e-5)
    scale, bias = _sklearn(logit, label)
    np.testing.assert_allclose([fitted.scale[2], fitted.bias[2]], [scale, bias], atol=1e-5)


def test_penalised_line_zeroes_the_gradient():
    """First-order condition, written in standardised coordinates from the definition."""
    rng, logit, domain = _rows(400, num_domains=3)
    label = _click(rng, logit + domain - 1.0)
    fitted = fit_calibrator(
        logits=logit,
        labels=label,
        domains=domain,
        users=domain,
        domain_names=["a", "b", "c"],
        strengths=[25.0],
    )
    mean, spread = logit.mean(), logit.std()
    slope, bias = fitted.scale * spread, fitted.bias + fitted.scale * mean
    z = (logit - mean) / spread
    for d in range(3):
        at = domain == d
        residual = sigmoid(slope[d] * z[at] + bias[d]) - label[at]
        assert abs((residual * z[at]).sum() + 25.0 * (slope[d] - slope[3])) < 1e-4
        assert abs(residual.sum() + 25.0 * (bias[d] - bias[3])) < 1e-4


def test_huge_strength_is_the_global_line():
    rng, logit, domain = _rows(1000, num_domains=4)
    label = _click(rng, logit + domain)
    names = ["a", "b", "c", "d"]
    pulled = fit_calibrator(
        logits=logit, labels=label, domains=domain, users=domain, domain_names=names, strengths=[1e12]
    )
    alone = fit_calibrator(
        logits=logit, labels=label, domains=domain, users=domain, domain_names=names, strengths=[GLOBAL_ONLY]
    )
    np.testing.assert_allclose(pulled.scale, alone.scale, atol=1e-7)
    np.testing.assert_allclose(pulled.bias, alone.bias, atol=1e-7)


def test_cross_validation_picks_own_lines_where_domains_differ_and_the_global_one_where_not():
    rng, logit, domain = _rows(20_000, num_domains=4)
    users = np.arange(len(logit))
    names = ["a", "b", "c", "d"]
    differ = _click(rng, logit + 2.0 * domain)
    alike = _click(rng, logit)
    chosen = fit_calibrator(logits=logit, labels=differ, domains=domain, users=users, domain_names=names)
    assert chosen.strength <= 100
    same = fit_calibrator(logits=logit, labels=alike, domains=domain, users=users, domain_names=names)
    assert same.strength >= 300
    losses = dict(chosen.cross_validation)
    assert losses[chosen.strength] == min(losses.values())


def test_thin_one_class_and_empty_domains_stay_near_the_global_line():
    rng, logit, domain = _rows(5000, num_domains=2)
    label = _click(rng, logit)
    logit = np.append(logit, [0.3, 0.1])
    label = np.append(label, [1, 1])
    domain = np.append(domain, [2, 2])
    names = ["a", "b", "two_clicks", "empty"]
    fitted = fit_calibrator(
        logits=logit,
        labels=label,
        domains=domain,
        users=np.arange(len(logit)),
        domain_names=names,
        strengths=[30.0],
    )
    assert fitted.bias[2] > fitted.bias[4]  # towards more clicks
    assert abs(fitted.bias[2] - fitted.bias[4]) < 0.1  # but two rows against a pull of thirty
    assert fitted.scale[3] == pytest.approx(fitted.scale[4], abs=1e-12)
    assert fitted.bias[3] == pytest.approx(fitted.bias[4], abs=1e-12)


def test_rows_of_unknown_domains_count_for_the_fallback_only():
    rng, logit, _ = _rows(3000)
    label = _click(rng, logit)
    domain = np.where(np.arange(3000) < 1500, 0, 1)  # 1 = D
    fitted = fit_calibrator(
        logits=logit, labels=label, domains=domain, users=domain, domain_names=["a"], strengths=[1e-9]
    )
    assert len(fitted.scale) == 2
    own, everyone = _sklearn(logit[:1500], label[:1500]), _sklearn(logit, label)
    np.testing.assert_allclose([fitted.scale[0], fitted.bias[0]], own, atol=1e-5)
    np.testing.assert_allclose([fitted.scale[1], fitted.bias[1]], everyone, atol=1e-5)


def test_a_reversed_domain_keeps_a_positive_slope_and_its_click_rate():
    rng, logit, domain = _rows(8000, num_domains=2)
    label = _click(rng, np.where(domain == 0, 2.0, -1.0) * logit)
    fitted = fit_calibrator(
        logits=logit, labels=label, domains=domain, users=domain, domain_names=["a", "b"], strengths=[1e-6]
    )
    assert fitted.scale[1] == pytest.approx(0.1 * fitted.scale[2], rel=1e-9)
    at = domain == 1
    assert fitted.apply(logit[at], domain[at]).mean() == pytest.approx(label[at].mean(), abs=1e-6)


def test_separable_rows_give_a_finite_line():
    logit = np.array([-3.0, -2.0, 2.0, 3.0] * 10)
    label = (logit > 0).astype(int)
    fitted = fit_calibrator(
        logits=logit, labels=label, domains=np.zeros(40, int), users=np.arange(40), domain_names=["a"]
    )
    assert np.isfinite(fitted.scale).all()
    assert np.isfinite(fitted.bias).all()


def test_apply_by_hand_and_file_round_trip(tmp_path: Path):
    line = Calibrator(
        ("a", "b"), np.array([1.0, 2.0, 0.5]), np.array([0.0, -1.0, 0.25]), strength=GLOBAL_ONLY
    )
    scores = line.apply([0.0, 1.0, -0.5], [0, 1, 2])
    np.testing.assert_allclose(scores, [0.5, 1 / (1 + np.exp(-1.0)), 0.5], rtol=1e-12)
    line.save(tmp_path / "c.json")
    again = Calibrator.load(tmp_path / "c.json")
    assert again.domains == line.domains
    assert again.strength == GLOBAL_ONLY
    np.testing.assert_array_equal(again.scale, line.scale)
    np.testing.assert_array_equal(again.bias, line.bias)


def test_identity_is_the_sigmoid():
    np.testing.assert_allclose(
        identity_calibrator(["a"]).apply([2.0, -2.0], [0, 1]), sigmoid(np.array([2.0, -2.0]))
    )


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ([], [], "needs validation rows"),
        ([0.0, np.nan], [0, 1], "nan at row 1"),
        ([0.0, 1.0], [1, 1], "all 2 validation labels are 1"),
    ],
)
def test_unusable_rows_are_refused(logits, labels, message):
    zeros = np.zeros(len(logits), dtype=int)
    with pytest.raises(CalibrationError, match=message):
        fit_calibrator(logits=logits, labels=labels, domains=zeros, users=zeros, domain_names=["a"])


def test_a_damaged_file_is_refused(tmp_path: Path):
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(CalibrationError, match=r"c\.json: not a readable calibration"):
        Calibrator.load(tmp_path / "c.json")


@given(st.lists(st.integers(0, 20), min_size=1, max_size=200), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_all_rows_of_a_user_share_a_fold(users, seed):
    folds = user_folds(users, num_folds=3, seed=seed)
    assert folds.min() >= 0
    assert folds.max() < 3
    for user in set(users):
        assert len(set(folds[np.array(users) == user])) == 1
