"""The artefact of clustering: which cluster serves a domain, and which domains train it.

    assignment.json   `ClusterAssignment`
    matrices.npz      mi, mh, mt, mc (where the method has them), rows and columns in the order of `domains`

Invariants: targets T_k partition the domains, none empty; no source set S_k is empty; every name is a
domain. Training, the manifest and the service's routing all read this and nothing else of clustering.
"""

import hashlib
from collections import Counter
from pathlib import Path
from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from training.clustering.arrays import FloatArray, IntArray
from training.clustering.baselines import Groups
from training.clustering.errors import AssignmentError
from training.clustering.state import CdcState
from training.engine.files import write_atomically, write_text

ASSIGNMENT_FILE = "assignment.json"
MATRICES_FILE = "matrices.npz"


class ClusterAssignment(BaseModel):
    """Domains to clusters, and clusters to training domains.

    Attributes:
        format_version: Of this file.
        method: `cdc` or the name of a grouping baseline.
        num_clusters: K.
        domains: All D domain names, in the order of the matrices.
        targets: K lists of names, T_k.
        sources: K lists of names, S_k.
        centres: K names, the most cohesive domain of each T_k; empty for a baseline.
        default_cluster: Cluster of a domain that is not listed.
        attached: Domains that were too small to be measured and were attached afterwards.
        num_updates: Updates that led here; 0 for a baseline.
        data_digest: Of the prepared data.
        config_digest: Of the config.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = 1
    method: str
    num_clusters: int
    domains: tuple[str, ...]
    targets: tuple[tuple[str, ...], ...]
    sources: tuple[tuple[str, ...], ...]
    centres: tuple[str, ...] = ()
    default_cluster: int = 0
    attached: tuple[str, ...] = ()
    num_updates: int = 0
    data_digest: str = ""
    config_digest: str = ""

    @model_validator(mode="after")
    def _valid(self) -> Self:
        if self.format_version != 1:
            raise ValueError(f"format_version {self.format_version}; this code reads 1")
        known = set(self.domains)
        if len(known) != len(self.domains):
            raise ValueError(f"domains hold {_repeated(self.domains)} twice")
        for name, sets in (("targets", self.targets), ("sources", self.sources)):
            if len(sets) != self.num_clusters:
                raise ValueError(f"{len(sets)} {name}; num_clusters is {self.num_clusters}")
            for k, names in enumerate(sets):
                _check_set(f"{name}[{k}]", names, known)
        placed = [name for names in self.targets for name in names]
        if len(set(placed)) != len(placed):
            raise ValueError(f"domain {_repeated(placed)} is in two targets")
        if left := sorted(known - set(placed)):
            raise ValueError(f"domain {left[0]!r} is in no target")
        self._check_centres(known)
        return self

    def _check_centres(self, known: set[str]) -> None:
        if self.centres and len(self.centres) != self.num_clusters:
            raise ValueError(f"{len(self.centres)} centres; num_clusters is {self.num_clusters}")
        for k, name in enumerate(self.centres):
            if name not in self.targets[k]:
                raise ValueError(f"centre {name!r} is not in targets[{k}]")
        if not 0 <= self.default_cluster < self.num_clusters:
            raise ValueError(f"default_cluster {self.default_cluster}; num_clusters is {self.num_clusters}")
        if strangers := sorted(set(self.attached) - known):
            raise ValueError(f"attached has the unknown domain {strangers[0]!r}")

    @property
    def clusters(self) -> dict[str, int]:
        """Cluster of each domain."""
        return {name: k for k, names in enumerate(self.targets) for name in names}

    @property
    def labels(self) -> IntArray:
        """(D,) cluster of each domain in the order of `domains`."""
        clusters = self.clusters
        return np.array([clusters[name] for name in self.domains], dtype=np.int64)

    def cluster_of(self, domain: str) -> int:
        """Cluster that serves `domain`; the default cluster for a domain that is not listed."""
        return self.clusters.get(domain, self.default_cluster)

    @property
    def digest(self) -> str:
        """sha256 of the content, hexadecimal."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def _check_set(name: str, names: tuple[str, ...], known: set[str]) -> None:
    if not names:
        raise ValueError(f"{name} is empty")
    if strangers := sorted(set(names) - known):
        raise ValueError(f"{name} has the unknown domain {strangers[0]!r}")
    if len(set(names)) != len(names):
        raise ValueError(f"{name} holds {_repeated(names)} twice")


