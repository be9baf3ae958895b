"""The metrics scrape."""

from __future__ import annotations

from fastapi import APIRouter, Response

from service.serving import Serving
from service.telemetry.exposition import MEDIA_TYPE


def info_router(serving: Serving) -> APIRouter:
    """The route of a scrape."""
    router = APIRouter()

    @router.get(
        "/metrics", tags=["metrics"], summary="Prometheus text of all workers", response_class=Response
    )
    async def metrics() -> Response:
        return Response(await serving.metrics.render_in_turns(), media_type=MEDIA_TYPE)

    return router


__all__ = ["info_router"]
