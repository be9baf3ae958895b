"""The checks of expressions find what they are there for."""

import pytest

from tests.support.promql import names, problems


def test_a_right_expression_has_no_problems():
    expr = (
        "histogram_quantile(0.99, sum by (le, arm) "
        '(rate(ctr_score_duration_seconds_bucket{stage="total"}[5m]))) / scalar(max(ctr_deadline_seconds))'
    )
    assert problems(expr) == []
    assert names(expr) == {"ctr_score_duration_seconds", "ctr_deadline_seconds"}


@pytest.mark.parametrize(
    ("expr", "problem"),
    [
        ("sum(ctr_nothing)", "'ctr_nothing' is no series of the metric table"),
        (
            "rate(ctr_score_duration_seconds[1m])",
            "'ctr_score_duration_seconds' is no series of the metric table",
        ),
        ('rate(ctr_exposures_total{arm="a"}[1m])', "ctr_exposures_total has no label 'arm'"),
        (
            "sum(ctr_exposures_total)",
            "ctr_exposures_total is counted up, so only its rate or increase says something",
        ),
        ("rate(ctr_exposures_total)", "ctr_exposures_total: a range and a function over it go together"),
        ("sum by (arm) (rate(ctr_exposures_total[1m]))", "no metric here has the label 'arm' to group by"),
        (
            "histogram_quantile(0.5, sum by (stage) (rate(ctr_score_duration_seconds_bucket[1m])))",
            "histogram_quantile needs sum by (le, ...) of the rate of buckets",
        ),
    ],
)
def test_each_mistake_is_told(expr, problem):
    assert problem in problems(expr)
