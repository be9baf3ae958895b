"""The one-shot job of compose.yaml: a data set, two trained bundles, features in Redis.

Reads DEMO_PRESET and CTR_REDIS_URL; writes /work (data, runs), the model store CTR_STORE and Redis.
Invariant: what is there stays. A store that has both aliases is not trained for again, and a snapshot that
Redis holds is not loaded anew, since rows streamed into it later are newer.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import redis

import training
from service.contract.schema import Entity
from service.contract.store import ModelStore
from service.features.keys import KeySpace

WORK = Path("/work")
CONFIG = Path(training.__file__).parent / "configs" / "synthetic_mmoe.yaml"
KEY_PREFIX = "ctr"
# The canary is the same model, trained for a shorter time from another seed.
RUNS = {"stable": [], "canary": ["--set", "training.epochs=1", "--set", "training.seed=2"]}


def command(*words: str | Path) -> None:
    """Run a command of ours; ends the job when it fails."""
    print("+", *words, flush=True)
    subprocess.run(words, check=True)


def train(store: ModelStore) -> None:
    """Make the data, and a bundle for each alias that the store lacks."""
    missing = [alias for alias in RUNS if alias not in store.aliases()]
    if not missing:
        print("the store has all aliases: nothing to train", flush=True)
        return
    data = WORK / "data"
    if not (data / "dataset.yaml").exists():
        command("ctr-train", "data", "synthetic", "--preset", os.environ["DEMO_PRESET"], "--out", data)
    for alias in missing:
        run = WORK / f"run-{alias}"
        command(
            "ctr-train", "run", "--config", CONFIG, "--data", data, "--out", run, "--resume", *RUNS[alias]
        )
        command("ctr-export", "build", run, "--store", store.path, "--alias", alias)


def load(store: ModelStore, client: redis.Redis) -> None:
    """Bring the snapshot of each bundle into Redis, unless its load came to an end before."""
    for alias in RUNS:
        bundle = store.open(alias, verify=False)
        cursor = WORK / f"load-{bundle.bundle_id[:12]}.json"
        if not holds_rows(client, bundle.schema.digest):
            cursor.unlink(missing_ok=True)
        # With a cursor at its end this writes nothing; with one in the middle it goes on there.
        command("ctr-serve", "features", "load", "--alias", alias, "--cursor", cursor)


def holds_rows(client: redis.Redis, digest: str) -> bool:
    """Whether Redis has any row of a schema."""
    head = KeySpace(KEY_PREFIX, digest, Entity.USER).head
    return next(client.scan_iter(match=f"{head}*", count=10_000), None) is not None


def main() -> int:
    """Do what is missing; returns the exit status."""
    store = ModelStore(Path(os.environ["CTR_STORE"]))
    try:
        train(store)
        with redis.Redis.from_url(os.environ["CTR_REDIS_URL"]) as client:
            load(store, client)
    except subprocess.CalledProcessError as error:
        print(f"failed with exit code {error.returncode}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
