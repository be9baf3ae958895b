"""Use of the FastAPI app before there are callers: it builds its routing on first use, for milliseconds."""

from __future__ import annotations

import asyncio

from service.api.middleware import App, Message

PATHS = ("/metrics", "/-")
"""The scrape, and one that nothing is at, so that every router is asked."""


async def warm(app: App) -> None:
    """Ask for a few paths and drop the replies.

    Args:
        app: The FastAPI app.
    """
    for path in PATHS:
        scope: Message = {
            "type": "http",
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [],
        }
        await app(scope, _nothing, _drop)


async def _nothing() -> Message:
    await asyncio.Event().wait()
    return {"type": "http.disconnect"}


async def _drop(_: Message) -> None:
    """Send nowhere."""


__all__ = ["warm"]
