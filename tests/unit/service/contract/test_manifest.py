"""The clusters of a manifest: target sets partition the domains, each cluster has its own graph."""

import json

import pytest
from pydantic import ValidationError

from service.contract.manifest import Cluster, Clustering, Graph, Manifest
from tests.support.bundles import make_schema, manifest_arguments

SCHEMA = make_schema()
CLUSTERS = (
    {"domains": ("home", "sport"), "sources": ("home",)},
    {"domains": ("music",), "sources": ("sport", "music")},
)


def clustering(**changes):
    told = {
        "version": "split",
        "method": "cdc",
        "num_updates": 4,
        "assignment": "a" * 64,
        "clusters": CLUSTERS,
        "default_cluster": 0,
    }
    return Clustering.model_validate(told | changes)


def manifest(*, grouped=None, **changes):
    """Domains home and sport on graph `whole` as cluster 0, music on `cluster-1` as cluster 1."""
    arguments = manifest_arguments(SCHEMA, {"whole": None, "cluster-1": None}, "reject")
    return Manifest(**(arguments | {"clustering": grouped} | changes), files={})


def entry(name, **changes):
    domains = manifest().domains
    return {**domains, name: domains[name].model_copy(update=changes)}


def test_clusters_that_agree_are_kept_as_told():
    made = manifest(grouped=clustering())
    again = Manifest.model_validate_json(made.canonical())
    assert again == made
    assert again.clustering.cluster_of == {"home": 0, "sport": 0, "music": 1}
    assert again.clustering.clusters[1] == Cluster(domains=("music",), sources=("sport", "music"))


def test_a_bundle_without_clusters_does_not_mention_them():
    made = manifest()
    assert "clustering" not in json.loads(made.canonical())
    assert Manifest.model_validate_json(made.canonical()).bundle_id == made.bundle_id


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"default_cluster": 2}, "default_cluster 2 of 2 clusters"),
        ({"default_cluster": -1}, "greater than or equal to 0"),
        ({"num_updates": -1}, "greater than or equal to 0"),
        ({"assignment": "short"}, "String should match pattern"),
        (
            {"clusters": (CLUSTERS[0], {"domains": ("music", "home"), "sources": ()})},
            "domain 'home' is in two clusters",
        ),
        (
            {"clusters": (CLUSTERS[0], {"domains": ("music",), "sources": ("music", "music")})},
            "cluster 1 has the source 'music' twice",
        ),
        (
            {"clusters": (CLUSTERS[0], {"domains": ("music",), "sources": ("news",)})},
            "cluster 1 has the source 'news', which no cluster serves",
        ),
    ],
)
def test_clusters_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        clustering(**changes)


@pytest.mark.parametrize(
    ("clusters", "message"),
    [
        ((CLUSTERS[0], {"domains": (), "sources": ()}), "domain 'music' is in no cluster"),
        (
            (CLUSTERS[0], {"domains": ("music", "news"), "sources": ()}),
            "cluster 1 lists 'news', which is not among the domains",
        ),
        (
            ({"domains": ("home",), "sources": ()}, {"domains": ("sport", "music"), "sources": ()}),
            "domain 'sport': cluster 0, but 1 lists it",
        ),
    ],
)
def test_target_sets_partition_the_domains(clusters, message):
    with pytest.raises(ValidationError, match=message):
        manifest(grouped=clustering(clusters=clusters))


def test_a_cluster_has_one_graph():
    with pytest.raises(ValidationError, match="cluster 0 is served by graphs 'whole' and 'cluster-1'"):
        manifest(grouped=clustering(), domains=entry("sport", graph="cluster-1"))
    with pytest.raises(ValidationError, match="cluster 1 is served by graphs 'cluster-1' and 'whole'"):
        manifest(grouped=clustering(default_cluster=1))


def test_a_graph_of_one_cluster_serves_no_other():
    graphs = manifest().graphs
    graphs["whole"] = graphs["whole"].model_copy(update={"form": "cluster"})
    with pytest.raises(ValidationError, match="graph 'whole' is of one cluster but serves 0 and 1"):
        manifest(
            grouped=clustering(),
            graphs=graphs,
            domains=entry("music", graph="whole"),
        )


def test_a_graph_of_one_domain_may_stand_beside_that_of_its_cluster():
    graphs = manifest().graphs
    own: Graph = graphs["whole"].model_copy(update={"form": "domain"})
    made = manifest(
        grouped=clustering(), graphs=graphs | {"domain-home": own}, domains=entry("home", graph="domain-home")
    )
    assert made.domains["home"].graph == "domain-home"


def test_a_graph_of_one_domain_serves_no_other():
    """Neither a second listed domain nor unlisted ones."""
    graphs = manifest().graphs
    own: Graph = graphs["cluster-1"].model_copy(update={"form": "domain"})
    with pytest.raises(ValidationError, match="graph 'cluster-1' is of one domain but serves 'home' and"):
        manifest(graphs=graphs | {"cluster-1": own}, domains=entry("home", graph="cluster-1"))
    whole = graphs["whole"].model_copy(update={"form": "domain"})
    with pytest.raises(ValidationError, match=r"serves 'home' and '\(unlisted\)'"):
        manifest(graphs=graphs | {"whole": whole}, domains=entry("sport", graph="cluster-1"))
