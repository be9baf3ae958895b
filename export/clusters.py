"""The clusters of a run, as the manifest tells them, checked against what training left behind.

Reads `clusters/assignment.json`, and of a split run each `cluster-<k>/cluster.json`. Invariant: every domain
of the schema is in one target set; those that the assignment does not list go to the default cluster.
"""

from __future__ import annotations

from typing import Any

from export.errors import RunError
from service.contract.manifest import Cluster, Clustering
from service.contract.schema import FeatureSchema
from training.clustering.assignment import ClusterAssignment, load_assignment
from training.clustering.errors import AssignmentError
from training.engine.artefacts import CLUSTER_TABLES, RunFolder, load_json
from training.models.base import CtrModel

SPLIT = "split"


def read_clustering(run: RunFolder, schema: FeatureSchema, metrics: dict[str, Any]) -> Clustering | None:
    """The clusters of a run; None when it has none.

    Args:
        run: A finished run.
        schema: Of its data.
        metrics: Content of its `metrics.json`.

    Raises:
        RunError: The assignment is missing, invalid, or not the one the run was made with.
    """
    said = metrics.get("clustering")
    if said is None:
        return None
    try:
        assignment = load_assignment(run.clusters)
    except AssignmentError as error:
        raise RunError(str(error)) from error
    if assignment.digest != said["assignment"]:
        raise RunError(
            f"{run.clusters}: the assignment has digest {assignment.digest[:12]}, the run was made with "
            f"{said['assignment'][:12]}"
        )
    return Clustering(
        version=said["version"],
        method=assignment.method,
        num_updates=assignment.num_updates,
        assignment=assignment.digest,
        clusters=tuple(_cluster(assignment, schema, k) for k in range(assignment.num_clusters)),
        default_cluster=assignment.default_cluster,
    )


def _cluster(assignment: ClusterAssignment, schema: FeatureSchema, k: int) -> Cluster:
    """T_k and S_k among the schema's domains; those that are not assigned train and use the default."""
    new = set(schema.domains) - set(assignment.domains) if k == assignment.default_cluster else set()
    return Cluster(
        domains=tuple(name for name in schema.domains if assignment.cluster_of(name) == k),
        sources=tuple(name for name in schema.domains if name in new or name in assignment.sources[k]),
    )


def served_domains(clustering: Clustering, schema: FeatureSchema, k: int) -> tuple[int, ...]:
    """Indices of the domains of cluster k; D, the unknown domain, among them for the default cluster."""
    served = tuple(schema.domain_index(name) for name in clustering.clusters[k].domains)
    return (*served, schema.num_domains) if k == clustering.default_cluster else served


def require_towers(model: CtrModel, clustering: Clustering, schema: FeatureSchema, *, run: RunFolder) -> None:
    """Refuse a model whose towers do not go by the clusters.

    Raises:
        RunError: They do not; the message names the first domain.
    """
    buffers = dict(model.named_buffers())
    table = next((buffers[name] for name in CLUSTER_TABLES if name in buffers), None)
    if table is None:
        raise RunError(f"{run.model}: has no towers, but the run has {len(clustering.clusters)} clusters")
    cluster_of = clustering.cluster_of
    wanted = [*(cluster_of[name] for name in schema.domains), clustering.default_cluster]
    names = (*schema.domains, "(unknown)")
    for name, tower, cluster in zip(names, table.tolist(), wanted, strict=True):
        if tower != cluster:
            raise RunError(f"{run.model}: domain '{name}' has tower {tower}, the assignment says {cluster}")


def require_described(part: RunFolder, clustering: Clustering, k: int) -> None:
    """Refuse the run of one cluster that was made for other domains.

    Raises:
        RunError: `cluster.json` and the assignment differ.
    """
    told = load_json(part.cluster)
    wanted = {
        "cluster": k,
        "domains": list(clustering.clusters[k].domains),
        "sources": list(clustering.clusters[k].sources),
        "serves_unknown": k == clustering.default_cluster,
    }
    for key, value in wanted.items():
        if told.get(key) != value:
            raise RunError(f"{part.cluster}: {key} is {told.get(key)}, the assignment says {value}")
