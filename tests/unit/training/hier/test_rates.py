"""Log odds ratios by counts, against figures made by hand."""

import math

import numpy as np
import pytest

from training.hier.clicks import Impressions
from training.hier.rates import Counted, Elsewhere, columns_before, log_odds, rates, rates_before


def rows(user, item, domain, label):
    user, item, domain = (np.array(own, dtype=np.int64) for own in (user, item, domain))
    return Impressions(user, item, domain, np.array(label, dtype=np.float32))


@pytest.fixture
def log():
    # Domain 0 clicks half of four rows, domain 1 all of two.
    return rows([0, 0, 1, -1, 0, 1], [0, 1, 0, 1, 2, 2], [0, 0, 0, 0, 1, 1], [1, 0, 1, 0, 1, 1])


def test_a_log_odds_ratio_by_hand():
    # 3 clicks of 4 where 1 is expected: ln((3 + 2) / (1 + 2)) - ln((1 + 2) / (3 + 2)) = 2 ln(5 / 3).
    found = log_odds(np.array([4.0, 0.0]), np.array([3.0, 0.0]), np.array([1.0, 0.0]), prior=2.0)
    np.testing.assert_allclose(found, [2 * math.log(5 / 3), 0.0])


def test_an_item_is_measured_by_what_its_domains_expect(log):
    found = rates(log.item, log, size=4, prior=1.0)
    # Item 0: 2 clicks of 2 where 1 is expected; item 1: none of 2; item 2: all, as its domain has it.
    first = math.log(3 / 2) - math.log(1 / 2)
    np.testing.assert_allclose(found, [first, -first, 0.0, 0.0])
    users = rates(log.user, log, size=2, prior=1.0)
    # User 0: 2 of 3, expected 0.5 + 0.5 + 1; user 1: 2 of 2, expected 0.5 + 1. Row 3 is of nobody known.
    assert users[0] == pytest.approx(0.0)
    assert users[1] == pytest.approx(math.log(3 / 2.5) - math.log(1 / 1.5))


def test_a_row_is_told_by_the_rows_before_it():
    own = rows([0, 0, -1, 0], [5, 5, 5, 3], [0, 0, 0, 0], [1, 0, 1, 0])
    found = rates_before(own.item, own, prior=1.0)
    # The domain's rate is .5. Before row 1 item 5 has 1 of 1, before row 2 1 of 2.
    second = math.log(2 / 1.5) - math.log(1 / 1.5)
    np.testing.assert_allclose(found, [0.0, second, 0.0, 0.0], atol=1e-12)
    by_user = rates_before(own.user, own, prior=1.0)
    np.testing.assert_allclose(by_user, [0.0, second, 0.0, 0.0], atol=1e-12)
    assert len(rates_before(own.item[:0], own.where(own.item < 0), prior=1.0)) == 0


def test_columns_are_popularity_and_four_rates():
    elsewhere = Elsewhere(np.array([0.1, 0.2]), np.array([0.3]))
    own = rows([0, -1], [1, 1], [0, 0], [1, 0])
    counted = Counted.of(own, elsewhere, prior=1.0)
    found = counted.columns(np.array([0, -1]), np.array([1, 0]))
    # User 0 has 1 click of 1 where .5 is expected; item 1 has what its domain has.
    here = math.log(2 / 1.5) - math.log(1 / 1.5)
    np.testing.assert_allclose(
        found, [[math.log(2), 0.2, 0.3, 0.0, here], [0.0, 0.1, 0.0, 0.0, 0.0]], atol=1e-12
    )
    before = columns_before(own, elsewhere, prior=1.0)
    np.testing.assert_allclose(before, [[0.0, 0.2, 0.3, 0.0, 0.0], [math.log(2), 0.2, 0.0, here, 0.0]])


def test_nobody_is_known_where_there_are_no_users():
    counted = Counted.of(rows([], [], [], []), Elsewhere(np.array([0.5]), np.zeros(0)), prior=1.0)
    np.testing.assert_allclose(counted.columns(np.array([-1]), np.array([0])), [[0, 0.5, 0, 0, 0]])
