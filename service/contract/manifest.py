"""The manifest: what a bundle holds, and all the service needs to know to serve it.

Reads and writes `manifest.json`. The bundle's id is the sha256 of the manifest's canonical text,
which itself holds the sha256 of every other file: the id pins the whole content.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Final, Literal

from pydantic import Field, JsonValue

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
    """

    file: FilePath
    external_files: tuple[FilePath, ...] = ()
    inputs: tuple[GraphInput, ...]
    output: str
    form: Literal["whole", "cluster", "domain"] = "whole"
    precision: str = "fp32"
    max_error: float | None = None
    options: dict[str, JsonValue] = {}


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
    metrics: dict[str, dict[str, Any]] = {}
    features: dict[Literal["user", "item"], SnapshotFiles] = {}
    feature_time_ms: int | None = None
    provenance: Provenance
    files: dict[FilePath, FileEntry]

    def canonical(self) -> bytes:
        """The bytes that are stored and hashed."""
        return self.model_dump_json(indent=1).encode()

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


Manifest.model_rebuild()