def _repeated(names: tuple[str, ...] | list[str]) -> str:
    return repr(Counter(names).most_common(1)[0][0])


def make_assignment(
    groups: Groups,
    domains: tuple[str, ...],
    *,
    centres: IntArray | None = None,
    attached: tuple[str, ...] = (),
    default_cluster: int = 0,
    num_updates: int = 0,
    data_digest: str = "",
    config_digest: str = "",
) -> ClusterAssignment:
    """Name the groups that a grouping made.

    Args:
        groups: Labels and source sets over D domains.
        domains: (D,) names.
        centres: (K,) ids, or None.
        attached: Names of domains attached afterwards.
        default_cluster: Cluster of a domain that is not listed.
        num_updates: Updates that led here.
        data_digest: Of the prepared data.
        config_digest: Of the config.

    Raises:
        AssignmentError: names that do not fit the groups, or an invalid result.
    """
    if len(domains) != len(groups.labels):
        raise AssignmentError(f"{len(domains)} names for {len(groups.labels)} domains")
    names = np.array(domains, dtype=object)
    num_clusters = len(groups.sources)
    try:
        return ClusterAssignment(
            method=groups.method,
            num_clusters=num_clusters,
            domains=domains,
            targets=tuple(tuple(names[groups.labels == k]) for k in range(num_clusters)),
            sources=tuple(tuple(names[np.sort(ids)]) for ids in groups.sources),
            centres=() if centres is None else tuple(names[centres]),
            attached=attached,
            default_cluster=default_cluster,
            num_updates=num_updates,
            data_digest=data_digest,
            config_digest=config_digest,
        )
    except ValidationError as error:
        raise AssignmentError(_first_message(error)) from error


def cdc_assignment(
    state: CdcState, domains: tuple[str, ...], *, data_digest: str, config_digest: str
) -> ClusterAssignment:
    """The assignment that a state stands for; the default cluster is the one with most training rows.

    Raises:
        StateError: before the first update.
        AssignmentError: names that do not fit the state.
    """
    clusters = state.require_clusters()
    rows = np.bincount(clusters.labels, weights=state.shares, minlength=len(clusters.sources))
    return make_assignment(
        Groups(method="cdc", labels=clusters.labels, sources=clusters.sources),
        domains,
        centres=clusters.centres,
        default_cluster=int(rows.argmax()),
        num_updates=state.t,
        data_digest=data_digest,
        config_digest=config_digest,
    )


def save_assignment(
    folder: Path, assignment: ClusterAssignment, matrices: dict[str, FloatArray] | None = None
) -> None:
    """Write `assignment.json`, after `matrices.npz` where there are matrices."""
    if matrices:
        write_atomically(folder / MATRICES_FILE, lambda part: _save_arrays(part, matrices))
    write_text(folder / ASSIGNMENT_FILE, assignment.model_dump_json(indent=2) + "\n")


def _save_arrays(path: Path, matrices: dict[str, FloatArray]) -> None:
    with path.open("wb") as handle:
        np.savez_compressed(handle, allow_pickle=False, **matrices)


def state_matrices(state: CdcState) -> dict[str, FloatArray]:
    """mi, mh (D, D), mt (R, D), mc (D, D) of the latest update.

    Raises:
        StateError: before the first update.
    """
    clusters = state.require_clusters()
    return {"mi": clusters.mi, "mh": clusters.mh, "mt": clusters.mt, "mc": clusters.mc}


def load_assignment(folder: Path) -> ClusterAssignment:
    """Read `assignment.json` of a folder.

    Raises:
        AssignmentError: it is missing or not valid; the message says which file and what.
    """
    path = folder / ASSIGNMENT_FILE
    try:
        return ClusterAssignment.model_validate_json(path.read_bytes())
    except OSError as error:
        raise AssignmentError(f"{path}: {error.strerror}") from error
    except ValidationError as error:
        raise AssignmentError(f"{path}: {_first_message(error)}") from error


def _first_message(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else str(first["msg"])
