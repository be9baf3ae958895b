"""Start several ranks of one training and read what they left behind."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

WORLD_SIZE = 2
DEADLINE_S = 480


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def environment(rank: int, port: int) -> dict[str, str]:
    """What torchrun would tell a rank."""
    told = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": WORLD_SIZE,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": 1,
    }
    return os.environ | {name: str(value) for name, value in told.items()}


def launch(folder: Path, jobs: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Let the ranks do jobs of `rank_worker`; what each rank tells, by job."""
    folder.mkdir(parents=True, exist_ok=True)
    arguments = folder / "arguments.json"
    arguments.write_text(json.dumps(jobs))
    port = free_port()
    command = [sys.executable, "-W", "error", "-m", "tests.support.rank_worker", str(arguments)]
    ranks = [
        subprocess.Popen(command, env=environment(rank, port), stderr=subprocess.PIPE, text=True)
        for rank in range(WORLD_SIZE)
    ]
    try:
        said = [rank.communicate(timeout=DEADLINE_S)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    failed = [text for rank, text in zip(ranks, said, strict=True) if rank.returncode]
    if failed:
        raise AssertionError("\n".join(failed))
    return {
        name: [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(WORLD_SIZE)]
        for name in jobs
    }
