"""Send a few example requests to a fresh service and print the scores: the last step of `make run`.

Waits until the service is ready, takes users, items and domains from the bundle it serves, and speaks
plain HTTP. Exits with 1 when the service does not become ready or refuses an example.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from service.contract.ids import read_ids
from service.contract.store import ModelStore

ITEMS_PER_REQUEST = 5
NUM_EXAMPLES = 3


def wait_until_ready(client: httpx.Client, *, timeout_s: float) -> bool:
    """Poll readiness; False when the time is up."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        try:
            if client.get("/health/ready").status_code == httpx.codes.OK:
                return True
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    return False


def example_requests(store: Path) -> list[dict[str, Any]]:
    """A request for each of the largest domains, with stored users and items."""
    bundle = ModelStore(store).open("stable", verify=False)
    manifest = bundle.manifest
    users, items = (read_ids(bundle.path / manifest.features[side].ids) for side in ("user", "item"))
    largest = sorted(manifest.domains, key=lambda name: -manifest.domains[name].num_train_rows)
    return [
        {
            "domain": domain,
            "user": {"id": users[7 * n]},
            "items": [{"id": item} for item in items[n * ITEMS_PER_REQUEST : (n + 1) * ITEMS_PER_REQUEST]],
        }
        for n, domain in enumerate(largest[:NUM_EXAMPLES])
    ]


def show(console: Console, request: dict[str, Any], reply: dict[str, Any]) -> None:
    """One table per request, best item first."""
    table = Table("item", "click probability", title=f"{request['domain']}, user {request['user']['id']}")
    scored = zip((item["id"] for item in request["items"]), reply["scores"], strict=True)
    for item, score in sorted(scored, key=lambda pair: -pair[1]):
        table.add_row(item, f"{score:.4f}")
    console.print(table)


def main() -> int:
    """Run the examples; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, required=True, help="model store that the service serves")
    parser.add_argument("--port", type=int, default=8000, help="port of the service on 127.0.0.1")
    parser.add_argument("--timeout-s", type=float, default=60, help="how long to wait for readiness, seconds")
    options = parser.parse_args()
    console = Console()
    base = f"http://127.0.0.1:{options.port}"
    with httpx.Client(base_url=base, timeout=5) as client:
        if not wait_until_ready(client, timeout_s=options.timeout_s):
            console.print(f"[red]the service on {base} is not ready after {options.timeout_s:g} s[/red]")
            return 1
        for request in example_requests(options.store):
            reply = client.post("/score", json=request)
            if reply.status_code != httpx.codes.OK:
                console.print(f"[red]{reply.status_code}[/red] {reply.text}")
                return 1
            show(console, request, reply.json())
    console.print(f"scoring on {base}/score   docs {base}/docs   metrics {base}/metrics   stop with Ctrl-C")
    return 0


if __name__ == "__main__":
    sys.exit(main())
