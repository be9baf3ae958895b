"""Several processes that train one model: who this one is, and what they tell each other.

Reads the environment that torchrun sets. `joined` opens the process group of the training (gloo between CPUs,
NCCL between GPUs) and closes it; a `RankGroup` is what the rest of the engine sees of it. Alone, every method
of it is the identity. Invariant: all ranks call the same methods in the same order, so none waits in vain;
one that fails makes the others fail, when the time limit of the group is over at the latest.

Letters: W ranks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from training.engine.errors import PeerError, RankError

T = TypeVar("T")

DEFAULT_TIMEOUT_S = 1800.0

FIRST = 0
CPU = torch.device("cpu")

_SET_BY_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, slots=True)
class RankGroup:
    """The processes of one training, seen from one of them.

    Attributes:
        rank: Of this process, from 0.
        world_size: W.
        local_rank: Of this process on its machine, hence the number of its GPU.
        restarts: How often torchrun has started this training anew.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    restarts: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and talks to people."""
        return self.rank == FIRST

    @property
    def is_alone(self) -> bool:
        """Whether there are no others."""
        return self.world_size == 1

    def on_first(self, work: Callable[[], T]) -> T:
        """What `work` gives on the first rank, on every rank; the others wait for it.

        Raises:
            PeerError: `work` failed there; on the first rank its own error passes through.
        """
        if self.is_alone:
            return work()
        told: list[Any] = [None]
        if self.is_first:
            try:
                told = [(work(), None)]
            except Exception as error:
                self._tell([(None, f"{type(error).__name__}: {error}")])
                raise
        self._tell(told)
        value, failure = told[0]
        if failure is not None:
            raise PeerError(f"rank {FIRST} failed: {failure}")
        found: T = value
        return found

    def gather(self, value: T) -> list[T]:
        """The values of all ranks in order on the first rank; nothing on the others."""
        if self.is_alone:
            return [value]
        found: list[Any] = [None] * self.world_size
        dist.gather_object(value, found if self.is_first else None, dst=FIRST)
        return found if self.is_first else []

    def sum(self, values: Tensor) -> Tensor:
        """Add `values` up over ranks, in place."""
        if not self.is_alone:
            dist.all_reduce(values)
        return values

    def all(self, values: Tensor) -> Tensor:
        """(W, ...) the values of all ranks, which are of one shape."""
        if self.is_alone:
            return values.unsqueeze(0)
        found = [torch.empty_like(values) for _ in range(self.world_size)]
        dist.all_gather(found, values.contiguous())
        return torch.stack(found)

    @staticmethod
    def _tell(message: list[Any]) -> None:
        dist.broadcast_object_list(message, src=FIRST, device=CPU)


ALONE = RankGroup()
"""The group of a process that trains by itself."""


def rank_group(environment: Mapping[str, str]) -> RankGroup:
    """The group that torchrun's variables speak of; `ALONE` without them.

    Raises:
        RankError: Some of them are missing or no numbers.
    """
    if "RANK" not in environment:
        return ALONE
    if missing := [name for name in _SET_BY_TORCHRUN if name not in environment]:
        raise RankError(f"RANK is set, but not {', '.join(missing)}; start several processes with torchrun")
    rank, world_size, local_rank, restarts = (
        _number(environment, name)
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT")
    )
    if rank >= world_size:
        raise RankError(f"RANK is {rank}; allowed with WORLD_SIZE {world_size}: 0 to {world_size - 1}")
    return RankGroup(rank, world_size, local_rank, restarts)


@contextmanager
def joined(*, device: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> Iterator[RankGroup]:
    """Be a member of the group for the length of the block.

    Args:
        device: `cpu`, `cuda`, or `auto` for CUDA where there is one; all ranks need the same kind.
        timeout_s: Seconds that a rank waits for the others before it gives up.

    Raises:
        RankError: The environment is not torchrun's, or the others do not come.
        PeerError: Another rank is gone, or keeps this one waiting for too long.
    """
    if timeout_s <= 0:
        raise RankError(f"the group's time limit is {timeout_s} s; allowed: more than 0")
    group = rank_group(os.environ)
    if group.is_alone:
        yield group
        return
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if on_gpu:
        torch.cuda.set_device(own_gpu(group))
    limit = timedelta(seconds=timeout_s)
    try:
        store, _, _ = next(rendezvous("env://", timeout=limit))
        dist.init_process_group(
            # Objects and sizes go between CPUs, whatever the gradients do.
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            # torchrun may keep its store over restarts, with the addresses of processes that are gone.
            store=PrefixStore(f"start-{group.restarts}", store),
            rank=group.rank,
            world_size=group.world_size,
            timeout=limit,
        )
    except (RuntimeError, ValueError) as error:
        raise RankError(f"rank {group.rank} of {group.world_size} cannot join the others: {error}") from error
    try:
        yield group
    except RuntimeError as error:
        # Connections that end and time limits that pass: gloo says so by its name alone.
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise PeerError(
            f"rank {group.rank} of {group.world_size} lost the others (limit {timeout_s:g} s): {error}"
        ) from error
    # Only at a good end: with a rank gone, NCCL would wait for it; the end of the process closes all.
    dist.destroy_process_group()


def own_gpu(group: RankGroup) -> int:
    """Number of this rank's GPU.

    Raises:
        RankError: The machine has fewer.
    """
    count = torch.cuda.device_count()
    if group.local_rank >= count:
        raise RankError(
            f"local rank {group.local_rank} has no GPU, the machine has {count}; "
            "lower --nproc-per-node or set training.device to cpu"
        )
    return group.local_rank


def refuse_ranks(command: str) -> None:
    """Refuse a command that several processes would do several times over.

    Raises:
        RankError: There are several.
    """
    group = rank_group(os.environ)
    if not group.is_alone:
        raise RankError(
            f"{command} works in one process, WORLD_SIZE is {group.world_size}; "
            "only `ctr-train run` works under torchrun"
        )


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "0")
    if not text.isdecimal():
        raise RankError(f"{name} is {text!r}; allowed: whole numbers from 0")
    return int(text)
