"""Per-domain Platt calibration: score = sigmoid(scale_d * logit + bias_d).

Fitted on validation logits; reads and writes `calibration.json`. A global line is fitted first; each domain's
line is shrunk to it, by a strength that K-fold cross-validation chooses (folds are cut by user, whose
rows hang together); "global only" is one of the choices. Invariants: every domain and the fallback have a
line; every scale is positive, so calibration never reorders the rows of a domain; a domain without rows has
the fallback's.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from training.engine.errors import CalibrationError
from training.engine.files import write_text
from training.engine.platt import FloatArray, IntArray, Lines, Rows, fit_lines, row_losses, sigmoid

GLOBAL_ONLY = math.inf
"""Strength at which every domain has the global line."""
DEFAULT_STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, GLOBAL_ONLY)
"""Weights of the pull to the global line, about in rows' worth of evidence."""

_GLOBAL_STRENGTH = 1e-3
"""Pull of the global line to the model's own logit: too weak to matter, but separable rows stay finite."""
_MIN_GLOBAL_SLOPE = 1e-3
_MIN_SLOPE_RATIO = 0.1
"""A domain's slope is at least this share of the global one."""


@dataclass(frozen=True, eq=False)
class Calibrator:
    """Lines of D domains and of the fallback, which serves unknown domains.

    Attributes:
        domains: D names.
        scale, bias: (D + 1,) float64, the fallback last.
        strength: Pull to the global line that was chosen; inf for "global only" and for no calibration.
        cross_validation: Held-out logloss (nats per row) of each strength tried, strongest first.
    """

    domains: tuple[str, ...]
    scale: FloatArray
    bias: FloatArray
    strength: float
    cross_validation: tuple[tuple[float, float], ...] = ()

    def apply(self, logits: ArrayLike, domains: ArrayLike) -> FloatArray:
        """Calibrated click probabilities.

        Args:
            logits: (B,) of the model.
            domains: (B,) integers in [0, D]; D takes the fallback.

        Returns:
            (B,) float64 in [0, 1].
        """
        index = np.asarray(domains, dtype=np.int64)
        return sigmoid(self.scale[index] * np.asarray(logits, dtype=np.float64) + self.bias[index])

    def save(self, path: Path) -> None:
        """Write `calibration.json`; a strength of null stands for "global only"."""
        lines = [{"scale": float(a), "bias": float(b)} for a, b in zip(self.scale, self.bias, strict=True)]
        content = {
            "domains": dict(zip(self.domains, lines[:-1], strict=True)),
            "fallback": lines[-1],
            "strength": _finite_or_none(self.strength),
            "cross_validation": [
                {"strength": _finite_or_none(s), "logloss": loss} for s, loss in self.cross_validation
            ],
        }
        write_text(path, json.dumps(content, indent=2) + "\n")

    @staticmethod
    def load(path: Path) -> "Calibrator":
        """Read `calibration.json`.

        Raises:
            CalibrationError: The file is missing or is not a calibration.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            lines = [*content["domains"].values(), content["fallback"]]
            return Calibrator(
                domains=tuple(content["domains"]),
                scale=np.array([line["scale"] for line in lines], dtype=np.float64),
                bias=np.array([line["bias"] for line in lines], dtype=np.float64),
                strength=_inf_if_none(content["strength"]),
                cross_validation=tuple(
                    (_inf_if_none(row["strength"]), row["logloss"]) for row in content["cross_validation"]
                ),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CalibrationError(f"{path}: not a readable calibration ({error!r})") from error


def identity_calibrator(domains: Sequence[str]) -> Calibrator:
    """Scores are the sigmoid of the model's logits."""
    size = len(domains) + 1
    return Calibrator(tuple(domains), np.ones(size), np.zeros(size), strength=GLOBAL_ONLY)


