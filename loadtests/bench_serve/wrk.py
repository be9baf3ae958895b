"""Saturating load by wrk: keep-alive connections that post a round of distinct bodies."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CONNECTIONS = 16

_SCRIPT = """
local requests, turn = {{}}, 0
local head = {{["content-type"] = "application/json"}}
init = function(args)
  for n = 1, {count} do
    local file = io.open("{folder}/" .. n .. ".json", "rb")
    requests[n] = wrk.format("POST", "{path}", head, file:read("*a"))
    file:close()
  end
end
request = function()
  turn = turn % {count} + 1
  return requests[turn]
end
done = function(summary, latency, _)
  local e = summary.errors
  io.write(string.format(
    "\\nRESULT {{\\"requests\\": %d, \\"duration_us\\": %d, \\"not_2xx\\": %d, \\"broken\\": %d, "
    .. "\\"p50_us\\": %d, \\"p99_us\\": %d}}\\n",
    summary.requests, summary.duration, e.status, e.connect + e.read + e.write + e.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""


class WrkMissingError(RuntimeError):
    """There is no wrk on PATH."""


@dataclass(frozen=True)
class Saturated:
    """What wrk saw.

    Attributes:
        rate: Answered requests per second.
        num_requests: Answered.
        num_failed: Other than 2xx, or broken connections.
        seconds: It took.
        p50_ms, p99_ms: Of a closed loop at saturation, where latency says little.
    """

    rate: float
    num_requests: int
    num_failed: int
    seconds: float
    p50_ms: float
    p99_ms: float


def require_wrk() -> str:
    """Path of wrk.

    Raises:
        WrkMissingError: It is not installed.
    """
    found = shutil.which("wrk")
    if found is None:
        raise WrkMissingError(
            "wrk is not on PATH; install it (Debian, Ubuntu: apt-get install wrk, macOS: brew install wrk)"
        )
    return found


def write_script(folder: Path, bodies: Sequence[bytes], path: str) -> Path:
    """Write bodies and the script that posts them in turn; returns the script."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, body in enumerate(bodies, start=1):
        (folder / f"{number}.json").write_bytes(body)
    script = folder / "post.lua"
    script.write_text(_SCRIPT.format(count=len(bodies), folder=folder.absolute(), path=path))
    return script


def saturate(url: str, script: Path, *, seconds: float, connections: int = CONNECTIONS) -> Saturated:
    """Load a service for a while.

    Args:
        url: Its base address.
        script: As `write_script` wrote it.
        seconds: At least 1, whole seconds.
        connections: Kept alive, served by one thread of wrk.
    """
    command = [require_wrk(), "-t", "1", "-c", str(connections), "-d", f"{max(1, round(seconds))}s"]
    done = subprocess.run(
        [*command, "-s", str(script), "--timeout", "10s", url], capture_output=True, text=True, check=True
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    result = json.loads(line.removeprefix("RESULT "))
    took_s = result["duration_us"] / 1e6
    return Saturated(
        rate=(result["requests"] - result["not_2xx"]) / took_s,
        num_requests=result["requests"],
        num_failed=result["not_2xx"] + result["broken"],
        seconds=took_s,
        p50_ms=result["p50_us"] / 1000,
        p99_ms=result["p99_us"] / 1000,
    )
