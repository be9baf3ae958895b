"""Which graphs a run gets: worded refusals of forms it cannot have."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

import export.forms
from export.errors import RunError
from export.forms import FormChoice, choose_form
from export.run_folder import Part, RunFolder
from export.timing import rows_per_second
from service.contract.manifest import Cluster, Clustering
from tests.support.clustered_run import clustered
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


def choose(monkeypatch: pytest.MonkeyPatch, folder: Path, made: RunFolder, gains: dict[str, float], named=()):
    """Keys and forms that `auto` takes where graphs gain what is said, and the evidence."""

    def compare(_, general: Part, special: Part) -> dict[str, Any]:
        return {"gain": gains[special.key], "rows_per_s": 100, "against": general.key}

    monkeypatch.setattr(export.forms._Trial, "compare", compare)
    chosen, evidence = choose_form(made, "auto", list(named), folder, lambda _: None)
    return {part.key: (part.form, part.domains) for part in chosen.parts}, evidence


def test_auto_takes_graphs_of_clusters_where_every_one_is_worth_it(monkeypatch, tmp_path):
    """And says how many were, with the figures of each."""
    parts, evidence = choose(monkeypatch, tmp_path, clustered("aread"), {"cluster-0": 1.5, "cluster-1": 1.1})
    assert parts == {"cluster-0": ("cluster", (0, 2)), "cluster-1": ("cluster", (1, 3))}
    assert evidence["cluster-0"] == {
        "gain": 1.5,
        "rows_per_s": 100,
        "against": "whole",
        "reason": "2 of 2 cluster graphs are at least 1.1 times as fast as the whole",
    }


def test_auto_keeps_the_whole_where_one_cluster_is_not_worth_it(monkeypatch, tmp_path):
    """What was measured and not taken stands beside the reason."""
    gains = {"cluster-0": 1.5, "cluster-1": 1.09}
    parts, evidence = choose(monkeypatch, tmp_path, clustered("aread"), gains)
    assert parts == {"whole": ("whole", (0, 1, 2, 3))}
    assert set(evidence["whole"]["not_taken"]) == {"cluster-0", "cluster-1"}
    assert evidence["whole"]["reason"].startswith("1 of 2 cluster graphs")


def test_auto_gives_hot_domains_graphs_of_their_own_where_these_gain(monkeypatch, tmp_path):
    """A domain is measured against the graph that would serve it instead."""
    gains = {"cluster-0": 1.5, "cluster-1": 1.5, "domain-0": 1.2, "domain-1": 1.0}
    parts, evidence = choose(monkeypatch, tmp_path, clustered("aread"), gains, ("home", "search"))
    assert parts == {
        "cluster-0": ("cluster", (2,)),
        "cluster-1": ("cluster", (1, 3)),
        "domain-0": ("domain", (0,)),
    }
    assert (evidence["domain-0"]["gain"], evidence["domain-0"]["against"]) == (1.2, "cluster-0")
    assert set(evidence["cluster-1"]["not_taken"]) == {"domain-1"}


@pytest.mark.parametrize(
    ("name", "densities", "why"),
    [
        ("aread", (1.0, 1.0, 1.0), "for each cluster the masks of its domains together use every expert"),
        ("cesaa", (), "experts that a domain may not choose are left out of graphs of one domain only"),
        (
            "mmoe",
            (),
            "it has one tower and no masks, and a gate that is a softmax gives no expert a weight of zero",
        ),
        ("ple_clusters", (), "only MMoE and PLE of one level are cut to the tower of a cluster"),
    ],
)
def test_a_model_with_nothing_to_drop_for_a_cluster_says_why(name, densities, why, monkeypatch, tmp_path):
    """Refused where it was asked for; kept as the reason of the whole graph where it was not."""
    made = clustered(name, densities=densities)
    message = (
        f"form cluster: a model of type {name} has nothing to drop for the domains of one cluster: {why}"
    )
    with pytest.raises(RunError, match=message):
        choose_form(made, "cluster", [], tmp_path, lambda _: None)
    parts, evidence = choose(monkeypatch, tmp_path, made, {})
    assert list(parts) == ["whole"]
    assert evidence["whole"]["reason"] == message
