"""Golden rows: inputs with known scores, replayed before a bundle serves.

Reads and writes `golden.npz`. For each graph: one array per graph input under `<graph>/<input>` and
the scores under `<graph>/expected`, (N,) float32. Invariant: `read_golden` returns what `write_golden`
was given, and the same content always gives the same bytes.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from service.errors import GoldenError

EXPECTED = "expected"
TOLERANCE = 1e-5

Inputs = Mapping[str, NDArray[Any]]


class RunsGraph(Protocol):
    """What replaying needs of a predictor."""

    def run(self, inputs: Inputs) -> NDArray[np.float32]:
        """Scores, (N,) float32, of inputs given by name."""
        ...


@dataclass(frozen=True)
class GoldenRows:
    """Rows of one graph.

    Attributes:
        inputs: Every graph input by name, as the graph takes it: R requests, N candidates.
        expected: (N,) float32 scores.
    """

    inputs: Inputs
    expected: NDArray[np.float32]


def write_golden(path: Path, rows: Mapping[str, tuple[Inputs, NDArray[np.float32]]]) -> None:
    """Write `golden.npz`.

    Args:
        path: Where to.
        rows: By graph: inputs by name, and their expected scores (N,) float32.

    Raises:
        GoldenError: No graph, no rows, scores that are not (N,) finite float32, or an unusable input name.
    """
    arrays: dict[str, NDArray[Any]] = {}
    if not rows:
        raise GoldenError(f"{path}: no graph has golden rows")
    for graph, (inputs, expected) in rows.items():
        _check_expected(path, graph, expected)
        for name, values in inputs.items():
            if "/" in name or name == EXPECTED:
                raise GoldenError(f"{path}: graph '{graph}': '{name}' cannot name an input")
            arrays[f"{graph}/{name}"] = np.ascontiguousarray(values)
        arrays[f"{graph}/{EXPECTED}"] = expected
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def read_golden(path: Path) -> dict[str, GoldenRows]:
    """Read `golden.npz`: rows by graph.

    Raises:
        GoldenError: The file is not such an archive, or a graph lacks its scores.
    """
    inputs: dict[str, dict[str, NDArray[Any]]] = {}
    expected: dict[str, NDArray[np.float32]] = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for key in archive.files:
                graph, _, name = key.rpartition("/")
                if name == EXPECTED:
                    expected[graph] = archive[key]
                else:
                    inputs.setdefault(graph, {})[name] = archive[key]
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise GoldenError(f"{path}: cannot be read as golden rows ({type(error).__name__})") from None
    for graph in inputs:
        if graph not in expected:
            raise GoldenError(f"{path}: graph '{graph}' has inputs but no '{EXPECTED}' scores")
    for graph, scores in expected.items():
        _check_expected(path, graph, scores)
    return {graph: GoldenRows(inputs.get(graph, {}), scores) for graph, scores in expected.items()}


def check_golden(
    predictors: Mapping[str, RunsGraph], golden: Mapping[str, GoldenRows], *, tolerance: float = TOLERANCE
) -> dict[str, float]:
    """Replay every graph's rows.

    Args:
        predictors: By graph.
        golden: By graph, as read.
        tolerance: Largest allowed |score - expected|.

    Returns:
        Largest |score - expected| by graph.

    Raises:
        GoldenError: A graph has no rows or rows have no graph; or a score differs by more than the
            tolerance, in which case the message names the graph and its worst row.
    """
    if odd := set(predictors) ^ set(golden):
        raise GoldenError(f"golden rows and graphs do not match: {sorted(odd)}")
    return {graph: _replay(graph, predictors[graph], golden[graph], tolerance) for graph in sorted(golden)}


def _replay(graph: str, predictor: RunsGraph, rows: GoldenRows, tolerance: float) -> float:
    scores = predictor.run(rows.inputs)
    if scores.shape != rows.expected.shape:
        raise GoldenError(f"graph '{graph}': {scores.shape} scores for {rows.expected.shape} golden rows")
    error = np.abs(scores.astype(np.float64) - rows.expected)
    worst = int(np.argmax(error))
    if not error[worst] <= tolerance:
        raise GoldenError(
            f"graph '{graph}': golden row {worst} scores {scores[worst]:.8g}, "
            f"expected {rows.expected[worst]:.8g} (difference {error[worst]:.3g}, allowed {tolerance:g})"
        )
    return float(error[worst])


def _check_expected(path: Path, graph: str, expected: NDArray[np.float32]) -> None:
    if expected.ndim != 1 or expected.dtype != np.float32 or not len(expected):
        raise GoldenError(
            f"{path}: graph '{graph}': expected scores must be (N,) float32 with N >= 1, "
            f"got {expected.shape} {expected.dtype}"
        )
    if not np.isfinite(expected).all():
        row = int(np.flatnonzero(~np.isfinite(expected))[0])
        raise GoldenError(f"{path}: graph '{graph}': expected score of row {row} is not finite")


__all__ = ["EXPECTED", "TOLERANCE", "GoldenRows", "check_golden", "read_golden", "write_golden"]
