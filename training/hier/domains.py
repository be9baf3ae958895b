"""Domains that were onboarded onto a pre-training: `RUN/domains/NAME.json`, one file each.

Invariant: a file is written whole, and names the version of the representation that its head and line go
with; with another version it is refused.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from training.engine.files import write_text
from training.hier.errors import OnboardError

FOLDER = "domains"
NAME_PATTERN = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,79}$")


@dataclass(frozen=True)
class OnboardedDomain:
    """One domain.

    Attributes:
        name: Of it.
        version: Of the representation.
        order: Place among the onboarded; a domain keeps its own.
        items: Rows of the known entities of each item, by id.
        item_clicks: Clicks of each item that has any, by id.
        item_rates, user_rates: Log odds ratios of items and users shown in the domain, by id.
        num_rows, num_clicks: Labelled impressions so far.
        coverage: Share of items with a known entity.
        head: (9 + d,) weights.
        scale, bias: Its line.
        stage: What the line was made from: `prior`, `bias` or `line`.
        mean_score: Mean probability over the sample that the prior was fitted on.
        nearest: Source domain whose items are most alike, and the cosine; None where none can be compared.
    """

    name: str
    version: str
    order: int
    items: dict[str, list[int]]
    item_clicks: dict[str, int]
    item_rates: dict[str, float]
    user_rates: dict[str, float]
    num_rows: int
    num_clicks: int
    coverage: float
    head: list[float]
    scale: float
    bias: float
    stage: str
    mean_score: float
    nearest: tuple[str, float] | None

    def save(self, run: Path) -> None:
        """Write the file."""
        write_text(run / FOLDER / f"{self.name}.json", json.dumps(asdict(self)) + "\n")


def load_domains(run: Path, version: str) -> list[OnboardedDomain]:
    """All onboarded domains of a run, in their order.

    Raises:
        OnboardError: A file is damaged or goes with another version.
    """
    found = []
    for path in sorted((run / FOLDER).glob("*.json")):
        try:
            domain = OnboardedDomain(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise OnboardError(f"{path}: not an onboarded domain: {error}") from error
        if domain.version != version:
            raise OnboardError(
                f"{path}: goes with representation {domain.version[:12]}, the run has {version[:12]}; "
                f"onboard '{domain.name}' again"
            )
        found.append(domain)
    return sorted(found, key=lambda domain: domain.order)
