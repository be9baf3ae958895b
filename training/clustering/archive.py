"""A clustering state on disk: one npz, for exact resume.

Reads and writes `CdcState`. Invariant: `load_state(save_state(s))` goes on bit for bit as `s` would; a file
that is no state of this format is refused with its name.
"""

import io
import json
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from training.clustering.errors import RulesError, StateError
from training.clustering.rules import CdcRules
from training.clustering.source_sets import SourceRules
from training.clustering.state import CdcState, Clusters, UpdateRecord
from training.engine.files import write_atomically

FORMAT = 1
_MATRICES = ("labels", "centres", "last_moved", "mi", "mh", "mt", "mc")


def save_state(state: CdcState, path: Path) -> None:
    """Write `state` whole or not at all."""
    write_atomically(path, lambda part: part.write_bytes(state_bytes(state)))


def load_state(path: Path) -> CdcState:
    """Read a state.

    Raises:
        StateError: the file is missing or is no state of this format.
    """
    try:
        return state_from_bytes(path.read_bytes())
    except (OSError, StateError) as error:
        raise StateError(f"{path}: {error}") from error


def state_bytes(state: CdcState) -> bytes:
    """The state as the bytes of an npz; what a checkpoint embeds."""
    head = {
        "format": FORMAT,
        "t": state.t,
        "rules": asdict(state.rules),
        "history": [asdict(record) for record in state.history],
    }
    arrays: dict[str, Any] = {"head": np.array(json.dumps(head)), "shares": state.shares}
    if state.clusters is not None:
        arrays |= {name: getattr(state.clusters, name) for name in _MATRICES}
        # Order of entry matters to nothing but floating-point sums, so it is kept for exact resume.
        arrays |= {f"sources_{k}": ids for k, ids in enumerate(state.clusters.sources)}
        arrays |= {f"first_sources_{k}": ids for k, ids in enumerate(state.clusters.first_sources)}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def state_from_bytes(content: bytes) -> CdcState:
    """Read what `state_bytes` wrote.

    Raises:
        StateError: no state of this format.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as saved:
            arrays = dict(saved)
        head = json.loads(str(arrays["head"]))
        if head["format"] != FORMAT:
            raise StateError(f"format {head['format']} of a clustering state; this code reads {FORMAT}")
        rules = CdcRules(**{**head["rules"], "source": SourceRules(**head["rules"]["source"])})
        return CdcState(
            rules=rules,
            shares=arrays["shares"],
            t=int(head["t"]),
            clusters=_clusters(arrays, rules.num_clusters) if "labels" in arrays else None,
            history=tuple(_record(record) for record in head["history"]),
        )
    except (KeyError, TypeError, ValueError, RulesError, zipfile.BadZipFile) as error:
        raise StateError(f"not a clustering state ({type(error).__name__}: {error})") from error


def _clusters(arrays: dict[str, Any], num_clusters: int) -> Clusters:
    return Clusters(
        sources=tuple(arrays[f"sources_{k}"] for k in range(num_clusters)),
        first_sources=tuple(arrays[f"first_sources_{k}"] for k in range(num_clusters)),
        **{name: arrays[name] for name in _MATRICES},
    )


def _record(saved: dict[str, Any]) -> UpdateRecord:
    fields: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in saved.items()
    }
    return UpdateRecord(**fields)
