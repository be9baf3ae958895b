"""Routing files, the bundles they name, and requests to be routed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from service.app import Application
from service.routing.assign import position
from tests.support.asgi import ask
from tests.support.bundles import SmallBundle, build_bundle

ITEMS = [{"id": "i1"}, {"id": "i2"}]
HALVES = [{"name": "control", "share": 0.5}, {"name": "treatment", "share": 0.5, "bundle": "canary"}]


def build_three(store: Path) -> dict[str, SmallBundle]:
    """Three bundles with other weights in one store, by alias; `hier` scores domains it does not list."""
    policies = {"stable": "reject", "canary": "reject", "hier": "zero_shot"}
    return {
        alias: build_bundle(store, alias=alias, seed=10 * number, policy=policy)
        for number, (alias, policy) in enumerate(policies.items())
    }


def write_routing(path: Path, *experiments: dict[str, Any], **content: Any) -> Path:
    """Write a routing file; returns its path."""
    path.write_text(yaml.safe_dump({"version": 1, "experiments": list(experiments), **content}))
    return path


def experiment(**changes: Any) -> dict[str, Any]:
    """Half of the users of `home` on `canary`, with changes."""
    return {"name": "ab", "domains": ["home"], "unit": "user", "salt": "s", "arms": HALVES, **changes}


def body(user: str | int = "u1", domain: str = "home", **changes: Any) -> dict[str, Any]:
    """A request."""
    return {"domain": domain, "user": {"id": user}, "items": ITEMS, **changes}


def unit_of(arm: str) -> str:
    """An id whose position lies in the lower (control) or upper (treatment) half."""
    return next(unit for n in range(100) if (position("s", unit := f"x{n}") >= 0.5) == (arm == "treatment"))


async def reply_of(app: Application, content: dict[str, Any], *headers: tuple[bytes, bytes]) -> Any:
    """The reply to a request that must succeed."""
    status, _, reply = await ask(app, content, headers=headers)
    if status != 200:
        raise AssertionError(reply)
    return reply


def told(reply: Any) -> tuple[str | None, str | None, str]:
    """Experiment, arm and alias of a reply."""
    return reply["experiment"], reply["arm"], reply["model"]["alias"]


async def refresh(app: Application) -> bool:
    """Look at the routing file once, as its watcher does; whether it was taken up."""
    routing = app.serving.routing
    if routing is None:
        raise AssertionError("the app has no routing")
    return await routing.refresh()
