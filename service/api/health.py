"""Probes: live (the loop turns), startup (golden rows passed once), ready (and not draining)."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from service.errors import NotReady
from service.serving import Serving, State


def health_router(serving: Serving) -> APIRouter:
    """Routes of the three probes."""
    router = APIRouter(prefix="/health", tags=["health"])

    @router.get("/live", summary="The process answers; depends on nothing else")
    async def live() -> dict[str, str]:
        return {"status": "live"}

    @router.get("/startup", summary="A bundle was loaded and its golden rows passed")
    async def startup() -> dict[str, str]:
        if serving.scorer is None:
            raise NotReady(serving.reason)
        return {"status": "started"}

    @router.get("/ready", summary="Takes traffic: golden rows passed and not draining")
    async def ready() -> dict[str, Any]:
        if serving.state is not State.READY or serving.scorer is None:
            raise NotReady(serving.reason)
        routing = {} if serving.routing is None else {"routing": serving.routing.describe()}
        bundle = {"bundle": serving.scorer.loaded.bundle_id, "reload": serving.describe()}
        return {"status": "ready", **bundle, **routing}

    return router


def v2_health_router(serving: Serving) -> APIRouter:
    """The same in the words of the Open Inference Protocol."""
    router = APIRouter(prefix="/v2/health", tags=["model"])

    @router.get("/live", summary="The process answers")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @router.get("/ready", summary="All models take traffic")
    async def ready() -> dict[str, bool]:
        if serving.state is not State.READY:
            raise NotReady(serving.reason)
        return {"ready": True}

    return router


__all__ = ["health_router", "v2_health_router"]
