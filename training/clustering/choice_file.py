"""`choice.json`: the number of clusters that was chosen, the evidence, and what it was chosen for.

Invariant: a choice made for another config or data set is not found.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from training.clustering.choose_k import KChoice
from training.engine.files import write_text

CHOICE_FILE = "choice.json"


def save_choice(path: Path, choice: KChoice, *, identity: Mapping[str, str]) -> None:
    """Write a choice; nan, which JSON lacks, becomes null.

    Args:
        path: Of the file.
        choice: To write.
        identity: Digests that must agree for it to be used again.
    """
    content = {
        "num_clusters": choice.num_clusters,
        "evidence": [_finite(asdict(line)) for line in choice.evidence],
        "digests": dict(identity),
    }
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def saved_choice(path: Path, *, identity: Mapping[str, str]) -> int | None:
    """The number that was chosen for the same digests; None where there is none."""
    if not path.is_file():
        return None
    saved = json.loads(path.read_text(encoding="utf-8"))
    return int(saved["num_clusters"]) if saved["digests"] == dict(identity) else None


def _finite(line: dict[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and math.isnan(value) else value for key, value in line.items()
    }
