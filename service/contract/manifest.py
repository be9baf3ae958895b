"""The manifest: what a bundle holds, and all the service needs to know to serve it.

Reads and writes `manifest.json`. The bundle's id is the sha256 of the manifest's canonical text,
which itself holds the sha256 of every other file: the id pins the whole content.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, JsonValue, model_validator

from service.contract.schema import Frozen

FORMAT: Final = "ctr-bundle"
FORMAT_VERSION: Final = 1

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FilePath = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*$")]

InputSource = Literal[
    "user.ints",
    "user.floats",
    "context.ints",
    "context.floats",
    "item.ints",
    "item.floats",
    "domain",
    "request_index",
]


class FileEntry(Frozen):
    """One file of the bundle."""

    sha256: Sha256
    num_bytes: int = Field(ge=0)


class GraphInput(Frozen):
    """One input of a graph and where the service takes it from.

    `user.*` and `context.*` and `domain` have one row per request (R), `item.*` and `request_index`
    one per candidate (N). `width` is the number of columns, 0 for a vector.
    """

    name: str
    source: InputSource
    dtype: Literal["int32", "int64", "float32"]
    width: int = Field(ge=0)


class ExpertChoice(Frozen):
    """A further output of a graph: the experts that each row chose.

    Attributes:
        output: Name of the output, (N, k) int64, entries in [0, num_experts).
        num_experts: Experts there are to choose from, those that the graph leaves out among them.
    """

    output: str
    num_experts: int = Field(ge=1, le=1024)


class GpuProvider(Frozen):
    """An execution provider of the runtime, and what it is told.

    Attributes:
        name: TensorRT leaves what it cannot run to the CUDA provider of the same plan.
        options: As the runtime takes them; all are text.
    """

    name: Literal["CUDAExecutionProvider", "TensorrtExecutionProvider"]
    options: dict[str, str] = {}


class GpuPlan(Frozen):
    """How a graph runs where a machine has a GPU.

    Attributes:
        providers: The preferred one first.
        rows, requests: Sizes to which N and R are padded, ascending; larger runs are not padded.
        captures: Whether runs of one request may be recorded as CUDA graphs, no size depending on values.
    """

    providers: tuple[GpuProvider, ...] = Field(min_length=1)
    rows: tuple[Annotated[int, Field(ge=1, le=100_000)], ...] = Field(min_length=1)
    requests: tuple[Annotated[int, Field(ge=1, le=100_000)], ...] = Field(min_length=1)
    captures: bool = False

    @model_validator(mode="after")
    def _valid(self) -> Self:
        for what, sizes in (("rows", self.rows), ("requests", self.requests)):
            if list(sizes) != sorted(set(sizes)):
                raise ValueError(f"{what} {list(sizes)} must rise from each to the next")
        if twice := _repeated([provider.name for provider in self.providers]):
            raise ValueError(f"provider {twice!r} is planned twice")
        return self

    def options_of(self, name: str) -> dict[str, str] | None:
        """Options of a provider; None where it is not planned."""
        return next((dict(provider.options) for provider in self.providers if provider.name == name), None)


class Graph(Frozen):
    """One ONNX graph of the bundle.

    Attributes:
        file: The model file.
        external_files: Files with its weights.
        inputs: In the order of the graph.
        output: Name of the output with calibrated probabilities, (N,) float32.
        form: `whole`, `cluster` or `domain`: what the graph was specialised for.
        precision: Of the weights, e.g. `fp32`.
        max_error: Largest |dp| against torch seen in the parity check.
        options: What else is worth knowing of the build (opset, node count, ...).
        experts: Which experts each row ran, where rows choose among experts; None where they do not.
        gpu: How it runs on a GPU; None where it is made for processors.
    """

    file: FilePath
    external_files: tuple[FilePath, ...] = ()
    inputs: tuple[GraphInput, ...]
    output: str
    form: Literal["whole", "cluster", "domain"] = "whole"
    precision: str = "fp32"
    max_error: float | None = None
    options: dict[str, JsonValue] = {}
    experts: ExpertChoice | None = None
    gpu: GpuPlan | None = None


class Calibration(Frozen):
    """Probability = sigmoid(scale * logit + bias), as baked into the graph for one domain."""

    scale: float
    bias: float


class DomainEntry(Frozen):
    """What serves one domain, and what is known of it offline.

    Attributes:
        index: Row of the domain in the graph's tables.
        graph: Key into `Manifest.graphs`.
        cluster: Cluster of the domain; None when the bundle was made without clustering.
        num_train_rows: Labelled impressions it was trained on.
        calibration: As baked in.
        mean_score: Mean calibrated score on the validation part; the baseline of drift.
        metrics: Offline figures, e.g. {"test.auc": 0.74}.
        experts_kept: Names or indices of the experts its mask keeps, when the model has masks.
    """

    index: int = Field(ge=0)
    graph: str
    cluster: int | None = None
    num_train_rows: int = Field(ge=0)
    calibration: Calibration
    mean_score: float | None = None
    metrics: dict[str, float | None] = {}
    experts_kept: tuple[str, ...] | None = None


class UnknownDomain(Frozen):
    """What happens to a request for a domain the bundle does not list.

    `reject` answers 404; `zero_shot` scores it by the fallback row of `graph`.
    """

    policy: Literal["reject", "zero_shot"] = "reject"
    graph: str
    calibration: Calibration


class Mask(Frozen):
    """A frozen domain mask: digest of the constant table baked into the graph."""

    digest: Sha256
    shape: tuple[int, ...]
    density: float = Field(ge=0, le=1)


class Cluster(Frozen):
    """One cluster of domains.

    Attributes:
        domains: Target set T_k, the domains it serves.
        sources: Source set S_k, the domains whose rows train it.
    """

    domains: tuple[str, ...]
    sources: tuple[str, ...]


class Clustering(Frozen):
    """How domains were grouped.

    Attributes:
        version: `end_to_end` or `two_stage`, a tower of one model for each, or `split`, a model for each.
        method: How they were found.
        num_updates: Updates that led to them; 0 where a method has none.
        assignment: Digest of the artefact they were read from.
        clusters: By number; their target sets partition the domains.
        default_cluster: Serves domains that the bundle does not list.
    """

    version: str
    method: str
    num_updates: int = Field(ge=0)
    assignment: Sha256
    clusters: tuple[Cluster, ...]
    default_cluster: int = Field(ge=0)

    @model_validator(mode="after")
    def _valid(self) -> Self:
        if self.default_cluster >= len(self.clusters):
            raise ValueError(f"default_cluster {self.default_cluster} of {len(self.clusters)} clusters")
        for k, cluster in enumerate(self.clusters):
            if twice := _repeated(cluster.sources):
                raise ValueError(f"cluster {k} has the source {twice!r} twice")
            if strangers := sorted(set(cluster.sources) - set(self.cluster_of)):
                raise ValueError(f"cluster {k} has the source {strangers[0]!r}, which no cluster serves")
        if twice := _repeated([name for cluster in self.clusters for name in cluster.domains]):
            raise ValueError(f"domain {twice!r} is in two clusters, or twice in one")
        return self

    @property
    def cluster_of(self) -> dict[str, int]:
        """Cluster of each domain."""
        return {name: k for k, cluster in enumerate(self.clusters) for name in cluster.domains}


class Provenance(Frozen):
    """Where the bundle came from."""

    data_digest: str
    config_digest: str
    code_version: str
    trained_at: str
    run: str = ""
    libraries: dict[str, str] = {}


class Manifest(Frozen):
    """Identity and content of a bundle.

    Attributes:
        model: Method and variant, e.g. `mmoe`.
        name: Name of the served model in URLs and metrics.
        schema_digest: Must equal the digest of `schema.json`.
        clustering: How domains were grouped; None when they were not.
        metrics: Offline figures of the whole set by part, e.g. {"test": {"total_auc": 0.75}}.
        features: Files of the embedded feature snapshot by entity; empty when there is none.
        files: Every file of the bundle but the manifest.
    """

    format: Literal["ctr-bundle"] = FORMAT
    format_version: Literal[1] = FORMAT_VERSION
    name: str
    model: str
    schema_digest: Sha256
    domains: dict[str, DomainEntry]
    unknown_domain: UnknownDomain
    graphs: dict[str, Graph]
    masks: dict[str, Mask] = {}
    clustering: Clustering | None = None
    metrics: dict[str, dict[str, Any]] = {}
    features: dict[Literal["user", "item"], SnapshotFiles] = {}
    feature_time_ms: int | None = None
    provenance: Provenance
    files: dict[FilePath, FileEntry]

    @model_validator(mode="after")
    def _clusters_agree(self) -> Self:
        if self.clustering is not None:
            _check_domains(self.clustering, self.domains)
            _check_graphs(self)
        return self

    @model_validator(mode="after")
    def _domain_graphs_agree(self) -> Self:
        served = [(name, entry.graph) for name, entry in self.domains.items()]
        served.append(("(unlisted)", self.unknown_domain.graph))
        owner: dict[str, str] = {}
        for name, key in served:
            graph = self.graphs.get(key)
            # It has that domain's constants inside, so it would answer for others without a warning.
            if graph is not None and graph.form == "domain" and owner.setdefault(key, name) != name:
                raise ValueError(f"graph {key!r} is of one domain but serves {owner[key]!r} and {name!r}")
        return self

    def canonical(self) -> bytes:
        """The bytes that are stored and hashed."""
        # Absent rather than null: the id of a bundle that lacks a part does not depend on the field.
        absent: dict[str, Any] = {"graphs": {}}
        for key, graph in self.graphs.items():
            if missing := {name for name in ("experts", "gpu") if getattr(graph, name) is None}:
                absent["graphs"][key] = missing
        if self.clustering is None:
            absent["clustering"] = True
        return self.model_dump_json(indent=1, exclude=absent).encode()

    @property
    def bundle_id(self) -> str:
        """Sha256 (hex) of the canonical text."""
        return hashlib.sha256(self.canonical()).hexdigest()


class SnapshotFiles(Frozen):
    """Stored features of one entity: ids (one a line) and the encoded rows in the same order."""

    ids: FilePath
    ints: FilePath
    floats: FilePath
    num_rows: int = Field(ge=0)


def _check_domains(clustering: Clustering, domains: dict[str, DomainEntry]) -> None:
    """Target sets partition the domains, and each entry names its own."""
    cluster_of = clustering.cluster_of
    if odd := sorted(set(cluster_of) ^ set(domains)):
        if odd[0] in domains:
            raise ValueError(f"domain {odd[0]!r} is in no cluster")
        raise ValueError(f"cluster {cluster_of[odd[0]]} lists {odd[0]!r}, which is not among the domains")
    for name, entry in domains.items():
        if entry.cluster != cluster_of[name]:
            raise ValueError(f"domain {name!r}: cluster {entry.cluster}, but {cluster_of[name]} lists it")


def _check_graphs(manifest: Manifest) -> None:
    """A graph of form `cluster` serves one cluster; a cluster has one graph beside those of its domains."""
    clustering = manifest.clustering
    if clustering is None:
        return
    served = [(entry.cluster, entry.graph) for entry in manifest.domains.values()]
    served.append((clustering.default_cluster, manifest.unknown_domain.graph))
    graph_of: dict[int | None, str] = {}
    owner: dict[str, int | None] = {}
    for cluster, key in served:
        graph = manifest.graphs.get(key)
        if graph is None or graph.form == "domain":
            continue
        if graph_of.setdefault(cluster, key) != key:
            raise ValueError(f"cluster {cluster} is served by graphs {graph_of[cluster]!r} and {key!r}")
        if graph.form == "cluster" and owner.setdefault(key, cluster) != cluster:
            raise ValueError(f"graph {key!r} is of one cluster but serves {owner[key]} and {cluster}")


def _repeated(names: tuple[str, ...] | list[str]) -> str | None:
    name, count = next(iter(Counter(names).most_common(1)), (None, 0))
    return name if count > 1 else None


Manifest.model_rebuild()
