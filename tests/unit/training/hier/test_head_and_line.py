"""The few-shot head and the line of a new domain."""

import numpy as np
import pytest

from training.hier.domain_line import DomainLine, line_from_prior, refitted_line
from training.hier.errors import OnboardError
from training.hier.factors import Factors
from training.hier.head import fit_head, head_inputs
from training.models.hier import HEAD_COLUMNS, zero_shot_head


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.fixture
def factors():
    rng = np.random.default_rng(2)
    users, items = (rng.normal(size=(30, 7)).astype(np.float32) for _ in range(2))
    return Factors(users, items, users.mean(axis=0), width=4)


def pairs(rng, size=4000):
    return rng.integers(-1, 30, size), rng.integers(0, 30, size)


def test_without_rows_the_head_gives_the_zero_shot_score(factors):
    users, items = pairs(np.random.default_rng(0), 50)
    inputs = head_inputs(factors, users, items, np.zeros((50, 5)))
    head = fit_head(inputs[:0], np.zeros(0, np.float32), scale=2.0, bias=-1.0)
    assert head.tolist() == zero_shot_head(4)
    np.testing.assert_allclose(inputs @ head, factors.score(users, items), rtol=1e-5, atol=1e-6)


def test_the_head_minimises_its_penalised_loss(factors):
    rng = np.random.default_rng(1)
    users, items = pairs(rng, 300)
    inputs = head_inputs(factors, users, items, rng.random((300, 5)))
    labels = (rng.random(300) < 0.3).astype(np.float32)
    head = fit_head(inputs, labels, scale=0.7, bias=-0.5, strength=5.0)
    pull = 5.0 * (inputs**2).mean(axis=0)
    pull[: len(HEAD_COLUMNS)] *= 0.1
    slope = 0.7 * inputs.T @ (sigmoid(0.7 * inputs @ head - 0.5) - labels)
    slope += pull * (head - np.asarray(zero_shot_head(4)))
    np.testing.assert_allclose(slope, 0, atol=1e-3)


def test_more_rows_move_the_head_further(factors):
    rng = np.random.default_rng(3)
    users, items = pairs(rng)
    inputs = head_inputs(factors, users, items, np.zeros((len(users), 5)))
    truth = np.asarray([*[0.0] * len(HEAD_COLUMNS), 3.0, -3.0, 3.0, -3.0])
    labels = (rng.random(len(users)) < sigmoid(inputs @ truth)).astype(np.float32)
    losses = []
    for n in (0, 50, 4000):
        logits = inputs @ fit_head(inputs[:n], labels[:n], scale=1.0, bias=0.0)
        losses.append(float((np.logaddexp(0, logits) - labels * logits).mean()))
    assert losses[0] > losses[1] > losses[2]


def test_a_head_is_pulled_to_where_it_starts(factors):
    rng = np.random.default_rng(5)
    users, items = pairs(rng, 60)
    inputs = head_inputs(factors, users, items, rng.random((60, 5)))
    labels = (rng.random(60) < 0.5).astype(np.float32)
    start = rng.random(inputs.shape[1])
    assert fit_head(inputs[:0], labels[:0], scale=1.0, bias=0.0, start=start).tolist() == start.tolist()
    strong = fit_head(inputs, labels, scale=1.0, bias=0.0, strength=1e9, start=start)
    np.testing.assert_allclose(strong, start, atol=1e-5)


def test_a_prior_line_meets_the_click_rate():
    logits = np.random.default_rng(0).normal(3.0, 2.0, 500)
    line = line_from_prior(logits, scale=1.5, rate=0.04)
    assert sigmoid(1.5 * logits + line.bias).mean() == pytest.approx(0.04, abs=1e-9)
    with pytest.raises(OnboardError, match="the prior click rate is 1; allowed is what lies between 0 and 1"):
        line_from_prior(logits, scale=1.5, rate=1.0)


def test_a_line_is_refitted_by_stages():
    rng = np.random.default_rng(4)
    logits = rng.normal(size=5000)
    labels = (rng.random(5000) < sigmoid(0.5 * logits - 1.0)).astype(np.float64)
    prior = DomainLine(2.0, 0.0, "prior")
    assert refitted_line(prior, logits[:199], labels[:199]) == prior
    some = refitted_line(prior, logits[:500], labels[:500])
    assert (some.scale, some.stage) == (2.0, "bias")
    expected = (labels[:500].sum() + 20 * sigmoid(2 * logits[:500]).mean()) / 520
    assert sigmoid(2 * logits[:500] + some.bias).mean() == pytest.approx(expected)
    many = refitted_line(prior, logits, labels)
    assert many.stage == "line"
    assert (many.scale, many.bias) == (pytest.approx(0.5, abs=0.1), pytest.approx(-1.0, abs=0.1))
    few_clicks = np.zeros(5000)
    few_clicks[:49] = 1.0
    assert refitted_line(prior, logits, few_clicks).stage == "bias"
