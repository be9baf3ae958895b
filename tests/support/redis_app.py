"""The service in this process on a real Redis: filling it, asking it, reading its metrics."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from service.app import Application, create_app
from service.features.jobs import make_cursor, make_writer, run_load, snapshot_parts
from service.features.load import Loader
from service.settings import Settings
from tests.support.bundles import SmallBundle


def now_ms() -> int:
    """The wall clock."""
    return int(time.time() * 1000)


async def fill(
    built: SmallBundle, settings: Settings, *, event_ms: int | None = None, retries: int = 6
) -> None:
    """Load the bundle's snapshot into the Redis that the settings name."""
    parts = snapshot_parts(built.bundle, now_ms() if event_ms is None else event_ms)
    loader = Loader(built.schema, settings.redis_key_prefix, make_writer(settings, retries=retries))
    cursor = make_cursor(None, settings, built.bundle, parts)
    await run_load(parts, loader, cursor, batch_rows=50, on_rows=lambda *_: None)


@asynccontextmanager
async def running_app(settings: Settings) -> AsyncIterator[Application]:
    """The app within its lifespan, once it is ready."""
    app = create_app(settings)
    to_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    from_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    life = asyncio.create_task(app({"type": "lifespan"}, to_app.get, from_app.put))
    await to_app.put({"type": "lifespan.startup"})
    assert (await from_app.get())["type"] == "lifespan.startup.complete"
    while app.serving.state == "loading":
        await asyncio.sleep(0.01)
    assert app.serving.state == "ready", app.serving.reason
    try:
        yield app
    finally:
        await to_app.put({"type": "lifespan.shutdown"})
        await life


async def ask(app: Application, user: str | None, items: list[str], domain: str = "home") -> dict[str, Any]:
    """The reply to one request; it must be 200."""
    body = {"domain": domain, "items": {"id": items}, **({"user": {"id": user}} if user else {})}
    raw = json.dumps(body).encode()
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": raw, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json")]
    await app({"type": "http", "method": "POST", "path": "/score", "headers": headers}, receive, send)
    assert sent[0]["status"] == 200, sent[1]["body"]
    reply: dict[str, Any] = json.loads(sent[1]["body"])
    return reply


def figure(app: Application, name: str, **labels: str) -> float:
    """A metric's value, 0 when it has none."""
    text = app.serving.metrics.render().decode()
    wanted = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
    head = f"{name}{{{wanted}}}" if wanted else name
    match = re.search(rf"^{re.escape(head)} (\S+)$", text, re.MULTILINE)
    return float(match[1]) if match else 0.0