def fit_calibrator(
    *,
    logits: ArrayLike,
    labels: ArrayLike,
    domains: ArrayLike,
    users: ArrayLike,
    domain_names: Sequence[str],
    strengths: Sequence[float] = DEFAULT_STRENGTHS,
    num_folds: int = 5,
    seed: int = 0,
) -> Calibrator:
    """Fit lines for every domain.

    Args:
        logits: (n,) float logits of validation rows.
        labels: (n,) 0 or 1.
        domains: (n,) integers in [0, D]; rows of D (unknown) count for the global line only.
        users: (n,) integer user codes, the unit that folds keep together.
        domain_names: D names.
        strengths: To choose from; inf is "global only". One value is taken without cross-validation.
        num_folds: At least 2.
        seed: Of the fold assignment.

    Raises:
        CalibrationError: No rows, one class only, or a logit that is not finite.
    """
    z = np.asarray(logits, dtype=np.float64)
    y = np.asarray(labels, dtype=np.float64)
    group = np.asarray(domains, dtype=np.int64)
    _check(z, y)
    mean, spread = float(z.mean()), float(z.std()) or 1.0
    rows = Rows((z - mean) / spread, y, group)
    own = Lines(np.array([spread]), np.array([mean]))  # the model's own logit in standardised coordinates
    ordered = sorted(set(strengths), reverse=True)
    table: tuple[tuple[float, float], ...] = ()
    chosen = ordered[0]
    if len(ordered) > 1:
        folds = user_folds(users, num_folds=num_folds, seed=seed)
        losses = _cross_validate(rows, folds, own=own, strengths=ordered, num_domains=len(domain_names))
        table = tuple(zip(ordered, losses.tolist(), strict=True))
        chosen = ordered[int(np.argmin(losses))]  # of equal losses the stronger pull
    lines = _path(
        rows, own=own, strengths=[s for s in ordered if s >= chosen], num_domains=len(domain_names)
    )[-1]
    return Calibrator(
        domains=tuple(domain_names),
        scale=lines.slope / spread,
        bias=lines.bias - lines.slope * mean / spread,
        strength=chosen,
        cross_validation=table,
    )


def user_folds(users: ArrayLike, *, num_folds: int, seed: int) -> IntArray:
    """Assign each row (n,) to one of `num_folds` folds; all rows of a user share one."""
    _, code = np.unique(np.asarray(users), return_inverse=True)
    size = int(code.max(initial=-1)) + 1
    fold_of_user = np.random.default_rng(seed).permutation(size) % num_folds
    folds: IntArray = fold_of_user[code]
    return folds


def _cross_validate(
    rows: Rows, folds: IntArray, *, own: Lines, strengths: Sequence[float], num_domains: int
) -> FloatArray:
    """Held-out logloss (len(strengths),) in nats per row."""
    totals = np.zeros(len(strengths))
    for fold in np.unique(folds):
        out = folds == fold
        fitted = _path(_take(rows, ~out), own=own, strengths=strengths, num_domains=num_domains)
        held = _take(rows, out)
        totals += [row_losses(held, lines).sum() for lines in fitted]
    return totals / len(rows.label)


def _path(rows: Rows, *, own: Lines, strengths: Sequence[float], num_domains: int) -> list[Lines]:
    """Lines (D + 1,) for each strength, strongest first; each search starts from the one before."""
    whole = Rows(rows.logit, rows.label, np.zeros(len(rows.label), dtype=np.int64))
    base = fit_lines(whole, centre=own, strength=_GLOBAL_STRENGTH, min_slope=_MIN_GLOBAL_SLOPE, start=own)
    centre = Lines(np.repeat(base.slope, num_domains), np.repeat(base.bias, num_domains))
    known = _take(rows, rows.group < num_domains)
    lines, result = centre, []
    for strength in strengths:
        if math.isfinite(strength):
            floor = _MIN_SLOPE_RATIO * float(base.slope[0])
            lines = fit_lines(known, centre=centre, strength=strength, min_slope=floor, start=lines)
        result.append(Lines(np.append(lines.slope, base.slope), np.append(lines.bias, base.bias)))
    return result


def _take(rows: Rows, kept: NDArray[np.bool_]) -> Rows:
    return Rows(rows.logit[kept], rows.label[kept], rows.group[kept])


def _check(logits: FloatArray, labels: FloatArray) -> None:
    if len(logits) == 0:
        raise CalibrationError("calibration needs validation rows, got none")
    if not np.isfinite(logits).all():
        row = int(np.flatnonzero(~np.isfinite(logits))[0])
        raise CalibrationError(f"calibration needs finite logits, got {logits[row]} at row {row}")
    if labels.min() == labels.max():
        raise CalibrationError(
            f"calibration needs both classes, all {len(labels)} validation labels are {labels[0]:g}; "
            "set calibration.method=none to score without it"
        )


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _inf_if_none(value: float | None) -> float:
    return GLOBAL_ONLY if value is None else float(value)
