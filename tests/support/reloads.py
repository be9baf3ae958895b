"""Services whose aliases change while they run."""

import asyncio
import json

from service.contract.store import ModelStore
from tests.support.asgi import ask

BODY = {"domain": "home", "user": {"id": "u1"}, "items": {"id": ["i1", "i2", "i3"]}}


def point(store, **aliases):
    """Set aliases to ids without looking at the bundles, as a broken deployment might."""
    known = {**ModelStore(store).aliases(), **aliases}
    (store / "aliases.json").write_text(json.dumps(known))


async def served(app, body=BODY):
    """Id of the bundle that answers, and its scores."""
    status, _, reply = await ask(app, body)
    assert status == 200, reply
    return reply["model"]["bundle"], reply["scores"]


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)
