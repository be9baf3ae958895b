"""Rates clustered by unit and the sample-ratio check, against numbers worked out by hand."""

import math

import numpy as np
import pytest
from scipy.stats import chi2

from training.ab.errors import AbDataError
from training.ab.rate import rate_of, rates_of
from training.ab.srm import sample_ratio


def test_three_units_by_hand():
    # 5 clicks in 10 rows; residuals c - r n are 1 - 1 = 0, 3 - 2 = 1, 1 - 2 = -1; variance 3/2 * 2 / 100
    rate = rate_of(np.array([1.0, 3.0, 1.0]), np.array([2.0, 4.0, 4.0]))
    assert (rate.value, rate.num_units, rate.top, rate.bottom) == (0.5, 3, 5.0, 10.0)
    assert rate.variance == pytest.approx(0.03)
    assert rate.design_effect == pytest.approx(0.03 / (0.25 / 10))


def test_with_one_row_per_unit_it_is_the_variance_of_a_share():
    clicks = np.array([1.0, 0, 0, 1, 0, 0, 0, 1])
    rate = rate_of(clicks, np.ones(8))
    assert rate.variance == pytest.approx(np.var(clicks, ddof=1) / 8)


def test_units_without_rows_do_not_count():
    whole = rate_of(np.array([1.0, 3.0, 1.0]), np.array([2.0, 4.0, 4.0]))
    padded = rate_of(np.array([1.0, 0.0, 3.0, 1.0]), np.array([2.0, 0.0, 4.0, 4.0]))
    assert padded == whole


def test_too_little_gives_nan():
    assert math.isnan(rate_of(np.zeros(2), np.zeros(2)).value)
    assert math.isnan(rate_of(np.ones(1), np.ones(1)).variance)


def test_the_delta_method_agrees_with_resampled_units():
    rng = np.random.default_rng(0)
    rows = rng.poisson(5, 400) + 1
    clicks = rng.binomial(rows, rng.beta(2, 8, 400))
    picks = rng.integers(0, 400, (4000, 400))
    values, _, _ = rates_of(clicks[picks].astype(float), rows[picks].astype(float))
    assert rate_of(clicks.astype(float), rows.astype(float)).variance == pytest.approx(values.var(), rel=0.1)


def test_sample_ratio_by_hand():
    # (60 - 50)^2 / 50 twice = 4; chi-square with 1 degree: p = 0.0455
    result = sample_ratio({"a": 60, "b": 40}, {"a": 1, "b": 1})
    assert result.statistic == pytest.approx(4.0)
    assert result.p_value == pytest.approx(0.04550026389635842)
    assert not result.mismatch
    assert result.expected == {"a": 50.0, "b": 50.0}


def test_sample_ratio_takes_any_shares_and_raises_the_alarm():
    fine = sample_ratio({"a": 9000, "b": 1000}, {"a": 0.9, "b": 0.1})
    assert (fine.statistic, fine.p_value, fine.mismatch) == (0.0, 1.0, False)
    wrong = sample_ratio({"a": 9000, "b": 1000, "c": 1200}, {"a": 0.8, "b": 0.1, "c": 0.1})
    assert wrong.mismatch
    assert wrong.p_value == pytest.approx(chi2.sf(wrong.statistic, 2))


@pytest.mark.parametrize(
    ("units", "shares", "message"),
    [
        ({"a": 3}, {"a": 1.0}, r"needs at least two arms, got \['a'\]"),
        ({"a": 3, "b": 3}, {"a": 1.0}, r"shares are given for \['a'\], but the rows have arms \['a', 'b'\]"),
        ({"a": 3, "b": 3}, {"a": 1.0, "b": 0.0}, "share of arm 'b' must be above 0, got 0"),
        ({"a": 0, "b": 0}, {"a": 1.0, "b": 1.0}, "needs units, got none"),
    ],
)
def test_refused_sample_ratios(units, shares, message):
    with pytest.raises(AbDataError, match=message):
        sample_ratio(units, shares)
