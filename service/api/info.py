"""What serves: model metadata (Open Inference Protocol names, plus ours) and the metrics scrape."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from service.bundles.registry import LoadedBundle
from service.contract.manifest import Graph
from service.errors import UnknownModel
from service.scoring.runtime import onnxruntime
from service.serving import Serving
from service.telemetry.exposition import MEDIA_TYPE

DATATYPES = {"int32": "INT32", "int64": "INT64", "float32": "FP32"}


def info_router(serving: Serving) -> APIRouter:
    """Routes of metadata and metrics."""
    router = APIRouter()

    @router.get("/v2/models/{name}", tags=["model"], summary="Bundle, domains, graphs and experts kept")
    async def model(name: str) -> dict[str, Any]:
        scorer, _ = serving.require()
        served = scorer.loaded.bundle.manifest.name
        if name != served:
            raise UnknownModel(f"no model {name[:60]!r} is served; there is '{served}'", value=name[:60])
        return describe(scorer.loaded)

    @router.get(
        "/metrics", tags=["metrics"], summary="Prometheus text of all workers", response_class=Response
    )
    async def metrics() -> Response:
        return Response(await serving.metrics.render_in_turns(), media_type=MEDIA_TYPE)

    return router


def describe(loaded: LoadedBundle) -> dict[str, Any]:
    """Metadata of a loaded bundle; inputs and outputs are those of the graph of unlisted domains."""
    manifest = loaded.bundle.manifest
    graph = manifest.graphs[manifest.unknown_domain.graph]
    return {
        "name": manifest.name,
        "versions": [loaded.bundle_id],
        "platform": "onnxruntime_onnx",
        "inputs": _tensors(graph),
        "outputs": [{"name": graph.output, "datatype": "FP32", "shape": [-1]}],
        "bundle": {
            "id": loaded.bundle_id,
            "alias": loaded.alias,
            "model": manifest.model,
            "schema_digest": manifest.schema_digest,
            "golden_max_error": loaded.golden_error,
            "unknown_domain": "reject" if loaded.unknown is None else "zero_shot",
        },
        "graphs": {
            key: {"form": g.form, "precision": g.precision, "max_error": g.max_error}
            for key, g in manifest.graphs.items()
        },
        "domains": {
            name: {
                "index": entry.index,
                "cluster": entry.cluster,
                "graph": entry.graph,
                "num_train_rows": entry.num_train_rows,
                "experts_kept": entry.experts_kept,
            }
            for name, entry in manifest.domains.items()
        },
        "runtime": {"onnxruntime": onnxruntime.__version__, "threads_per_run": 1},
    }


def _tensors(graph: Graph) -> list[dict[str, Any]]:
    return [
        {
            "name": entry.name,
            "datatype": DATATYPES[entry.dtype],
            "shape": [-1, entry.width] if entry.width else [-1],
            "parameters": {"source": entry.source},
        }
        for entry in graph.inputs
    ]


__all__ = ["describe", "info_router"]
