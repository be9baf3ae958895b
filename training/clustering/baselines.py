"""Groupings that CDC is compared with, behind one interface.

Reads domain names and, for TAG, an affinity matrix; gives labels and source sets. Invariants: labels use
every cluster 0..K-1; the source set of a baseline's cluster is the cluster itself.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import yaml

from training.clustering.arrays import FloatArray, IntArray, as_finite
from training.clustering.errors import GroupingError
from training.clustering.kmeans_start import numbered_by_first, require_clusters
from training.clustering.recluster import cluster_members
from training.clustering.state import CdcState


@dataclass(frozen=True, eq=False)
class Groups:
    """What a grouping makes.

    Attributes:
        method: Name of the grouping.
        labels: (D,) cluster of each domain.
        sources: K arrays of ids, S_k.
    """

    method: str
    labels: IntArray
    sources: tuple[IntArray, ...]


class Grouping(Protocol):
    """Anything that divides domains among clusters."""

    @property
    def method(self) -> str:
        """Name in the artefact and the report."""
        ...

    def group(self, domains: tuple[str, ...]) -> Groups:
        """Divide the domains.

        Raises:
            ClusteringError: it cannot be done for these domains.
        """
        ...


def _own_sources(method: str, labels: IntArray) -> Groups:
    num_clusters = int(labels.max()) + 1
    return Groups(method=method, labels=labels, sources=tuple(cluster_members(labels, num_clusters)))


@dataclass(frozen=True)
class OneCluster:
    """All domains in one cluster."""

    method: str = "one_cluster"

    def group(self, domains: tuple[str, ...]) -> Groups:
        """One label for all."""
        return _own_sources(self.method, np.zeros(len(domains), dtype=np.int64))


@dataclass(frozen=True)
class OnePerDomain:
    """Each domain its own cluster."""

    method: str = "one_per_domain"

    def group(self, domains: tuple[str, ...]) -> Groups:
        """Labels 0..D-1."""
        return _own_sources(self.method, np.arange(len(domains), dtype=np.int64))


@dataclass(frozen=True)
class RandomGroups:
    """K clusters of equal size up to one domain, drawn at random."""

    num_clusters: int
    seed: int = 0
    method: str = "random"

    def group(self, domains: tuple[str, ...]) -> Groups:
        """Shuffle, deal out in turn.

        Raises:
            RulesError: K below 1 or above D.
        """
        require_clusters(self.num_clusters, len(domains))
        order = np.random.default_rng(self.seed).permutation(len(domains))
        labels = np.empty(len(domains), dtype=np.int64)
        labels[order] = np.arange(len(domains)) % self.num_clusters
        return _own_sources(self.method, numbered_by_first(labels))


@dataclass(frozen=True)
class ManualGroups:
    """Groups of a yaml or json file: lists of domain names, in a list or in a mapping by cluster name."""

    path: Path
    method: str = "manual"

    def group(self, domains: tuple[str, ...]) -> Groups:
        """Read the file.

        Raises:
            GroupingError: the file cannot be read, has another form, or does not list each domain exactly
            once.
        """
        labels: dict[str, int] = {}
        for k, names in enumerate(self._lists()):
            for name in names:
                if name in labels:
                    raise GroupingError(f"{self.path}: domain {name!r} is listed twice")
                labels[name] = k
        if strangers := sorted(set(labels) - set(domains)):
            raise GroupingError(f"{self.path}: {strangers[0]!r} is not a domain of this data")
        if left := sorted(set(domains) - set(labels)):
            raise GroupingError(f"{self.path}: domain {left[0]!r} is in no group")
        return _own_sources(self.method, np.array([labels[name] for name in domains], dtype=np.int64))

    def _lists(self) -> list[list[str]]:
        try:
            text = self.path.read_text(encoding="utf-8")
            content: Any = json.loads(text) if self.path.suffix == ".json" else yaml.safe_load(text)
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise GroupingError(f"{self.path}: cannot be read ({error})") from error
        lists = list(content.values()) if isinstance(content, dict) else content
        if (
            not isinstance(lists, list)
            or not lists
            or not all(isinstance(names, list) and names for names in lists)
        ):
            raise GroupingError(f"{self.path}: must hold groups, each a list of at least one domain name")
        return [[str(name) for name in names] for names in lists]


@dataclass(frozen=True, eq=False)
class TagGroups:
    """Task affinity grouping (Fifty et al. 2021) as a partition into K clusters.

    Maximises the sum over domains of the mean affinity onto it of the other members of its cluster; a
    domain alone in its cluster counts 0. TAG searches all sets of tasks by branch and bound, which hundreds
    of domains forbid: here single moves climb from `num_starts` random partitions, and the best is kept.

    Attributes:
        affinity: (D, D) Z, rows sources, columns targets; averaged over training, MI stands for it.
        num_clusters: K.
        seed: Of the starts.
        num_starts: Random partitions to climb from.
    """

    affinity: FloatArray
    num_clusters: int
    seed: int = 0
    num_starts: int = 10
    method: str = "tag"

    def group(self, domains: tuple[str, ...]) -> Groups:
        """Search.

        Raises:
            RulesError: K below 1 or above D.
            MatrixError: an affinity of another shape, or not finite.
        """
        num_domains = len(domains)
        require_clusters(self.num_clusters, num_domains)
        pairs = mutual_affinity(as_finite("affinity", self.affinity, (num_domains, num_domains)))
        rng = np.random.default_rng(self.seed)
        best_score, best = -np.inf, np.zeros(num_domains, dtype=np.int64)
        for _ in range(self.num_starts):
            labels = rng.permutation(np.arange(num_domains) % self.num_clusters)
            labels = climbed(pairs, labels, self.num_clusters)
            score = tag_score(pairs, labels, self.num_clusters)
            if score > best_score + 1e-12 * max(1.0, abs(score)):
                best_score, best = score, labels
        return _own_sources(self.method, numbered_by_first(best))


def mutual_affinity(affinity: FloatArray) -> FloatArray:
    """Z + Z^T with a zero diagonal: all that the TAG score of a partition reads."""
    pairs = affinity + affinity.T
    np.fill_diagonal(pairs, 0.0)
    return pairs


def tag_score(pairs: FloatArray, labels: IntArray, num_clusters: int) -> float:
    """Sum over domains of the mean affinity onto it within its cluster."""
    member = np.eye(num_clusters)[labels]
    within = np.einsum("uk,uv,vk->k", member, pairs, member, optimize=True) / 2
    return float((within / np.maximum(member.sum(axis=0) - 1, 1)).sum())


def climbed(pairs: FloatArray, labels: IntArray, num_clusters: int) -> IntArray:
    """Move single domains while the score rises; no cluster is emptied.

    Args:
        pairs: (D, D) from `mutual_affinity`.
        labels: (D,) start.
        num_clusters: K.

    Returns:
        (D,) labels that no single move betters.
    """
    labels = labels.copy()
    links = pairs @ np.eye(num_clusters)[labels]
    counts = np.bincount(labels, minlength=num_clusters)
    within = np.bincount(labels, weights=links[np.arange(len(labels)), labels], minlength=num_clusters) / 2
    moved = True
    while moved:
        moved = False
        for d in range(len(labels)):
            home = int(labels[d])
            if counts[home] == 1:
                continue
            held = within / np.maximum(counts - 1, 1)
            joined = (within + links[d]) / np.maximum(counts, 1)
            left = (within[home] - links[d, home]) / max(counts[home] - 2, 1)
            change = joined - held + left - held[home]
            change[home] = 0.0
            k = int(change.argmax())
            if change[k] <= 1e-12 * max(1.0, float(np.abs(held).sum())):
                continue
            within[home] -= links[d, home]
            within[k] += links[d, k]
            counts[home] -= 1
            counts[k] += 1
            links[:, home] -= pairs[:, d]
            links[:, k] += pairs[:, d]
            labels[d] = k
            moved = True
    return labels


@dataclass(frozen=True, eq=False)
class CdcGroups:
    """The clusters and source sets of a CDC state, as a grouping."""

    state: CdcState
    method: str = "cdc"

    def group(self, domains: tuple[str, ...]) -> Groups:
        """Labels and source sets of the latest update.

        Raises:
            StateError: before the first update.
            GroupingError: the state is of another number of domains.
        """
        clusters = self.state.require_clusters()
        if len(domains) != len(clusters.labels):
            raise GroupingError(f"{len(domains)} domains; the state has {len(clusters.labels)}")
        return Groups(method=self.method, labels=clusters.labels, sources=clusters.sources)
