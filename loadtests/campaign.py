"""Users who wait, then planned arrivals, then judgement: what `make load` and CI run.

    python -m loadtests.campaign --store STORE --out runs/load [--routing FILE] [--port PORT]

Starts `ctr-serve run` on the store, with exposures and feedback on, unless `--port` names a service on
127.0.0.1 that is there already and serves from that store. Writes `users/` and `arrivals/` below `--out`,
each with its run and `report.html`. Exits with 1 and says why when a run failed or an objective of slo.yaml
is not kept.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from loadtests.bench_serve.servers import service
from loadtests.rate_run import rate_run
from loadtests.report import write_report
from loadtests.slo import SLO_FILE, show

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
GRACE_S = 120.0
RAMP_S = 5.0  # all users at once would be a burst


class CampaignError(RuntimeError):
    """A part of the campaign that left no run to judge."""


@dataclass(frozen=True)
class Plan:
    """How much load is made.

    Attributes:
        users: Who wait for their replies.
        user_seconds: For how long.
        rate: Of planned arrivals, as `loadtests.arrivals.parse_plan` takes it.
        rate_seconds: For how long.
        seed: Of everything that is drawn.
    """

    users: int = 20
    user_seconds: int = 60
    rate: str = "100"
    rate_seconds: float = 30.0
    seed: int = 0


def campaign(
    *, store: Path, port: int, routing: Path | None, plan: Plan, out: Path, slo: Path, console: Console
) -> list[str]:
    """Load a running service; returns what was not as promised.

    Raises:
        CampaignError: Locust ended without a run.
    """
    broken = load_by_users(store, port, routing, plan, out / "users")
    rate_run(
        store=store,
        port=port,
        rate=plan.rate,
        seconds=plan.rate_seconds,
        out=out / "arrivals",
        routing=routing,
        seed=plan.seed,
    )
    for name in ("users", "arrivals"):
        verdicts = write_report(out / name, out / name / "report.html", slo)
        show(console, name, verdicts)
        broken += [f"{name}: {verdict}" for verdict in verdicts if verdict.kept is False]
    return broken


def load_by_users(store: Path, port: int, routing: Path | None, plan: Plan, out: Path) -> list[str]:
    """Run locust without its pages; returns what it found wrong.

    Raises:
        CampaignError: It ended without a run; the message ends with what it wrote last.
    """
    ramp_s = min(RAMP_S, plan.user_seconds / 4)
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary"]
    command += [
        "-H",
        f"http://127.0.0.1:{port}",
        "-u",
        str(plan.users),
        "-r",
        f"{plan.users / ramp_s:.2f}",
    ]
    command += ["-t", f"{plan.user_seconds}s", "--store", str(store), "--out", str(out)]
    command += ["--seed", str(plan.seed), *(["--routing", str(routing)] if routing else [])]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=plan.user_seconds + GRACE_S, check=False
    )
    if not (out / "run.json").exists():
        raise CampaignError(f"locust left no run; it ended with {done.returncode}: {done.stderr[-800:]}")
    found = [line for line in done.stderr.splitlines() if line.startswith("load run failed: ")]
    if done.returncode and not found:
        found = [f"locust ended with {done.returncode}: {done.stderr[-800:]}"]
    return [f"users: {text.removeprefix('load run failed: ')}" for text in found]


@contextlib.contextmanager
def served(store: Path, routing: Path | None, port: int | None, workers: int) -> Iterator[int]:
    """Port of the service: the given one, or that of one started here."""
    if port is not None:
        yield port
        return
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        variables = {
            "CTR_EXPOSURE_DIR": str(work / "exposures"),
            "CTR_FEEDBACK_DIR": str(work / "feedback"),
        }
        if routing is not None:
            variables["CTR_ROUTING_FILE"] = str(routing.resolve())
        with service(store, work, workers=workers, variables=variables) as server:
            yield server.port


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it all; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--store", type=Path, required=True, help="model store of the service")
    parser.add_argument("--routing", type=Path, help="routing file of the service")
    parser.add_argument("--port", type=int, help="of a service that runs already; none: one is started")
    parser.add_argument("--workers", type=int, default=2, help="of a service that is started")
    parser.add_argument("--out", type=Path, default=Path("runs/load"), help="folder to write")
    parser.add_argument("--slo", type=Path, default=SLO_FILE, help="objectives")
    parser.add_argument("--users", type=int, default=Plan.users)
    parser.add_argument("--user-seconds", type=int, default=Plan.user_seconds)
    parser.add_argument("--rate", default=Plan.rate, help="requests per second, e.g. 100, or 50:400 to rise")
    parser.add_argument("--rate-seconds", type=float, default=Plan.rate_seconds)
    parser.add_argument("--seed", type=int, default=Plan.seed)
    chosen = parser.parse_args(arguments)
    plan = Plan(chosen.users, chosen.user_seconds, chosen.rate, chosen.rate_seconds, chosen.seed)
    with served(chosen.store, chosen.routing, chosen.port, chosen.workers) as port:
        broken = campaign(
            store=chosen.store,
            port=port,
            routing=chosen.routing,
            plan=plan,
            out=chosen.out,
            slo=chosen.slo,
            console=Console(),
        )
    for text in broken:
        sys.stdout.write(f"not kept: {text}\n")
    sys.stdout.write(f"{chosen.out}/users/report.html {chosen.out}/arrivals/report.html\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
