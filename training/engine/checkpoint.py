"""Checkpoints: one file that holds all a run needs to go on, replaced atomically.

Invariant: the file is always a whole checkpoint. A kill or a full disk while writing leaves the previous
one, so a run loses at most the work since then. Only tensors and plain values are stored, so loading runs
no code.
"""

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.engine.errors import CheckpointError
from training.engine.files import write_atomically

FORMAT = 1


class CheckpointFile:
    """The checkpoint of one run.

    Attributes:
        path: Where it lies.
        identity: What must agree for a run to go on from it, e.g. digests of config and data.
    """

    def __init__(self, path: Path, *, identity: Mapping[str, str]) -> None:
        self.path = path
        self.identity = dict(identity)

    def exists(self) -> bool:
        """Whether there is anything to go on from."""
        return self.path.is_file()

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint.

        Raises:
            CheckpointError: It cannot be written; the previous one is still in place.
        """
        content = {"format": FORMAT, "identity": self.identity, "state": dict(state)}
        try:
            write_atomically(self.path, lambda part: torch.save(content, part))
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            raise CheckpointError(f"{self.path}: cannot write the checkpoint: {error}") from error

    def load(self) -> dict[str, Any]:
        """Read the state last saved.

        Raises:
            CheckpointError: Missing, damaged, of another format, or of another config or data set.
        """
        content = load_tensors(self.path)
        if content.get("format") != FORMAT:
            raise CheckpointError(
                f"{self.path}: format {content.get('format')!r}, this version reads {FORMAT}"
            )
        for name, wanted in self.identity.items():
            found = content["identity"].get(name)
            if found != wanted:
                raise CheckpointError(
                    f"{self.path}: is of another run: {name} is {found!r} there and {wanted!r} here"
                )
        state: dict[str, Any] = content["state"]
        return state


def load_tensors(path: Path) -> dict[str, Any]:
    """Read a dict of tensors and plain values from a file that `torch.save` wrote, onto the CPU.

    Raises:
        CheckpointError: Missing, damaged, or holding anything that would run code.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path}: damaged or not of this program ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, expected a dict")
    return content


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Sha256 (hex) over names, dtypes, shapes and bytes of a `state_dict`; equal digests mean equal bits."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
