"""The ASGI app without sockets: one request at a time, and a loaded app around a test."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

from service.app import Application, create_app
from service.settings import Settings

Reply = tuple[int, dict[bytes, bytes], Any]


async def ask(
    app: Application,
    body: dict[str, Any] | bytes,
    *,
    path: str = "/score",
    method: str = "POST",
    headers: Iterable[tuple[bytes, bytes]] = (),
) -> Reply:
    """One request; returns status, headers and JSON."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    first = {"type": "http.request", "body": raw, "more_body": False}
    waiting = iter([first])
    sent: list[Any] = []

    async def receive() -> Any:
        message = next(waiting, None)
        if message is None:
            await asyncio.Event().wait()
        return message

    async def send(message: Any) -> None:
        sent.append(message)

    head = [(b"content-type", b"application/json"), *headers]
    scope = {"type": "http", "method": method, "path": path, "headers": head, "query_string": b""}
    await app(scope, receive, send)
    content = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], dict(sent[0]["headers"]), json.loads(content)


def with_app(store: Path, use: Callable[[Application], Awaitable[Any]], **settings: Any) -> Any:
    """Load an app, use it, close it; returns what `use` returns."""

    async def whole() -> Any:
        app = create_app(Settings(store=store, **settings))
        await app.serving.load()
        try:
            return await use(app)
        finally:
            app.serving.close()

    return asyncio.run(whole())
