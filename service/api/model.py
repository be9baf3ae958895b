"""Server and model metadata in the words of the Open Inference Protocol v2, plus what is ours.

Reads the bundles that serve. Inputs and outputs are those of the graph that scores unlisted domains; every
graph's own stand under `graphs`.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from fastapi import APIRouter

from service.api.served import find_bundle, served_bundles
from service.api.tensors import DATATYPES
from service.bundles.registry import LoadedBundle
from service.contract.manifest import Graph
from service.errors import NotReady
from service.scoring.runtime import onnxruntime
from service.serving import Serving, State

PACKAGE = "ctr-domains"
SERVER = "ctr-serve"
EXTENSIONS = ["binary_tensor_data"]


def model_router(serving: Serving) -> APIRouter:
    """Routes of metadata, and of the readiness of a model."""
    router = APIRouter(prefix="/v2", tags=["model"])

    @router.get("", summary="Name and version of this server, and the extensions it has")
    async def server() -> dict[str, Any]:
        return {"name": SERVER, "version": version(PACKAGE), "extensions": EXTENSIONS}

    @router.get("/models/{name}", summary="Bundle, domains, graphs and experts kept")
    async def model(name: str) -> dict[str, Any]:
        return _model(serving, name, None)

    @router.get("/models/{name}/versions/{number}", summary="The same of one version")
    async def model_version(name: str, number: str) -> dict[str, Any]:
        return _model(serving, name, number)

    @router.get("/models/{name}/ready", summary="The model takes traffic")
    async def model_ready(name: str) -> dict[str, Any]:
        return _ready(serving, name, None)

    @router.get("/models/{name}/versions/{number}/ready", summary="This version of it does")
    async def version_ready(name: str, number: str) -> dict[str, Any]:
        return _ready(serving, name, number)

    return router


def _model(serving: Serving, name: str, wanted: str | None) -> dict[str, Any]:
    loaded = find_bundle(serving, name, wanted)
    of_name = (b for b in served_bundles(serving).values() if b.bundle.manifest.name == name)
    return describe(loaded, [b.bundle_id for b in of_name])


def _ready(serving: Serving, name: str, wanted: str | None) -> dict[str, Any]:
    find_bundle(serving, name, wanted)
    if serving.state is not State.READY:
        raise NotReady(serving.reason)
    return {"name": name, "ready": True}


def describe(loaded: LoadedBundle, versions: list[str]) -> dict[str, Any]:
    """Metadata of a loaded bundle.

    Args:
        loaded: The bundle.
        versions: Ids of all bundles of its name that serve.
    """
    manifest = loaded.bundle.manifest
    graph = manifest.graphs[manifest.unknown_domain.graph]
    return {
        "name": manifest.name,
        "versions": versions,
        "platform": "onnxruntime_onnx",
        "inputs": _inputs(graph),
        "outputs": _outputs(graph),
        "bundle": {
            "id": loaded.bundle_id,
            "alias": loaded.alias,
            "model": manifest.model,
            "schema_digest": manifest.schema_digest,
            "golden_max_error": loaded.golden_error,
            "unknown_domain": "reject" if loaded.unknown is None else "zero_shot",
        },
        "graphs": {
            key: {
                "form": g.form,
                "precision": g.precision,
                "max_error": g.max_error,
                "inputs": _inputs(g),
                "outputs": _outputs(g),
                "placement": loaded.predictors[key].placement.shown(),
            }
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
        "runtime": {
            "onnxruntime": onnxruntime.__version__,
            "threads_per_run": 1,
            "providers": onnxruntime.get_available_providers(),
        },
    }


def _inputs(graph: Graph) -> list[dict[str, Any]]:
    return [
        {
            "name": entry.name,
            "datatype": DATATYPES[entry.dtype],
            "shape": [-1, entry.width] if entry.width else [-1],
            "parameters": {"source": entry.source},
        }
        for entry in graph.inputs
    ]


def _outputs(graph: Graph) -> list[dict[str, Any]]:
    return [{"name": graph.output, "datatype": "FP32", "shape": [-1]}]


__all__ = ["describe", "model_router"]
