"""Random state of a run: seed it, capture it, restore it.

Covers torch (CPU and, where present, CUDA), numpy's global generator and `random`. Invariant: after
`restore_random_state(random_state())` every generator continues with the very draws it would have made;
the captured state holds plain values and tensors only, so that `torch.load(weights_only=True)` reads it.
"""

import random
from typing import Any

import numpy as np
import torch
from torch.utils import deterministic

SEED_LIMIT = 2**32
"""numpy's global generator takes seeds below this."""


def seed_everything(seed: int) -> None:
    """Seed every generator and ask torch for deterministic kernels.

    Without the latter, sums into repeated rows run in parallel on the CPU and differ between runs.

    Args:
        seed: In [0, 2**32).
    """
    random.seed(seed)
    np.random.seed(seed)  # libraries still draw from the global generator
    torch.manual_seed(seed)
    # `warn_only`: on CUDA a few kernels have no deterministic form; they run, with a warning.
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def reseed(*key: int) -> None:
    """Let every generator go on with draws that depend on `key` alone, whose numbers are not negative."""
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """Capture the state of every generator as plain values and tensors."""
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Put every generator back to a state from `random_state`."""
    random.setstate(state["python"])
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
