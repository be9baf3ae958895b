"""Which graphs a run gets: worded refusals of forms it cannot have."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from export.errors import RunError
from export.forms import FormChoice, choose_form
from export.run_folder import RunFolder
from export.timing import rows_per_second
from service.contract.manifest import Cluster, Clustering
from tests.support.schemas import full_schema

SCHEMA = full_schema()
SPLIT = Clustering(
    version="split",
    method="cdc",
    num_updates=1,
    assignment="0" * 64,
    clusters=(Cluster(domains=SCHEMA.domains, sources=SCHEMA.domains),),
    default_cluster=0,
)


def run(clustering: Clustering | None = None) -> RunFolder:
    """A run without models: forms are refused before these are looked at."""
    return RunFolder(
        path=Path("somewhere/run"),
        parts=(),
        schema=SCHEMA,
        prepared=cast("Any", None),
        metrics={"model": "mmoe"},
        config_text="",
        clustering=clustering,
    )


@pytest.mark.parametrize(
    ("form", "named", "clustering", "message"),
    [
        ("whole", ["home"], None, "form whole has one graph, but own graphs are wanted for home"),
        ("whole", [], SPLIT, "form whole: run 'run' has a model for each cluster, no model of all domains"),
        ("cluster", [], None, "form cluster: run 'run' has no clusters"),
        ("domain", [], None, "form domain: no domain gets a graph; give --hot-domains or --domain-graphs"),
    ],
)
def test_forms_that_a_run_cannot_have(
    form: FormChoice, named: list[str], clustering: Clustering | None, message: str, tmp_path: Path
):
    """Each says what is missing."""
    with pytest.raises(RunError, match=message):
        choose_form(run(clustering), form, named, tmp_path, lambda _: None)


def test_rates_are_rows_by_the_median_turn():
    """Twice the work is half the rate, give or take what a busy machine does."""

    def work(times: int):
        return lambda _: sum(k * k for k in range(20_000 * times))

    rates = rows_per_second(
        {"once": work(1), "eight times": work(8)}, [{"request_index": [0, 0]}], rounds=5, round_s=0.002
    )

    assert 2 < rates["once"] / rates["eight times"] < 32
