"""Ranking figures by domain and view, and the data folder they start from."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from training.sequences.build import open_log
from training.sequences.config import DomainNames, EventsConfig
from training.sequences.errors import SequenceError
from training.sequences.judge import ViewRanks, candidate_losses, figures
from training.sequences.run import watched


def ranks(*values: int, losses: tuple[float, ...] = (), num_events: int | None = None) -> ViewRanks:
    """Of some known events among 101 candidates."""
    found = np.array(losses or (0.0,) * len(values))
    return ViewRanks(np.array(values, np.int64), found, num_events or len(values), 101)


def test_figures_of_worked_ranks() -> None:
    """Ranks 0 and 3, and a third event of an unknown item, which counts as rank 100 in `all`."""
    found = ranks(0, 3, num_events=3).figures()

    assert (found["num"], found["num_known"]) == (3, 2)
    assert found["hr_5"] == 1.0
    assert found["ndcg_5"] == pytest.approx((1 + 1 / math.log2(5)) / 2)
    assert found["mrr"] == pytest.approx((1 + 1 / 4) / 2)
    assert found["all_hr_5"] == pytest.approx(2 / 3)
    assert found["all_ndcg_5"] == pytest.approx((1 + 1 / math.log2(5)) / 3)
    assert found["all_mrr"] == pytest.approx((1 + 1 / 4 + 1 / 101) / 3)


def test_served_takes_the_view_of_each_domain() -> None:
    """The single view where it is switched on; a domain without events is left out of the mean."""
    judged = {"cross": (ranks(0), ranks(9), None), "single": (ranks(7), ranks(2), None)}
    found = figures(judged, ("a", "b", "c"), (False, True, False))  # type: ignore[arg-type]

    assert found["served"]["domains"]["a"] == found["cross"]["domains"]["a"]
    assert found["served"]["domains"]["b"] == found["single"]["domains"]["b"]
    assert set(found["served"]["domains"]) == {"a", "b"}
    assert found["served"]["mean"]["hr_5"] == 1.0
    assert found["cross"]["mean"]["hr_5"] == 0.5


def test_epochs_are_chosen_by_the_better_view_of_each_domain() -> None:
    """Mean over domains; nothing to choose by is refused."""
    found = watched({"cross": (ranks(0), ranks(1)), "single": (ranks(1), ranks(0))})

    assert found == 1.0
    with pytest.raises(
        SequenceError, match="no held-out validation event is of an item that training has met"
    ):
        watched({"cross": (ranks(num_events=2), None)})


def test_names_of_domains_come_from_a_csv_file(tmp_path: Path) -> None:
    """By id; a file that is not there is named."""
    pl.DataFrame(
        {"user_id": ["u"] * 4, "item_id": [1, 2, 1, 2], "domain_id": [0, 1, 0, 1], "position": [0, 1, 2, 3]}
    ).write_parquet(tmp_path / "events.parquet")
    config = EventsConfig(domain_names=DomainNames(file="names.csv", key="id", name="called"))
    with pytest.raises(SequenceError, match=r"names\.csv: cannot read the names of domains"):
        open_log(config, tmp_path)
    (tmp_path / "names.csv").write_text("id,called\n0,toys\n1,books\n")

    assert open_log(config, tmp_path).domains == ("books", "toys")


def test_losses_are_those_of_training() -> None:
    """Scores 2 and -1, the positive in whatever column; two negatives are averaged, none give 0."""
    pair, three = torch.tensor([[2.0, -1.0]]), torch.tensor([[-1.0, 2.0, 2.0]])
    first, middle = torch.tensor([0]), torch.tensor([1])

    assert candidate_losses(pair, first, form="bce") == pytest.approx([0.440190], abs=1e-6)
    assert candidate_losses(pair, first, form="bpr_logit") == pytest.approx([0.048587], abs=1e-6)
    assert candidate_losses(pair, first, form="bpr_double_sigmoid") == pytest.approx([0.433303], abs=1e-6)
    wanted = (0.048587 + math.log(2)) / 2
    assert candidate_losses(three, middle, form="bpr_logit") == pytest.approx([wanted], abs=1e-6)
    assert candidate_losses(torch.tensor([[1.0]]), first, form="bpr_logit").tolist() == [0.0]
