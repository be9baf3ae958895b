"""Masks of a run on disk: `masks/masks.npz`.

    shape     levels N_0 .. N_L, then the number of masked base experts (0 for none), int64
    domains   (D,) names
    searched  (n,) int64 indices of the domains that updates were for
    masks     (D + 1, X) bool, those of the best weights; the last row serves unknown domains
    history   (U, D + 1, X) bool, after each update

Invariant: arrays only, so reading runs no code; the file is written whole.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.clustering.arrays import IntArray
from training.engine.files import write_atomically
from training.masks.errors import MaskSearchError
from training.models.mask import BoolArray, PyramidMask, PyramidShape

MASKS_FILE = "masks.npz"


@dataclass(frozen=True, eq=False)
class MaskRecord:
    """Masks of a run.

    Attributes:
        shape: Of the pyramid.
        domains: (D,) names.
        searched: (n,) domains that updates were for.
        masks: (D + 1, X) of the best weights.
        history: (U, D + 1, X) after each update.
    """

    shape: PyramidShape
    domains: tuple[str, ...]
    searched: IntArray
    masks: BoolArray
    history: BoolArray

    def mask(self, domain: int) -> PyramidMask:
        """Of one domain."""
        return PyramidMask(self.shape, self.masks[domain])


def save_masks(
    folder: Path,
    *,
    shape: PyramidShape,
    domains: Sequence[str],
    searched: Sequence[int],
    masks: Sequence[PyramidMask],
    history: Sequence[BoolArray],
) -> None:
    """Write `masks.npz` into a folder; arguments as in the module's table."""
    arrays: dict[str, Any] = {
        "shape": np.array([*shape.widths, shape.base_width], dtype=np.int64),
        "domains": np.array(list(domains), dtype=np.str_),
        "searched": np.array(searched, dtype=np.int64),
        "masks": np.stack([mask.bits for mask in masks]),
        "history": np.stack(history)
        if len(history)
        else np.zeros((0, len(masks), shape.num_edges), dtype=np.bool_),
    }

    def write(part: Path) -> None:
        with part.open("wb") as stream:
            np.savez_compressed(stream, **arrays)

    write_atomically(folder / MASKS_FILE, write)


def load_masks(folder: Path) -> MaskRecord:
    """Read `masks.npz`.

    Raises:
        MaskSearchError: Missing or damaged.
    """
    path = folder / MASKS_FILE
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("shape", "domains", "searched", "masks", "history")}
    except FileNotFoundError:
        raise MaskSearchError(f"{path}: no such file; runs with masks.enabled have one") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise MaskSearchError(f"{path}: damaged or not of this program ({type(error).__name__})") from error
    *widths, base_width = arrays["shape"].tolist()
    return MaskRecord(
        shape=PyramidShape(tuple(widths), base_width),
        domains=tuple(arrays["domains"].tolist()),
        searched=arrays["searched"],
        masks=arrays["masks"],
        history=arrays["history"],
    )
