"""Example users of compose.yaml: asks for scores at a steady rate and reports clicks.

Reads the bundle for known users, items and domains; posts to /score and /feedback. Popular users, items and
domains come more often, a few users are new, and whether an item is clicked is drawn from its score.
Invariant: one request at a time, started on a schedule that does not wait for replies longer than one period.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from service.contract.ids import read_ids
from service.contract.store import ModelStore

DEVICES = ("phone", "tablet", "desktop")
NEW_USER_SHARE = 0.02
TOLD_SHARE = 0.5
SKEW = 2.5  # of popularity: 1 would be uniform
TELL_EVERY_S = 60.0
MAX_ITEMS = 40


class Population:
    """Who asks for what, drawn at random.

    Args:
        store: Folder of the model store.
        draw: Source of all draws.
    """

    def __init__(self, store: Path, draw: random.Random) -> None:
        bundle = ModelStore(store).open("stable", verify=False)
        manifest = bundle.manifest
        self._users, self._items = (
            read_ids(bundle.path / manifest.features[side].ids) for side in ("user", "item")
        )
        self._domains = list(manifest.domains)
        self._weights = [manifest.domains[name].num_train_rows + 1 for name in self._domains]
        self._draw = draw

    def _popular(self, among: list[str]) -> str:
        return among[int(len(among) * self._draw.random() ** SKEW)]

    def request(self) -> dict[str, Any]:
        """Body of a request to /score."""
        draw = self._draw
        new = draw.random() < NEW_USER_SHARE
        return {
            "domain": draw.choices(self._domains, self._weights)[0],
            "user": {"id": f"new-{draw.randrange(10**6)}" if new else self._popular(self._users)},
            "context": {"hour": time.localtime().tm_hour, "device": draw.choice(DEVICES)},
            "items": [{"id": self._popular(self._items)} for _ in range(draw.randint(5, MAX_ITEMS))],
        }

    def feedback(self, request: dict[str, Any], reply: dict[str, Any]) -> dict[str, Any] | None:
        """Body of a request to /feedback; None from those who do not tell."""
        if self._draw.random() >= TOLD_SHARE:
            return None
        clicks = {
            item["id"]: int(self._draw.random() < score)
            for item, score in zip(request["items"], reply["scores"], strict=True)
        }
        items = [{"id": name, "click": click} for name, click in clicks.items()]
        return {"request_id": reply["request_id"], "items": items}


class Client:
    """One connection, opened anew after a failure.

    Args:
        url: Of the service, http://host:port.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=10)

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Post JSON; status 0 when there was no answer."""
        try:
            self._connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
            reply = self._connection.getresponse()
            text = reply.read()
            return reply.status, json.loads(text)
        except (OSError, http.client.HTTPException, ValueError):
            self._connection.close()
            return 0, {}


def drive(population: Population, client: Client, *, rate: float) -> None:
    """Send requests for ever, `rate` of them a second, and say how it goes once a minute."""
    sent = failed = 0
    due = tell_at_s = time.monotonic()
    while True:
        request = population.request()
        status, reply = client.post("/score", request)
        sent += 1
        failed += status != http.client.OK
        if status == http.client.OK and (told := population.feedback(request, reply)):
            client.post("/feedback", told)
        now = time.monotonic()
        if now >= tell_at_s:
            print(f"{sent} requests, {failed} without scores; last status {status}", flush=True)
            tell_at_s = now + TELL_EVERY_S
        due = max(due + 1 / rate, now - 1 / rate)
        time.sleep(max(0.0, due - now))


def main() -> None:
    """Run until stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, required=True, help="model store, for known ids")
    parser.add_argument("--url", required=True, help="of the service")
    parser.add_argument("--rate", type=float, default=5.0, help="requests per second")
    parser.add_argument("--seed", type=int, default=0, help="of all draws")
    options = parser.parse_args()
    population = Population(options.store, random.Random(options.seed))
    try:
        drive(population, Client(options.url), rate=options.rate)
    except KeyboardInterrupt:
        sys.exit(0)


if __name__ == "__main__":
    main()
