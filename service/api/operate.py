"""What a worker tells and does for the admin API.

Reads what serves, and the store's aliases. Invariant: telling changes nothing.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import asdict
from typing import Any

from service.api.admin import RELOAD, STATE, Answer
from service.contract.errors import ContractError
from service.serving import Serving


class Operator:
    """Answers commands about one process.

    Args:
        serving: What it can do.
    """

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def do(self, command: str) -> Answer:
        """Carry out `reload` or tell the `state`."""
        match command:
            case "reload":
                done = (await self._serving.reload_all()).shown()
                return {"pid": os.getpid(), **done, **self._routing()}
            case "state":
                return await self._state()
        return {"error": f"knows {RELOAD} and {STATE}, not {command!r}"}

    async def _state(self) -> Answer:
        serving = self._serving
        last, failed = serving.last_reload, serving.last_failure
        return {
            "pid": os.getpid(),
            "state": str(serving.state),
            "reason": serving.reason,
            "bundle": None if serving.scorer is None else serving.scorer.loaded.bundle_id,
            "reload": serving.describe(),
            "last_reload": None if last is None else last.shown(),
            "last_failure": None if failed is None else failed.shown(),
            "open": [asdict(bundle) for bundle in serving.pool.shown()],
            "open_bytes": serving.pool.num_bytes,
            "aliases": await asyncio.to_thread(self._aliases),
            **self._routing(),
        }

    def _routing(self) -> dict[str, Any]:
        routing = self._serving.routing
        return {} if routing is None else {"routing": routing.describe()}

    def _aliases(self) -> dict[str, str]:
        try:
            return self._serving.pool.store.aliases()
        except ContractError as error:
            return {"error": str(error)}


__all__ = ["Operator"]
