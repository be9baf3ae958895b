"""Memory of a process as the kernel counts it.

Reads `/proc`. Invariant: pages that several processes map count for each of them by its share.
"""

from __future__ import annotations

from pathlib import Path


def proportional_mib(pid: int | str = "self") -> float:
    """Proportional set size (PSS) in MiB: shared pages divided by the processes that map them."""
    return _field(Path(f"/proc/{pid}/smaps_rollup"), "Pss:")


def resident_mib(pid: int | str = "self") -> float:
    """Resident set size (RSS) in MiB."""
    return _field(Path(f"/proc/{pid}/smaps_rollup"), "Rss:")


def _field(path: Path, name: str) -> float:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0.0  # not a Linux machine; figures are then 0 and said so where they are shown
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(name)), 0.0)
