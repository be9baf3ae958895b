"""A bundle with other calibrators: the same graphs, tables and features, new lines by domain.

Reads a bundle and a `calibration.json`. Graphs hold their lines in two named constants; only these change, so
a new bundle takes seconds. Invariant: on golden rows each new score is the new line applied to the logit
behind the old score; figures that the old lines gave are dropped.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from export.card import render_card
from export.errors import ExportError
from export.graph import CALIBRATOR_BIAS, CALIBRATOR_SCALE
from export.parity import MAX_ERROR
from export.verify import domain_of_rows
from service.contract.bundle import CARD_FILE, GOLDEN_FILE, MANIFEST_FILE, SCHEMA_FILE, Bundle
from service.contract.manifest import Calibration, FileEntry, Manifest
from service.contract.store import ModelStore
from service.scoring.golden import GoldenRows, check_golden, read_golden, write_golden
from service.scoring.predictor import Predictor
from training.engine.calibrate import Calibrator

STALE = ("ece", "logloss", "calibration", "brier")
"""Parts of names of figures that depend on the lines."""
CLOSEST = 1e-7
"""Golden scores nearer to 0 or 1 say nothing of their logit; they are taken from the new graph, like those of
domains that other graphs serve."""


class RecalibrateError(ExportError):
    """Calibrators that a bundle cannot take."""


def recalibrate(bundle: Bundle, calibrator: Calibrator, store: ModelStore, *, alias: str | None) -> Bundle:
    """Publish the bundle with other calibrators.

    Args:
        bundle: As published.
        calibrator: Lines of its domains and the fallback.
        store: Where the new bundle goes.
        alias: Alias to move onto it; None moves none.

    Raises:
        RecalibrateError: The lines are of other domains, or a graph does not hold its lines by name.
        GoldenError: A new graph does not give the scores of the new lines.
    """
    if calibrator.domains != bundle.schema.domains:
        odd = sorted(set(calibrator.domains) ^ set(bundle.schema.domains))[:3]
        raise RecalibrateError(f"calibrators and bundle list different domains, e.g. {odd}")
    with store.writer() as writer:
        _link_files(bundle, writer.path)
        for key, graph in bundle.manifest.graphs.items():
            _set_lines(writer.path / graph.file, key, bundle, calibrator)
        golden = _new_golden(bundle, calibrator, writer.path)
        write_golden(writer.path / GOLDEN_FILE, {k: (g.inputs, g.expected) for k, g in golden.items()})

        def manifest(files: dict[str, FileEntry]) -> Manifest:
            return _manifest(bundle.manifest, calibrator, files)

        (writer.path / CARD_FILE).write_text(render_card(manifest({})))
        made = writer.publish(manifest, bundle.schema)
    if alias is not None:
        store.set_alias(alias, made.bundle_id)
    return made


def _link_files(bundle: Bundle, folder: Path) -> None:
    """All files but those that change; linked where the file system can, so that tables are not copied."""
    changed = {SCHEMA_FILE, MANIFEST_FILE, GOLDEN_FILE, CARD_FILE}
    graphs = {graph.file for graph in bundle.manifest.graphs.values()}
    for name in bundle.manifest.files:
        if name in changed:
            continue
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if name in graphs:
                shutil.copyfile(bundle.file(name), target)
            else:
                os.link(bundle.file(name), target)
        except OSError:
            shutil.copyfile(bundle.file(name), target)


@dataclass(frozen=True)
class _Lines:
    """Lines that a graph holds: of all domains and the fallback, or of its only one."""

    scale: NDArray[np.float32]
    bias: NDArray[np.float32]


def _lines_of(key: str, bundle: Bundle, calibrator: Calibrator, size: int) -> _Lines:
    scale, bias = calibrator.scale.astype(np.float32), calibrator.bias.astype(np.float32)
    if size == len(scale):
        return _Lines(scale, bias)
    own = [entry.index for entry in bundle.manifest.domains.values() if entry.graph == key]
    only = own[0] if own else bundle.schema.num_domains
    return _Lines(scale[only : only + 1], bias[only : only + 1])


def _set_lines(path: Path, key: str, bundle: Bundle, calibrator: Calibrator) -> None:
    proto = onnx.load(str(path), load_external_data=False)
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    if CALIBRATOR_SCALE not in tensors or CALIBRATOR_BIAS not in tensors:
        raise RecalibrateError(f"graph '{key}' does not hold its calibrators by name; build it anew")
    lines = _lines_of(key, bundle, calibrator, int(tensors[CALIBRATOR_SCALE].dims[0]))
    for name, values in ((CALIBRATOR_SCALE, lines.scale), (CALIBRATOR_BIAS, lines.bias)):
        tensors[name].CopyFrom(numpy_helper.from_array(values, name))
    path.write_bytes(proto.SerializeToString(deterministic=True))


def _new_golden(bundle: Bundle, calibrator: Calibrator, folder: Path) -> dict[str, GoldenRows]:
    """Golden rows with the scores of the new lines, which the new graphs are held to."""
    graphs = bundle.manifest.graphs
    predictors = {key: Predictor(folder / graph.file, graph) for key, graph in graphs.items()}
    found = {}
    for key, rows in read_golden(bundle.file(GOLDEN_FILE)).items():
        domains = domain_of_rows(key, bundle, bundle.manifest.graphs[key], rows)
        old = rows.expected.astype(np.float64)
        before = _old_lines(bundle)
        known = (old > CLOSEST) & (old < 1 - CLOSEST) & np.isin(domains, _served(bundle, key))
        inner = np.clip(old, CLOSEST, 1 - CLOSEST)
        logit = (np.log(inner) - np.log1p(-inner) - before[1][domains]) / before[0][domains]
        expected = calibrator.apply(logit, domains).astype(np.float32)
        scores = predictors[key].run(rows.inputs)
        found[key] = GoldenRows(rows.inputs, np.where(known, expected, scores).astype(np.float32))
    check_golden(predictors, found, tolerance=MAX_ERROR)
    return found


def _served(bundle: Bundle, key: str) -> list[int]:
    """Indices of the domains that a graph serves."""
    served = [entry.index for entry in bundle.manifest.domains.values() if entry.graph == key]
    unknown = bundle.manifest.unknown_domain.graph == key
    return [*served, bundle.schema.num_domains] if unknown else served


def _old_lines(bundle: Bundle) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scales and biases (D + 1,) of the bundle as it is."""
    entries = sorted(bundle.manifest.domains.values(), key=lambda entry: entry.index)
    lines = [*(entry.calibration for entry in entries), bundle.manifest.unknown_domain.calibration]
    return np.array([line.scale for line in lines]), np.array([line.bias for line in lines])


def _manifest(old: Manifest, calibrator: Calibrator, files: dict[str, FileEntry]) -> Manifest:
    def line(index: int) -> Calibration:
        return Calibration(scale=float(calibrator.scale[index]), bias=float(calibrator.bias[index]))

    domains = {
        name: entry.model_copy(
            update={
                "calibration": line(entry.index),
                "mean_score": None,
                "metrics": _fresh(entry.metrics),
            }
        )
        for name, entry in old.domains.items()
    }
    return old.model_copy(
        update={
            "domains": domains,
            "unknown_domain": old.unknown_domain.model_copy(update={"calibration": line(len(domains))}),
            "metrics": {part: _fresh(figures) for part, figures in old.metrics.items()},
            "files": files,
        }
    )


def _fresh(figures: dict[str, Any]) -> dict[str, Any]:
    """Figures that do not depend on the lines."""
    return {name: value for name, value in figures.items() if not any(part in name for part in STALE)}
