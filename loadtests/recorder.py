"""Takes down every request of a load run, and puts some replies aside to be scored again.

Writes a folder as `loadtests.record` has it. Invariant: replies put aside are a fair sample of the good ones,
and at most `MAX_COMPARED`, however long the run is.
"""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loadtests.graph_parity import GraphParity
from loadtests.mix import Ask
from loadtests.record import Call, Loop, Run

MAX_COMPARED = 200
OK = 200


class Recorder:
    """One run, while it goes on.

    Args:
        loop, title, seconds, plan: As of `Run`.
        seed: Of the choice of replies to score again.
    """

    def __init__(self, loop: Loop, title: str, *, seconds: float, plan: dict[str, Any], seed: int) -> None:
        begun_at = datetime.now(UTC).isoformat(timespec="seconds")
        self.run = Run(loop=loop, title=title, seconds=seconds, begun_at=begun_at, plan=plan)
        self._random = random.Random(seed)
        self._num_good = 0
        self._compared: list[tuple[Ask, bytes]] = []

    def scored(
        self,
        ask: Ask,
        *,
        intended_s: float,
        sent_s: float | None,
        done_s: float | None,
        status: int,
        body: bytes,
    ) -> dict[str, Any] | None:
        """Take the end of a request to /score; returns the reply where it is a good one."""
        reply = json.loads(body) if status == OK else None
        told = reply or {}
        self.run.calls.append(
            Call(
                kind="score",
                profile=ask.profile,
                num_items=len(ask.items),
                intended_s=intended_s,
                sent_s=sent_s,
                done_s=done_s,
                status=status,
                domain=ask.domain,
                user=ask.user,
                session=ask.session,
                request_id=told.get("request_id", ""),
                experiment=told.get("experiment"),
                arm=told.get("arm"),
                degraded=bool(told.get("degraded")),
            )
        )
        if reply is not None:
            self._put_aside(ask, body)
        return reply

    def fed_back(
        self, num_items: int, *, sent_s: float, done_s: float | None, status: int, request_id: str
    ) -> None:
        """Take the end of a request to /feedback."""
        self.run.calls.append(
            Call(
                kind="feedback",
                profile="",
                num_items=num_items,
                intended_s=sent_s,
                sent_s=sent_s,
                done_s=done_s,
                status=status,
                request_id=request_id,
            )
        )

    def finish(self, folder: Path, *, store: Path | None = None, routing: Path | None = None) -> Run:
        """Compare what was put aside, where the store is at hand, and write the folder."""
        if store is not None:
            parity = GraphParity(store)
            for ask, body in self._compared:
                parity.compare(ask, json.loads(body))
            self.run.parity = parity.figures()
        self.run.calls.sort(key=lambda call: call.intended_s)
        self.run.write(folder, routing)
        return self.run

    def _put_aside(self, ask: Ask, body: bytes) -> None:
        """Reservoir sampling: after n good replies each is kept with the same chance."""
        self._num_good += 1
        if len(self._compared) < MAX_COMPARED:
            self._compared.append((ask, body))
            return
        place = self._random.randrange(self._num_good)
        if place < MAX_COMPARED:
            self._compared[place] = (ask, body)


__all__ = ["MAX_COMPARED", "Recorder"]
