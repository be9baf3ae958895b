"""Words and cells: losses are told like wins."""

import pytest

from training.study.compare import paired
from training.study.summary import difference_cell, markdown_table, sentences, spread_cell, verdict


def told(variant, reference, metric="domain_auc"):
    lower = metric == "logloss"
    pairs = [dict(enumerate(values)) for values in (variant, reference)]
    return verdict(paired(*pairs, lower_is_better=lower).to_json_dict(), metric)


@pytest.mark.parametrize(
    ("variant", "metric", "starts", "ends"),
    [
        ([0.71, 0.72, 0.715], "domain_auc", "better", "better on 3 of 3 seeds"),
        ([0.29, 0.28, 0.285], "domain_auc", "worse", "worse on 3 of 3 seeds"),
        ([0.29, 0.28, 0.285], "logloss", "better", "better on 3 of 3 seeds"),
        ([0.71, 0.72, 0.715], "logloss", "worse", "worse on 3 of 3 seeds"),
        ([0.4, 0.6, 0.51], "domain_auc", "not told apart", "better on 2 of 3 seeds"),
    ],
)
def test_gains_and_losses_have_the_same_words(variant, metric, starts, ends):
    text = told(variant, [0.5, 0.5, 0.5], metric)
    assert text.startswith(starts)
    assert text.endswith(ends)


def test_one_seed_claims_nothing():
    assert told([0.6], [0.5]) == "+0.1000 on one seed, which says nothing of noise"
    assert verdict(None, "domain_auc") == "undefined"


def test_cells():
    assert spread_cell({"mean": 0.5, "sd": 0.01, "values": []}) == "0.5000 ± 0.0100"
    assert spread_cell({"mean": 0.5, "sd": None, "values": []}) == "0.5000"
    assert spread_cell(None) == "-"
    assert difference_cell({"mean": -0.01, "low": -0.02, "high": 0.0}) == "-0.0100 (-0.0200 to +0.0000)"
    assert difference_cell({"mean": 0.01, "low": None, "high": None}) == "+0.0100"
    assert difference_cell(None) == "-"


def test_a_markdown_table():
    assert markdown_table(["a", "b"], [["x", "1"]]) == "| a | b |\n| --- | ---: |\n| x | 1 |"


def test_missing_and_failed_runs_are_told():
    lines = sentences(
        {"differences": [], "planned_runs": 4, "finished_runs": 3, "failed": {"tag, seed 1": "no treatment"}}
    )
    assert lines == [
        "1 of 4 runs are not finished; figures are of the rest.",
        "Failed: tag, seed 1: no treatment",
    ]
