"""Hostile requests through the app in this process; what must never happen is counted.

    python -m loadtests.fuzz --store runs/demo/models --requests 100000 --json runs/fuzz.json

Features, routing, exposures and feedback are all on. A reply is wrong when it is a 5xx other than a
deadline's, holds text of an exception, is no single whole reply, or comes later than its deadline. Exits
with 1 when one was wrong, or when memory grew.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from loadtests.hostile import Generator, Hostile
from service.api.examples import feedback_examples, infer_examples, score_examples
from service.app import Application, create_app
from service.bundles.registry import LoadedBundle
from service.settings import Settings

ROUTING = """
version: 1
override_header: x-ctr-arm
experiments:
  - {name: users, domains: all, unit: session, salt: fuzz, holdout: {share: 0.1},
     arms: [{name: control, share: 0.5}, {name: treatment, share: 0.4}]}
"""
LEAKS = (
    "Traceback",
    'File "',
    "Error:",
    "Exception",
    ".py",
    "site-packages",
    "onnx",
    "object at 0x",
)
DEADLINE_MS = 2000
SLACK_S = 1.0
WARM_SHARE = 0.2  # of requests before memory is first looked at: pools, caches and metric children fill
MAX_GROWTH_BYTES = 32 << 20
PAGE_BYTES = 4096
MAX_KEPT = 20


@dataclass
class Outcome:
    """What was seen.

    Attributes:
        statuses: Replies by status; 0 for callers that left.
        kinds: Requests by kind of damage.
        wrong: What must not happen, with the request; the first ones.
        num_wrong: How often.
        slowest_ms: Longest time to a reply.
        slowest: The request that took it.
        rss_before_bytes: After the first fifth of all requests.
        rss_after_bytes: After the last.
        took_s: In all.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    num_wrong: int = 0
    slowest_ms: float = 0.0
    slowest: str = ""
    rss_before_bytes: int = 0
    rss_after_bytes: int = 0
    took_s: float = 0.0

    @property
    def growth_bytes(self) -> int:
        """Memory gained between the two looks."""
        return self.rss_after_bytes - self.rss_before_bytes

    def note(self, reason: str, hostile: Hostile, reply: bytes) -> None:
        """Keep what must not happen."""
        self.num_wrong += 1
        if len(self.wrong) < MAX_KEPT:
            sent = b"".join(m.get("body", b"") for m in hostile.messages)[:300]
            self.wrong.append(
                f"{reason}: {hostile.kind} on {hostile.path}: {sent!r} {hostile.headers} -> {reply[:300]!r}"
            )


def rss_bytes() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


def valid_requests(loaded: LoadedBundle) -> dict[str, list[Any]]:
    """Bodies that are answered well, by path."""
    shown = [example["value"] for example in score_examples(loaded).values()]
    rich: dict[str, Any] = {
        **shown[0],
        "user": {"id": 7, "features": {}},
        "context": {},
        "session_id": "s1",
        "request_id": "r1",
    }
    for entity, encoder in loaded.encoders.items():
        features = {name: _odd_but_valid(name, encoder) for name in sorted(encoder.feature_names)}
        if entity == "user":
            rich["user"]["features"] = {k: v for k, v in features.items() if v is not None}
        elif entity == "context":
            rich["context"] = features
        else:
            rich["items"] = [{"id": "i1", "features": features}, {"id": 2, "features": features}]
    name = loaded.bundle.manifest.name
    return {
        "/score": [*shown, rich, rich],
        "/feedback": [example["value"] for example in feedback_examples().values()],
        f"/v2/models/{name}/infer": [example["value"] for example in infer_examples(loaded).values()],
        f"/v2/models/{name}/versions/{loaded.version}/infer": [
            example["value"] for example in infer_examples(loaded).values()
        ],
    }


def _odd_but_valid(name: str, encoder: Any) -> Any:
    """A value for a feature by its kind, tried until the encoder takes it."""
    from service.contract.errors import EncodeError

    for value in (
        3.5,
        "x",
        {"ids": ["x", "y"], "weights": [1.0, -2.0]},
        ["x", "y"],
        [1.0, 2.0, 3.0],
        [{}],
        None,
    ):
        try:
            encoder.encode({name: [value]}, 1)
        except EncodeError:
            continue
        return value
    return None


async def send(app: Application, hostile: Hostile, outcome: Outcome) -> None:
    """One request, and everything that is wrong about its reply."""
    waiting = iter(hostile.messages)
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        message = next(waiting, None)
        if message is None:
            await asyncio.Event().wait()  # the caller waits for the reply
        return message or {}

    async def keep(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": hostile.path,
        "raw_path": hostile.path.encode(),
        "query_string": b"",
        "headers": hostile.headers,
    }
    begun = time.perf_counter()
    try:
        async with asyncio.timeout(DEADLINE_MS / 1000 + SLACK_S):
            await app(scope, receive, keep)
    except TimeoutError:
        outcome.note("hangs", hostile, b"")
        return
    except Exception as error:  # noqa: BLE001 - this is what is looked for
        outcome.note(f"raises {type(error).__name__}", hostile, b"")
        return
    took_ms = (time.perf_counter() - begun) * 1000
    if took_ms > outcome.slowest_ms:
        outcome.slowest_ms, outcome.slowest = took_ms, f"{hostile.kind} on {hostile.path}"
    judge(hostile, sent, outcome)


def judge(hostile: Hostile, sent: list[dict[str, Any]], outcome: Outcome) -> None:
    """Count a reply, and note what is wrong about it."""
    outcome.kinds[hostile.kind] += 1
    if not sent:
        outcome.statuses[0] += 1
        if not any(message["type"] == "http.disconnect" for message in hostile.messages):
            outcome.note("no reply", hostile, b"")
        return
    status, body = sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])
    outcome.statuses[status] += 1
    if [message["type"] for message in sent] != ["http.response.start", "http.response.body"]:
        outcome.note("not one whole reply", hostile, body)
    if status >= 500 and status != 504:
        outcome.note(f"status {status}", hostile, body)
    try:
        text = " ".join(map(str, json.loads(body).values())) if status >= 400 else ""
    except (ValueError, AttributeError):
        outcome.note("no problem document", hostile, body)
        return
    if leak := next((leak for leak in LEAKS if leak in text and leak.encode() not in _sent(hostile)), None):
        outcome.note(f"tells of {leak!r}", hostile, body)


def _sent(hostile: Hostile) -> bytes:
    return b"".join(message.get("body", b"") for message in hostile.messages)


@asynccontextmanager
async def running(store: Path, folder: Path) -> AsyncIterator[Application]:
    """The app within its lifespan, everything on."""
    (folder / "routing.yaml").write_text(ROUTING)
    settings = Settings(
        store=store,
        routing_file=folder / "routing.yaml",
        exposure_dir=folder / "exposures",
        feedback_dir=folder / "feedback",
        deadline_ms=DEADLINE_MS,
        max_body_bytes=1 << 20,
    )
    app = create_app(settings)
    to_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    from_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    life = asyncio.create_task(app({"type": "lifespan"}, to_app.get, from_app.put))
    await to_app.put({"type": "lifespan.startup"})
    await from_app.get()
    while app.serving.state == "loading":
        await asyncio.sleep(0.01)
    if app.serving.scorer is None:
        raise SystemExit(f"the app does not serve: {app.serving.reason}")
    try:
        yield app
    finally:
        await to_app.put({"type": "lifespan.shutdown"})
        await life


async def fuzz(store: Path, *, count: int, seed: int) -> Outcome:
    """Send `count` hostile requests, one after another."""
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as folder:
        async with running(store, Path(folder)) as app:
            valid = valid_requests(app.serving.require()[0].loaded)
            generator = Generator(valid, seed=seed)
            begun = time.perf_counter()
            for number, hostile in enumerate(generator.requests(count)):
                if number == int(WARM_SHARE * count):
                    outcome.rss_before_bytes = rss_bytes()
                await send(app, hostile, outcome)
                if number % 16 == 0:
                    await asyncio.sleep(0)  # what runs beside requests gets its turn
            outcome.rss_after_bytes = rss_bytes()
            outcome.took_s = time.perf_counter() - begun
    return outcome


def main() -> int:
    """Run from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--store", type=Path, required=True, help="model store whose alias `stable` serves")
    parser.add_argument("--requests", type=int, default=100_000, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="of every choice")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    outcome = asyncio.run(fuzz(options.store, count=options.requests, seed=options.seed))
    figures = {
        "requests": options.requests,
        "seed": options.seed,
        "wrong": outcome.num_wrong,
        "statuses": {str(status): count for status, count in sorted(outcome.statuses.items())},
        "slowest_ms": round(outcome.slowest_ms, 1),
        "slowest": outcome.slowest,
        "rss_before_mib": round(outcome.rss_before_bytes / 2**20, 1),
        "rss_after_mib": round(outcome.rss_after_bytes / 2**20, 1),
        "requests_per_s": round(options.requests / outcome.took_s),
    }
    sys.stdout.write("\n".join([*outcome.wrong, json.dumps(figures, indent=1)]) + "\n")
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1))
    return int(outcome.num_wrong > 0 or outcome.growth_bytes > MAX_GROWTH_BYTES)


if __name__ == "__main__":
    sys.exit(main())
